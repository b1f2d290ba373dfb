"""Where traces lie: which file a task app writes, and which file an address means."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from crafter_pipeline.errors import ConfigError
from crafter_pipeline.settings import Settings
from crafter_pipeline.traces.store import default_trace_path

_LOCAL = re.compile(r"sqlite(\+\w+)?:///")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a single slash is what a Path leaves of two
_SQLD_FILE = Path("dbs/default/data")
"""Where a sqld server keeps its default database."""


def written_database(trace_db: str | None, trace_dir: Path | None, settings: Settings, default_dir: Path) -> Path:
    """The trace database to write. The first that is given counts: `--trace-db`, `--trace` (a new file in it),
    TURSO_LOCAL_DB_URL, SQLD_DB_PATH (a folder: its dbs/default/data), TASKAPP_TRACE_DB_PATH; else a new file in
    `default_dir`.

    ConfigError for an address that is no file.
    """
    if trace_db is not None:
        return local_file(trace_db, "--trace-db")
    if trace_dir is not None:
        return default_trace_path(trace_dir)
    if settings.turso_local_db_url is not None:
        return local_file(settings.turso_local_db_url, "TURSO_LOCAL_DB_URL")
    if settings.sqld_db_path is not None:
        path = settings.sqld_db_path.expanduser()
        return path / _SQLD_FILE if path.is_dir() else path
    if settings.taskapp_trace_db_path is not None:
        return local_file(settings.taskapp_trace_db_path, "TASKAPP_TRACE_DB_PATH")
    return default_trace_path(default_dir)


def local_file(given: str, name: str) -> Path:
    """A path, or the path of a URL `sqlite+aiosqlite:///path`. ConfigError for the address of a server.

    Args:
        name: Of the flag or variable, for messages.
    """
    if found := _LOCAL.match(given):
        path = unquote(given[found.end() :].partition("?")[0])
        if not path or path == ":memory:":
            raise ConfigError(f"{name}: {given!r} names no file. Write sqlite+aiosqlite:///traces/v3/traces.db.")
        return Path(path).expanduser()
    if _SCHEME.match(given):
        raise ConfigError(
            f"{name}: {_shown(given)} is no local file; Turso, libsql and other servers are neither read nor written. "
            "Name a file, for example traces/v3/traces.db; the traces of a server can be copied into one."
        )
    return Path(given).expanduser()


def _shown(url: str) -> str:
    """Without what may be a token."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])
