"""Where the wall time of an RL job goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

Phase = Literal["rollout", "update", "weight_sync", "checkpoint", "record", "dev_evaluation", "idle"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""idle: what none of the others is."""


class Clock:
    """Wall seconds per phase; the job is in one phase at a time."""

    def __init__(self) -> None:
        self._phase: Phase = "idle"
        self._since = time.monotonic()
        self._seconds: dict[Phase, float] = defaultdict(float)
        self._before = 0.0

    def start(self) -> None:
        """Count from now on."""
        self._phase, self._since = "idle", time.monotonic()
        self._seconds.clear()

    def enter(self, phase: Phase) -> Phase:
        """The job is in `phase` from now on. Returns the one it was in."""
        before, now = self._phase, time.monotonic()
        self._seconds[before] += now - self._since
        self._phase, self._since = phase, now
        return before

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Within, the job is in `phase`; then again in the one before."""
        before = self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def cut(self) -> dict[Phase, float]:
        """Seconds per phase since the last cut."""
        self.enter(self._phase)
        seconds = {phase: self._seconds[phase] for phase in PHASES}
        self._before += sum(seconds.values())
        self._seconds.clear()
        return seconds

    @property
    def total_seconds(self) -> float:
        """Of the job until the last cut, its earlier workers included."""
        return self._before

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"seconds": self._before}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._before = float(state["seconds"])


def shares(seconds: dict[Phase, float]) -> dict[str, float]:
    """`share.<phase>` of the wall time, and `compute_share`: what rollouts and updates have of it."""
    total = sum(seconds.values()) or 1.0
    told = {f"share.{phase}": value / total for phase, value in seconds.items()}
    return {**told, "compute_share": (seconds["rollout"] + seconds["update"]) / total}
