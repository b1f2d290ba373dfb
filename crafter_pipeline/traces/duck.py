"""DuckDB over SQLite trace databases: the one place that loads the extension and attaches files.

The guards, each for a failure that was seen: the extension comes from its wheel, by path, and DuckDB may not download
or write into the home folder; every value is read as text and cast in SQL (one fractional value in an INTEGER column
is otherwise an error); files are read-only, never ones that this process holds open (`traces.connect`), and SQLite has
looked at each before, because it says what is wrong with a file, and DuckDB does not.

A server in another process may go on writing. Scans of a big file use several connections, so that two statements may
see it at two moments: read the rollouts' ids first. A rollout is stored whole, so the rest of each is there.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import duckdb

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import ledger
from crafter_pipeline.traces.connect import check_database, held, wal_of
from crafter_pipeline.traces.schema import refuse_newer

TABLES: dict[str, tuple[str, ...]] = {
    "session_traces": ("session_id", "created_at", "metadata"),
    "session_timesteps": ("id", "session_id", "step_index", "turn_number"),
    "events": (
        "id",
        "session_id",
        "timestep_id",
        "event_type",
        "system_instance_id",
        "model_name",
        "provider",
        "input_tokens",
        "output_tokens",
        "latency_ms",
        "call_records",
        "reward",
        "system_state_before",
        "metadata",
    ),
    "messages": ("id", "session_id", "timestep_id", "message_type", "content"),
    "outcome_rewards": ("id", "session_id", "total_reward", "reward_metadata"),
    "event_rewards": ("id", "session_id", "turn_number", "reward_value", "reward_type", "annotation"),
}
"""The v3 tables and columns that selections and statistics read."""

LOCK_SECONDS = 5.0
"""How long a database that another process has locked is waited for. DuckDB's own wait is as long."""

_REMEDY = "Copy it again; `crafter-pipeline traces verify` says what is left of it."
_COLUMNS = """
SELECT t.name, c.name FROM sqlite_master AS t CROSS JOIN pragma_table_info(t.name) AS c WHERE t.type = 'table'
"""


def attach(connection: duckdb.DuckDBPyConnection, dbs: Sequence[Path]) -> None:
    """Attach trace databases read-only, and make each table of `TABLES` a temporary view over all of them.

    A view's column `source` is the database's position in `dbs`; all other columns are VARCHAR. Call it on a fresh
    connection. DataError as `check_readable`.
    """
    if not dbs:
        raise DataError("No trace database is named. Collect rollouts first, or name one.")
    for db in dbs:
        check_readable(db)
    connection.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
    connection.execute("SET enable_progress_bar = false")
    connection.execute(f"LOAD {_quoted(extension_file())}")
    connection.execute("SET GLOBAL sqlite_all_varchar = true")
    for source, db in enumerate(dbs):
        try:
            name = database_name(source)
            connection.execute(f"ATTACH {_quoted(db.absolute())} AS {name} (TYPE sqlite, READ_ONLY)")
            connection.execute(f"SELECT count(*) FROM {name}.main.session_traces")
        except duckdb.Error as e:
            raise DataError(f"{db} is damaged or locked ({_first_line(e)}). {_REMEDY}") from e
    for table, columns in TABLES.items():
        listed = ", ".join(columns)
        parts = [f"SELECT {i} AS source, {listed} FROM {database_name(i)}.main.{table}" for i in range(len(dbs))]
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {table} AS {' UNION ALL '.join(parts)}")


def database_name(source: int) -> str:
    """What an attached database is called in SQL; `source` is its position."""
    return f"trace_{source}"


def check_readable(db: Path) -> None:
    """Raise DataError, one line with the remedy, unless `db` is a v3 trace database that DuckDB may open now.

    It may not: it is missing, empty, no SQLite file, truncated or damaged, locked, half-migrated, of a newer schema
    (what its rows mean is not known here), or open in this process. The ledger's connections to it are closed.
    """
    ledger.forget(db.parent)
    if held(db):
        raise DataError(f"{db} is open in this process. Close its TraceStore first, or filter from another process.")
    check_database(db)
    if db.stat().st_size == 0 and not wal_of(db).exists():
        raise DataError(f"{db} is empty, nothing was ever stored in it. Name another trace database.")
    started = time.monotonic()
    try:
        with closing(_open(db)) as sqlite:
            refuse_newer(sqlite, db)
            there = set(sqlite.execute(_COLUMNS))
    except sqlite3.DatabaseError as e:
        raise DataError(_problem(db, e, time.monotonic() - started)) from e
    if missing := _missing(there):
        raise DataError(f"{db} {missing}")


