"""A run's progress as lines of text: where there is no terminal, and where several runs share one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from crafter_pipeline.progress import in_words
from crafter_pipeline.report.text import duration

MARKS = {"completed": "done", "cached": "done before", "failed": "failed", "cancelled": "stopped"}
EVERY_SECONDS = 10.0


def step_in_words(step: int, total: int, values: Mapping[str, float]) -> str:
    """A training step in a few words; empty when it has none of the numbers that matter."""
    words = in_words(values)
    return f"step {step}{f' of {total}' if total else ''}: {words}" if words else ""


class Lines:
    """Listens to one stage after another and tells of each in lines: at its start, at its end, and every ten seconds in
    between.

    Args:
        say: Takes a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._print, self._lock = say, threading.Lock()
        self._stage, self._done, self._total, self._unit = "", 0, 0, ""
        self._numbers, self._said = "", 0.0

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None:
        with self._lock:
            self._stage, self._done, self._total = name, 0, 0
            if state == "started":
                self._numbers = ""
            took = f" in {duration(seconds)}" if state == "completed" else ""
            numbers = f" ({self._numbers})" if state == "completed" and self._numbers else ""
            self._say(f"{name}: {MARKS.get(state, state)}{took}{numbers}")

    def expect(self, total: int, unit: str) -> None:
        with self._lock:
            self._done, self._total, self._unit = 0, total, unit

    def advance(self, count: int = 1) -> None:
        with self._lock:
            self._done += count
            if not self._numbers:
                self._now_and_then(f"{self._stage}: {self._done} of {self._total} {self._unit}")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        with self._lock:
            if line := step_in_words(step, self._total, values):
                self._numbers = line
                self._now_and_then(f"{self._stage}: {line}")

    def note(self, text: str) -> None:
        with self._lock:
            self._say(text)

    def _now_and_then(self, line: str) -> None:
        if time.monotonic() - self._said > EVERY_SECONDS:
            self._say(line)

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        self._print(line)
