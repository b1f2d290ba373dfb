"""DuckDB over SQLite trace databases: the one place that loads the extension and attaches files.

The guards, each for a failure that was seen: the extension comes from its wheel, by path, and DuckDB may not download
or write into the home folder; every value is read as text and cast in SQL (one fractional value in an INTEGER column
is otherwise an error); files are read-only, and never ones that this process holds open (`traces.connect`).
A server in another process may go on writing: inside one DuckDB transaction a file is read as of one moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import duckdb

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import ledger
from crafter_pipeline.traces.connect import check_database, held

TABLES: dict[str, tuple[str, ...]] = {
    "session_traces": ("session_id", "created_at", "metadata"),
    "session_timesteps": ("id", "session_id", "step_index", "turn_number"),
    "events": (
        "id",
        "session_id",
        "timestep_id",
        "event_type",
        "model_name",
        "provider",
        "call_records",
        "reward",
        "metadata",
    ),
    "outcome_rewards": ("id", "session_id", "total_reward", "reward_metadata"),
    "event_rewards": ("id", "session_id", "turn_number", "reward_value", "reward_type", "annotation"),
}
"""The v3 tables and columns that selections read."""


def attach(connection: duckdb.DuckDBPyConnection, dbs: Sequence[Path]) -> None:
    """Attach trace databases read-only, and make each table of `TABLES` a temporary view over all of them.

    A view's column `source` is the database's position in `dbs`; all other columns are VARCHAR. Call it on a fresh
    connection, and read inside one transaction. DataError, one line, for a file that is missing, is no v3 trace
    database, or is held open by this process.
    """
    for db in dbs:
        check_readable(db)
    connection.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
    connection.execute("SET enable_progress_bar = false")
    connection.execute(f"LOAD {_quoted(extension_file())}")
    connection.execute("SET GLOBAL sqlite_all_varchar = true")
    for source, db in enumerate(dbs):
        try:
            connection.execute(f"ATTACH {_quoted(db.absolute())} AS trace_{source} (TYPE sqlite, READ_ONLY)")
            _check_tables(connection, source, db)
        except duckdb.Error as e:
            raise DataError(f"{db}: cannot be read as a trace database ({_first_line(e)}).") from e
    for table, columns in TABLES.items():
        listed = ", ".join(columns)
        parts = [f"SELECT {i} AS source, {listed} FROM trace_{i}.main.{table}" for i in range(len(dbs))]
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {table} AS {' UNION ALL '.join(parts)}")


def check_readable(db: Path) -> None:
    """Raise DataError unless `db` is a SQLite file that DuckDB may open; the ledger's connections to it are closed."""
    ledger.forget(db.parent)
    if held(db):
        raise DataError(f"{db} is open in this process. Close its TraceStore first, or filter from another process.")
    check_database(db)


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


def _check_tables(connection: duckdb.DuckDBPyConnection, source: int, db: Path) -> None:
    rows = connection.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = ?", [f"trace_{source}"]
    ).fetchall()
    there = set(rows)
    missing = sorted({t for t, columns in TABLES.items() for c in columns if (t, c) not in there})
    if missing:
        raise DataError(f"{db} is not a v3 trace database: {', '.join(missing)} missing. Name a DB of the task app.")


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