def damage(dbs: Sequence[Path], error: duckdb.Error) -> DataError:
    """What to tell when a statement over attached databases failed: which of them is damaged, in one line.

    Reads the files from beginning to end. The connection that they were attached to must be closed.
    """
    for db in dbs:
        try:
            check_readable(db)
            with closing(_open(db)) as sqlite:
                (found,) = sqlite.execute("PRAGMA quick_check(1)").fetchone()
                strange = _not_utf8(sqlite) if isinstance(error, duckdb.InvalidInputException) else None
            if found != "ok":
                raise sqlite3.DatabaseError(" ".join(str(found).split()))
            if strange is not None:
                return DataError(f"{db}: {strange} holds text that is not UTF-8. Correct or delete that row.")
        except DataError as e:
            return e
        except sqlite3.DatabaseError as e:
            return DataError(_problem(db, e, LOCK_SECONDS))
    return DataError(f"The trace databases cannot be read ({_first_line(error)}). Is there space on the disk?")


def extension_file() -> Path:
    """The SQLite extension in its installed wheel, for exactly this DuckDB."""
    version = f"v{duckdb.__version__}"
    hint = f"Run `pip install duckdb-extension-sqlite-scanner=={duckdb.__version__}`."
    try:
        folder = files("duckdb_extension_sqlite_scanner")
    except ModuleNotFoundError:
        raise DataError(f"DuckDB's SQLite extension is not installed. {hint}") from None
    path = Path(str(folder / "extensions" / version / "sqlite_scanner.duckdb_extension"))
    if not path.is_file():
        raise DataError(f"DuckDB's SQLite extension is not there for DuckDB {version}. {hint}")
    return path


def _open(db: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{db.absolute().as_uri()}?mode=ro", uri=True, timeout=LOCK_SECONDS)


def _not_utf8(sqlite: sqlite3.Connection) -> str | None:
    """The first row whose text DuckDB does not take, as `table.column of rowid n`. The calls' text does not count."""
    sqlite.text_factory = bytes
    for table, columns in TABLES.items():
        names = [name for name in columns if name != "call_records"]
        for row in sqlite.execute(f"SELECT rowid, {', '.join(names)} FROM {table} ORDER BY rowid"):
            for name, value in zip(names, row[1:], strict=True):
                try:
                    if isinstance(value, bytes):
                        value.decode()
                except UnicodeDecodeError:
                    return f"{table}.{name} of rowid {row[0]}"
    return None


def _problem(db: Path, error: sqlite3.DatabaseError, waited: float) -> str:
    """One line about a file that SQLite does not read."""
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return (
                f"{db} is locked by another process; we waited {waited:.0f} s for it. Try again, or end the process "
                "that writes to it."
            )
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_IOERR:
            return f"{db}: cannot be opened ({error}). Copy it, with its -wal file, to a folder that you may write."
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            there, meant = db.stat().st_size, _size_in_header(db)
            if there < meant and not wal_of(db).exists():
                return f"{db} is truncated: {there:,} bytes of {meant:,} are there. {_REMEDY}"
            return f"{db} is damaged ({error}). {_REMEDY}"
        case _:
            return f"{db}: cannot be read as a trace database ({error})."


def _size_in_header(db: Path) -> int:
    """Bytes that the file should have, by the first hundred of them; 0: not even those are there."""
    with db.open("rb") as f:
        head = f.read(100)
    if len(head) < 100:
        return 100
    page = int.from_bytes(head[16:18], "big")
    return (65536 if page == 1 else page) * int.from_bytes(head[28:32], "big")


def _missing(there: set[tuple[str, str]]) -> str:
    """What a database lacks of `TABLES`, as the end of a sentence; empty: nothing."""
    tables = [table for table in TABLES if not any(table == name for name, _ in there)]
    if len(tables) == len(TABLES):
        return "is not a v3 trace database: it has none of its tables. Name a DB of the task app."
    columns = [f"{t}.{c}" for t, listed in TABLES.items() if t not in tables for c in listed if (t, c) not in there]
    if not tables and not columns:
        return ""
    lacks = [f"{what} {', '.join(names)}" for what, names in (("table", tables), ("column", columns)) if names]
    return (
        f"is not a whole v3 trace database, it lacks {' and '.join(lacks)}: it is damaged or half-migrated. "
        "Restore a copy, or name another file."
    )


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
