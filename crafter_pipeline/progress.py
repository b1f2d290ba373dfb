"""How a run says where it is. The flows tell one listener: the log (which Prefect keeps), and with `run` a display too.

The listener is the process's, not a thread's: Prefect runs tasks in pool threads, and a run has one display. Of runs
side by side each has its own, by its context, which Prefect hands on to those threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

log = logging.getLogger("crafter_pipeline")


SHOWN_METRICS = {
    "train.loss": "loss",
    "validation.loss": "validation loss",
    "train.mean_token_accuracy": "token accuracy",
    "train.tokens_per_second": "tokens/s",
    "rl.reward": "reward",
    "rl.achievements": "achievements",
    "rl.rows": "rows",
    "rl.tokens_per_second": "tokens/s",
    "distillation.reverse_kl": "KL to the teacher",
    "distillation.reward": "reward",
    "distillation.achievements": "achievements",
    "distillation.tokens_per_second": "tokens/s",
    "dev.reward": "reward on dev seeds",
    "dev.achievements": "achievements on dev seeds",
}
"""Of a training step: metric -> what it is called for people."""
ETA = "eta_seconds"
"""What a listener is told beside a step's numbers, once it can be guessed: seconds until the job has all its steps."""


def in_words(values: Mapping[str, float]) -> str:
    """The few numbers of a training step that matter; empty when it has none of them."""
    told = [f"{word} {values[name]:.4g}" for name, word in SHOWN_METRICS.items() if name in values]
    if told and ETA in values:
        seconds = values[ETA]
        told.append(f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.0f} min left")
    return ", ".join(told)


class Progress(Protocol):
    """Hears what a run does. Called from any thread; must not raise."""

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None:
        """A stage started, or ended as completed, cached or failed after `seconds`."""

    def expect(self, total: int, unit: str) -> None:
        """The stage that runs now consists of `total` units, e.g. seeds."""

    def advance(self, count: int = 1) -> None:
        """So many more units are done; below zero: so many are tried again."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """A training job reported numbers of a step."""

    def note(self, text: str) -> None:
        """A line worth reading."""


class LogProgress:
    """Stages, notes and every tenth of the units (of training steps: with their numbers) as log lines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done = self._total = 0
        self._unit = self._numbers = ""

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None:
        log.info("%s: %s%s", name, state, f" after {seconds:.1f} s" if seconds else "")

    def expect(self, total: int, unit: str) -> None:
        with self._lock:
            self._done, self._total, self._unit, self._numbers = 0, total, unit, ""

    def advance(self, count: int = 1) -> None:
        with self._lock:
            before, self._done = self._done, self._done + count
            done, total, unit = self._done, self._total, self._unit
            numbers = f": {self._numbers}" if self._numbers else ""
        if total and done * 10 // total > before * 10 // total:
            log.info("%d of %d %s%s", done, total, unit, numbers)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        with self._lock:
            self._numbers = in_words(values) or self._numbers

    def note(self, text: str) -> None:
        log.info("%s", text)


class Both:
    """Two listeners as one."""

    def __init__(self, first: Progress, second: Progress) -> None:
        self._two = first, second

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None:
        for listener in self._two:
            listener.stage(name, state, seconds)

    def expect(self, total: int, unit: str) -> None:
        for listener in self._two:
            listener.expect(total, unit)

    def advance(self, count: int = 1) -> None:
        for listener in self._two:
            listener.advance(count)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for listener in self._two:
            listener.metrics(step, values)

    def note(self, text: str) -> None:
        for listener in self._two:
            listener.note(text)


_listener: Progress = LogProgress()
_own: ContextVar[Progress | None] = ContextVar("progress", default=None)


def progress() -> Progress:
    """The listener of this context, else of this process."""
    return _own.get() or _listener


@contextmanager
def apart(listener: Progress) -> Iterator[None]:
    """Let `listener` alone hear what is done in this context until the block ends."""
    token = _own.set(listener)
    try:
        yield
    finally:
        _own.reset(token)


@contextmanager
def report_to(listener: Progress) -> Iterator[None]:
    """Let `listener` hear everything too until the block ends."""
    global _listener
    before, _listener = _listener, Both(_listener, listener)
    try:
        yield
    finally:
        _listener = before
