"""Which trace databases there are, and what is in each: discovery for every command that reads traces."""

from __future__ import annotations

import fnmatch
import glob
import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.connect import written_at
from crafter_pipeline.traces.location import local_file
from crafter_pipeline.traces.reader import has_table, open_traces, trace_databases
from crafter_pipeline.traces.records import WRITER

LATEST = "latest"
PATTERN = "task_app_traces*.db"
"""Names of the databases that a task app makes."""
_SKIPPED = frozenset({".git", ".venv", "node_modules", "__pycache__"})

_COUNTS = """
SELECT (SELECT count(*) FROM session_traces) AS rollouts,
       (SELECT coalesce(sum(num_timesteps), 0) FROM session_traces) AS turns
"""
_HEADS = "SELECT DISTINCT {} FROM session_traces WHERE json_valid(metadata) ORDER BY 1"
_MODELS = "SELECT DISTINCT model_name FROM events WHERE model_name IS NOT NULL ORDER BY 1"
_WRITERS = """
SELECT DISTINCT json_extract(metadata, '$.writer') FROM session_traces WHERE json_valid(metadata)
"""

Writer = Literal["ours", "original", "mixed", "unknown"]


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """One database file."""

    path: Path
    bytes: int
    modified: float
    """Unix seconds."""
    writer: Writer = "unknown"
    """Who wrote its rollouts; unknown: there are none, or nobody can tell."""
    schema_version: int | None = None
    """`PRAGMA user_version`: 0 is the original's; None: not readable."""
    rollouts: int = 0
    turns: int = 0
    failed_attempts: int = 0
    models: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    problem: str = ""
    """Why it cannot be read; empty: it can."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "modified": self.modified,
            "writer": self.writer,
            "schema_version": self.schema_version,
            "rollouts": self.rollouts,
            "turns": self.turns,
            "failed_attempts": self.failed_attempts,
            "models": list(self.models),
            "environments": list(self.environments),
            "problem": self.problem,
        }


def find_databases(folder: Path) -> list[Path]:
    """Every `task_app_traces*.db` below the folder, newest first; equally old ones by name."""
    found = []
    for inside, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        paths = (Path(inside, name) for name in fnmatch.filter(names, PATTERN))
        found += [(-written_at(path), path) for path in paths if path.is_file()]
    return [path for _, path in sorted(found)]


def databases_below(folder: Path) -> list[Path]:
    """`find_databases`; DataError where there is none."""
    if found := find_databases(folder):
        return found
    raise DataError(
        f"There is no {PATTERN} below {folder.absolute()}. Collect rollouts first (`crafter-pipeline serve` traces "
        "them), or name a database: --in PATH."
    )


def resolve(inputs: Sequence[str | Path], folder: Path = Path(".")) -> list[Path]:
    """The trace databases that inputs name, each once, in their order.

    An input is a file, a folder (every `*.db` in it, by name), a glob, the word `latest` (the newest of
    `find_databases(folder)`), or the URL `sqlite+aiosqlite:///<path>` of a file. DataError says which input gives
    nothing, and what to do; ConfigError names the address of a server. A file that is named is not looked into: it may
    be no trace database.
    """
    found: dict[Path, None] = {}
    for given in inputs:
        found.update(dict.fromkeys(_named_by(str(given), folder)))
    if not found:
        raise DataError("No trace database is named. Give --in FILE, a folder, a glob, or `latest`.")
    return list(found)


def describe(path: Path) -> DatabaseInfo:
    """What is in a database. Never raises for a file that cannot be read: `problem` says why."""
    try:
        stat = path.stat()
    except OSError as e:
        return DatabaseInfo(path, 0, 0.0, problem=f"{path}: {e.strerror}")
    info: dict[str, Any] = {"path": path, "bytes": stat.st_size, "modified": written_at(path)}
    try:
        with closing(open_traces(path)) as db:
            return DatabaseInfo(**info, **_contents(db))
    except DataError as e:
        return DatabaseInfo(**info, problem=str(e))
    except sqlite3.DatabaseError as e:
        return DatabaseInfo(
            **info, problem=f"{path}: cannot be read ({e}). `crafter-pipeline traces verify` says more."
        )


def _named_by(given: str, folder: Path) -> list[Path]:
    if given == LATEST:
        return databases_below(folder)[:1]
    path = local_file(given, "--in")
    if path.is_dir():
        inside = trace_databases(path)
        if not inside:
            below = find_databases(path)
            hint = f"Further below there are {len(below)}, as {below[0]}." if below else "Collect rollouts first."
            raise DataError(f"{path} holds no trace database (*.db). {hint}")
        return inside
    if path.exists():
        return [path]
    if glob.has_magic(str(path)):
        matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [match for match in matches if match.is_file()]
        if not files:
            raise DataError(f"{given}: no file matches. Collect rollouts first, or check the pattern.")
        return files
    raise DataError(f"{given}: no such trace database. Collect rollouts first, or check the path.")


def _contents(db: sqlite3.Connection) -> dict[str, Any]:
    counts = db.execute(_COUNTS).fetchone()
    models = _texts(db, _HEADS.format("json_extract(metadata, '$.model')"))
    if None in models:
        models = list(dict.fromkeys((*filter(None, models), *_texts(db, _MODELS))))
    writers = {"ours" if name == WRITER else "original" for name in _texts(db, _WRITERS)}
    writer = "mixed" if len(writers) > 1 else next(iter(writers), "unknown")
    own = has_table(db, "rollout_attempts")
    return {
        "writer": writer,
        "schema_version": int(db.execute("PRAGMA user_version").fetchone()[0]),
        "rollouts": int(counts["rollouts"]),
        "turns": int(counts["turns"]),
        "failed_attempts": int(db.execute("SELECT count(*) FROM rollout_attempts").fetchone()[0]) if own else 0,
        "models": tuple(sorted({str(name) for name in models if name})),
        "environments": tuple(
            str(name) for name in _texts(db, _HEADS.format("json_extract(metadata, '$.env_name')")) if name
        ),
    }


def _texts(db: sqlite3.Connection, sql: str) -> list[Any]:
    return [row[0] for row in db.execute(sql)]
