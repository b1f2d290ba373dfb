"""How trace databases are opened, and which ones this process holds open.

DuckDB carries a second SQLite library. Two libraries in one process on one file are a way to damage it: POSIX locks
belong to the process, and whoever closes the file first drops the other's. `held` lets `traces.duck` refuse that.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from crafter_pipeline.errors import DataError

SQLITE_MAGIC = b"SQLite format 3\x00"
BUSY_SECONDS = 30.0
PAGE_BYTES = 16384
"""A model call takes 3 to 5 KB: pages of 4 KB, SQLite's default, and of 8 KB would stay half empty."""

_held: Counter[str] = Counter()
_held_lock = threading.Lock()


class TraceConnection(sqlite3.Connection):
    """A connection that is counted in `held` until it is closed."""

    _key: str | None = None

    def hold(self, path: Path) -> None:
        """Count `path` as open in this process."""
        self._key = os.path.realpath(path)
        with _held_lock:
            _held[self._key] += 1

    def close(self) -> None:
        """Close, and give the file free. Closing twice is closing once."""
        super().close()
        with _held_lock:
            if self._key is not None:
                _held[self._key] -= 1
                self._key = None


def held(path: Path) -> bool:
    """Whether this process has the trace database open."""
    with _held_lock:
        return _held[os.path.realpath(path)] > 0


def wal_of(path: Path) -> Path:
    """The write-ahead log of a database, where one is: its newest rows may be there alone."""
    return path.with_name(path.name + "-wal")


def written_at(path: Path) -> float:
    """When a database or its write-ahead log was last written, Unix seconds; 0: there is none."""
    times = []
    for file in (path, wal_of(path)):
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            pass
    return max(times, default=0.0)


def check_database(path: Path) -> None:
    """Raise one clear DataError unless `path` is a readable SQLite file (an empty file counts as one).

    Must not be called on a file that this process holds open: it opens and closes it.
    """
    try:
        with path.open("rb") as f:
            head = f.read(len(SQLITE_MAGIC))
    except FileNotFoundError:
        raise DataError(f"{path}: no such trace database. Collect rollouts first, or check the path.") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder. Name a trace database in it, a file like task_app_traces_*.db.") from None
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}). Check its permissions.") from e
    if head and head != SQLITE_MAGIC:
        raise DataError(f"{path} is not a SQLite database. Name a trace database, a file like task_app_traces_*.db.")


def open_read_only(path: Path) -> TraceConnection:
    """A read-only connection (usable from any thread, one at a time). DataError says what is wrong with the path."""
    if not held(path):
        check_database(path)
    try:
        return _connect(path, "mode=ro")
    except sqlite3.DatabaseError as e:
        if not isinstance(e, sqlite3.OperationalError) or is_busy(e):
            raise DataError(f"{path}: cannot be read ({e}). {remedy(e)}") from e
        if path.with_name(path.name + "-journal").exists():  # of a write that broke off: whoever opens it undoes that
            return _undone(path)
        # A WAL database in a folder that we may not write cannot get its -shm file; without a -wal it is complete.
        wal = wal_of(path)
        if not wal.exists() or wal.stat().st_size == 0:
            return _connect(path, "mode=ro&immutable=1")
        raise DataError(f"{path}: cannot be opened ({e}). Copy it, with its -wal file, to a writable folder.") from e


def _undone(path: Path) -> TraceConnection:
    try:
        connection = _connect(path, "mode=rw")
    except sqlite3.DatabaseError as e:
        raise DataError(f"{path}: a write that broke off cannot be undone ({e}). {remedy(e)}") from e
    connection.execute("PRAGMA query_only = 1")
    return connection


def open_for_writing(path: Path) -> TraceConnection:
    """A connection in autocommit mode that may write (usable from any thread, one at a time); makes the folder.

    The file is left as it is: `schema.prepare` makes it a trace database.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder. Name a file in it, for example {path / 'traces.db'}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DataError(f"{path}: its folder cannot be made ({e.strerror}). Choose another path for traces.") from e
    if path.exists() and not held(path):
        check_database(path)
    connection: TraceConnection | None = None
    try:
        connection = _connect(path, "mode=rwc")
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a new file; another keeps what it has
        connection.execute("BEGIN IMMEDIATE")  # a file that is not ours to write fails here, not at the first rollout
        connection.execute("ROLLBACK")
    except sqlite3.DatabaseError as e:
        if connection is not None:
            connection.close()
        raise DataError(f"{path}: cannot be written ({e}). {remedy(e)}") from e
    return connection


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else held the database locked for as long as we wait."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def remedy(error: sqlite3.Error) -> str:
    """What an operator can do about a database that cannot be used."""
    if is_busy(error):
        return "Another process holds it locked: wait for it or end it, or choose another path."
    match _code(error):
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return "The disk is full or failing: free space, or choose another path."
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return "It is damaged or cut short: restore a copy, or choose another path."
        case _:
            return "Check its permissions, or choose another path."


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _connect(path: Path, mode: str) -> TraceConnection:
    connection: Any = sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        factory=TraceConnection,
    )
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    connection.hold(path)
    assert isinstance(connection, TraceConnection)
    return connection
