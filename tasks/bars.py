"""A bar in Prefect's page that moves while something long is under way."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext, TaskRunContext

from crafter_pipeline.progress import in_words, report_to

log = logging.getLogger("crafter_pipeline")

BAR_SECONDS = 1.0
"""Between two updates of a bar: each is a call to the server."""

LAST_SECONDS = 5.0
"""That a block's end waits for the last update, should the server be slow."""


@contextmanager
def bar(key: str, unit: str) -> Iterator[None]:
    """Show how far the block is as the progress artifact `key`, from what it tells the `progress()`.

    A thread of its own tells the server, at most once in BAR_SECONDS and what is new at the end: who plays or trains
    never waits for the page. Outside of a run there is no bar.

    Args:
        unit: What is counted, as in `progress().expect(100, "seeds")`; what counts other units is not this bar's.
    """
    if FlowRunContext.get() is None and TaskRunContext.get() is None:
        yield
        return
    shown = _Bar(key, unit)
    ended = threading.Event()
    teller = threading.Thread(
        target=contextvars.copy_context().run, args=(shown.tell_until, ended), name=f"bar {key}", daemon=True
    )
    teller.start()
    try:
        with report_to(shown):
            yield
    finally:
        ended.set()
        teller.join(LAST_SECONDS)


class _Bar:
    """What a bar says, heard from any thread; told to the server by one."""

    def __init__(self, key: str, unit: str) -> None:
        self._key, self._unit = key, unit
        self._lock = threading.Lock()
        self._total = self._done = 0
        self._numbers = ""
        self._ours = True
        self._changed = False
        self._id: Any = None

    def tell_until(self, ended: threading.Event) -> None:
        """Until `ended`, tell what is new once in BAR_SECONDS; then, what is new since."""
        while not ended.wait(BAR_SECONDS):
            self._tell()
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            changed, self._changed = self._changed, False
            percent = min(100.0, 100.0 * self._done / self._total) if self._total else 0.0
            says = f"{self._done:,}{f' of {self._total:,}' if self._total else ''} {self._unit}"
            says += f": {self._numbers}" if self._numbers else ""
        if not changed:
            return
        try:
            if self._id is None:
                self._id = create_progress_artifact(percent, key=self._key, description=says)
            else:
                update_progress_artifact(self._id, percent, description=says)
        except Exception as e:  # a page that is not drawn must not cost the work
            log.info("The artifact %s was not updated: %s", self._key, e)

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None:
        """Not of a bar."""

    def expect(self, total: int, unit: str) -> None:
        with self._lock:
            self._ours = unit == self._unit
            if self._ours:
                self._total, self._done, self._numbers, self._changed = total, 0, "", True

    def advance(self, count: int = 1) -> None:
        with self._lock:
            if self._ours:
                self._done, self._changed = self._done + count, True

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        with self._lock:
            if self._ours and (told := in_words(values)):
                self._numbers, self._changed = told, True

    def note(self, text: str) -> None:
        """The log has it."""
