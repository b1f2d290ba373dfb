"""How a run says where it is. The flows tell one listener; `run` draws what it hears, a deployment logs it.

The listener is the process's, not a thread's: Prefect runs tasks in pool threads, and a run has one display.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger("crafter_pipeline")


class Progress(Protocol):
    """Hears what a run does. Called from any thread; must not raise."""

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None:
        """A stage started, or ended as completed, cached or failed after `seconds`."""

    def expect(self, total: int, unit: str) -> None:
        """The stage that runs now consists of `total` units, e.g. seeds."""

    def advance(self, count: int = 1) -> None:
        """So many more units are done."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """A training job reported the numbers of a step, all at once."""

    def note(self, text: str) -> None:
        """A line worth reading."""


class LogProgress:
    """Stages, notes and every tenth of the units as log lines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = self._total = 0
        self._unit = ""

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None:
        log.info("%s: %s%s", name, state, f" after {seconds:.1f} s" if seconds else "")

    def expect(self, total: int, unit: str) -> None:
        with self._lock:
            self._done, self._total, self._unit = 0, total, unit

    def advance(self, count: int = 1) -> None:
        with self._lock:
            before, self._done = self._done, self._done + count
            done, total, unit = self._done, self._total, self._unit
        if total and done * 10 // total > before * 10 // total:
            log.info("%d of %d %s", done, total, unit)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        log.debug("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def note(self, text: str) -> None:
        log.info("%s", text)


_listener: Progress = LogProgress()


def progress() -> Progress:
    """The listener of this process."""
    return _listener


@contextmanager
def report_to(listener: Progress) -> Iterator[None]:
    """Let `listener` hear everything until the block ends."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
