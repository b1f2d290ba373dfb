"""The ledger: a finished `run_id` is looked up in every trace database of a folder, so that it is played once."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.connect import TraceConnection, open_read_only
from crafter_pipeline.traces.store import unpack_answer

log = logging.getLogger(__name__)

_LOOKUP = "SELECT request_digest, answer FROM rollout_answers WHERE session_id = ?"
_MAX_OPEN = 128

_lock = threading.Lock()
_open: dict[str, tuple[tuple[int, int, int], TraceConnection]] = {}
"""path -> ((pid, device, inode), connection)"""
_complained: set[str] = set()


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A finished rollout's answer and where it lies."""

    answer: bytes
    request_digest: str
    """As given to `TraceStore.add`; empty: not given."""
    path: Path


def find_answer(folder: Path, run_id: str) -> bytes | None:
    """The answer stored for a finished run_id in any `*.db` of `folder`, or None. Safe from any thread.

    Cheap enough to call per rollout: read-only connections stay open until `forget`. Files that are no trace
    databases of ours are skipped, damaged ones with a warning.
    """
    found = find_stored(folder, run_id)
    return None if found is None else found.answer


def find_stored(folder: Path, run_id: str) -> StoredAnswer | None:
    """Like `find_answer`, with the digest of the request that was answered. The newest file name wins."""
    try:
        with os.scandir(folder) as entries:
            names = sorted((e.path for e in entries if e.name.endswith(".db")), reverse=True)
    except FileNotFoundError:
        return None
    with _lock:
        for name in names:
            try:
                row = _connection(name).execute(_LOOKUP, (run_id,)).fetchone()
            except (DataError, sqlite3.Error, OSError) as e:
                if "no such table" not in str(e) and name not in _complained:
                    _complained.add(name)
                    log.warning("Ledger: %s is skipped: %s", name, e)
                continue
            if row is not None:
                return StoredAnswer(unpack_answer(row[1]), row[0], Path(name))
    return None


def forget(folder: Path | None = None) -> None:
    """Close the cached connections of a folder, or all of them: before DuckDB reads the files, and at shutdown."""
    inside = None if folder is None else os.path.realpath(folder)
    with _lock:
        for name in [n for n in _open if inside is None or os.path.dirname(os.path.realpath(n)) == inside]:
            _open.pop(name)[1].close()


def _connection(name: str) -> TraceConnection:
    """The cached connection of a file, reopened when the file was replaced or the process forked."""
    status = os.stat(name)
    key = (os.getpid(), status.st_dev, status.st_ino)
    cached = _open.get(name)
    if cached is not None and cached[0] == key:
        return cached[1]
    if cached is not None:
        del _open[name]
        if cached[0][0] == key[0]:
            cached[1].close()
    connection = open_read_only(Path(name))
    while len(_open) >= _MAX_OPEN:
        _open.pop(next(iter(_open)))[1].close()
    _open[name] = (key, connection)
    return connection
