"""A training job as it goes on: lines, or a chart on a terminal. All of it goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from crafter_pipeline.cli.common import note
from crafter_pipeline.cli.showing import plain
from crafter_pipeline.errors import BackendError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from crafter_pipeline.clients.backend import BackendClient, Job, JobEvent

LOST_SECONDS = 120.0
"""How long a backend may be away before nobody waits for it any more."""
CHARTED = ("train.loss", "rl.reward", "rl.reward.mean", "distillation.reverse_kl", "validation.loss", "dev.reward")
"""Metrics that a chart shows: the first two of them that there are."""
HEIGHT, WIDTH = 10, 72
BLOCKS = " ▁▂▃▄▅▆▇█"


def follow(
    client: BackendClient,
    job_id: str,
    *,
    form: Literal["cli", "chart"] = "cli",
    poll_seconds: float = 5.0,
    timeout_seconds: float = 3600.0,
    tell: Callable[[str], None] = note,
) -> Job:
    """Block until the job has a model, showing what it says.

    A backend that is away for less than LOST_SECONDS is waited for.

    Raises JobFailed, JobNotOver, BackendError.
    """
    ends = time.monotonic() + timeout_seconds
    with _listener(client, job_id, form, tell) as listener:
        while True:
            try:
                return client.wait(
                    job_id,
                    listener.event,
                    listener.metrics,
                    poll_seconds,
                    max(0.0, ends - time.monotonic()),
                    on_status=listener.status,
                )
            except BackendError as e:
                if not listener.may_come_back(e) or time.monotonic() >= ends:
                    raise BackendError(
                        f"{e} Job {job_id} was sent and may go on: `crafter-pipeline status jobs get {job_id}`."
                    ) from e
            time.sleep(poll_seconds)


@dataclass
class Lines:
    """Each thing a line, once."""

    client: BackendClient
    job_id: str
    tell: Callable[[str], None]
    seq: int = 0
    last_status: str = ""
    told: set[tuple[str, int]] = field(default_factory=set)
    phases: int = 0
    has_timeline: bool = True
    away_since: float | None = None

    def status(self, job: Job) -> None:
        """At every poll."""
        self.away_since = None
        if job.status != self.last_status:
            self.last_status = job.status
            self.tell(f"[{time.strftime('%H:%M:%S')}] status={plain(job.status)}")
        if self.has_timeline:
            self._timeline()

    def event(self, event: JobEvent) -> None:
        if event.seq > self.seq:
            self.seq = event.seq
            self.tell(f"[{event.seq}] {plain(event.type)} ({plain(event.level)}): {plain(event.message)}")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if (name, step) not in self.told:
                self.told.add((name, step))
                self.point(name, step, value)

    def point(self, name: str, step: int, value: float) -> None:
        """A number that was not told before."""
        self.tell(f"{plain(name)}={value:.6g} (step={step})")

    def may_come_back(self, error: BackendError) -> bool:
        """Whether a backend that does not answer is worth waiting for; the first time it is told."""
        if error.status is not None and error.status < 500:
            return False
        now = time.monotonic()
        if self.away_since is None:
            self.away_since = now
            self.tell(f"[{time.strftime('%H:%M:%S')}] {plain(error)} Trying again.")
        return now - self.away_since < LOST_SECONDS

    def _timeline(self) -> None:
        try:
            phases = self.client.timeline(self.job_id)
        except BackendError as e:
            self.has_timeline = e.status is None or e.status >= 500
            return
        for phase in phases[self.phases :]:
            self.tell(f"timeline={plain(phase.get('phase'))}")
        self.phases = max(self.phases, len(phases))


@dataclass
class Chart(Lines):
    """A curve per metric that matters; warnings stay lines."""

    live: Live | None = None
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def status(self, job: Job) -> None:
        self.away_since = None
        self.last_status = job.status
        self._draw()

    def event(self, event: JobEvent) -> None:
        if event.level in ("warning", "error"):
            super().event(event)

    def point(self, name: str, step: int, value: float) -> None:
        if name in CHARTED:
            self.curves.setdefault(name, []).append((step, value))
            self._draw()

    def _draw(self) -> None:
        if self.live is not None:
            self.live.update(self._shown())

    def _shown(self) -> RenderableType:
        from rich.text import Text

        parts = [f"{self.job_id}  {plain(self.last_status)}"]
        for name in sorted(self.curves, key=CHARTED.index)[:2]:
            parts += chart(name, self.curves[name])
        return Text("\n".join(parts))


def chart(name: str, points: list[tuple[int, float]], width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """A curve in lines of text: a title with the last value, the curve between its least and greatest value, its steps.

    Where there are more points than columns, a column shows the mean of its share.
    """
    values = [value for _, value in points]
    columns = min(width, len(values))
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    levels = [round((mean - low) / ((high - low) or 1.0) * (height * 8 - 1)) + 1 for mean in means]
    lines = [f"{name} = {values[-1]:.4g} (step {points[-1][0]})"]
    for row in reversed(range(height)):
        label = f"{high:9.4g} ┤" if row == height - 1 else f"{low:9.4g} ┤" if row == 0 else f"{'':9} │"
        lines.append(label + "".join(BLOCKS[max(0, min(8, level - row * 8))] for level in levels))
    lines.append(f"{'':9} └ steps {points[0][0]} to {points[-1][0]}")
    return lines


@contextmanager
def _listener(
    client: BackendClient, job_id: str, form: Literal["cli", "chart"], tell: Callable[[str], None]
) -> Iterator[Lines]:
    """A chart where it was asked for and somebody sees it; else lines."""
    if form == "cli" or not sys.stderr.isatty():
        yield Lines(client, job_id, tell)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(console=console, refresh_per_second=4) as live:
        yield Chart(client, job_id, lambda line: console.print(line, markup=False, highlight=False), live=live)
