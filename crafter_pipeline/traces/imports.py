"""Traces of a task app that does not write here: each answer brings its own, and it is stored in a database of ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crafter_pipeline.contracts import RolloutResponse
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.store import TraceStore
from crafter_pipeline.traces.wire import import_trace

FILE = "imported.db"

_lock = threading.Lock()
_open: dict[Path, tuple[TraceStore, int]] = {}
"""File -> store and how many use it."""


@contextmanager
def importing(folder: Path) -> Iterator[TraceStore]:
    """The store of imported traces in `folder`, `imported.db`; shared by everyone in this process who uses it now."""
    path = (folder / FILE).absolute()
    with _lock:
        store, users = _open.get(path) or (TraceStore(path), 0)
        _open[path] = (store, users + 1)
    try:
        yield store
    finally:
        with _lock:
            store, users = _open[path]
            if users > 1:
                _open[path] = (store, users - 1)
            else:
                del _open[path]
                store.close()


def import_answer(store: TraceStore, answer: RolloutResponse) -> bool:
    """Store the trace of an answer. False if its run_id is stored already; DataError if the answer has no trace."""
    if answer.trace is None:
        raise DataError(
            f"The task app answered rollout {answer.run_id} without a trace, so there is nothing to learn from. "
            "Switch its tracing on."
        )
    try:
        return import_trace(store, answer.trace)
    except DataError as e:
        raise DataError(f"The trace of rollout {answer.run_id} cannot be stored: {e}") from e
