"""Tracing schema v3 as a list of migrations that we append to (`PRAGMA user_version` counts them).

Migration 1 is v3 itself, names and types as other tools know them. Every statement says `IF NOT EXISTS`, so that a
database written by another v3 tool (user_version 0) is brought up to date instead of refused.
Later migrations add tables of our own; rows in v3 tables always describe a finished rollout.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.connect import remedy

V3_TABLES = (
    "experiments",
    "systems",
    "system_versions",
    "experimental_systems",
    "session_traces",
    "session_timesteps",
    "events",
    "messages",
    "outcome_rewards",
    "event_rewards",
)
OWN_TABLES = ("rollout_answers", "rollout_attempts")

_V3 = """
CREATE TABLE IF NOT EXISTS experiments (
    experiment_id VARCHAR PRIMARY KEY,
    name VARCHAR NOT NULL,
    description TEXT,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    updated_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    configuration TEXT,
    metadata TEXT
);
CREATE TABLE IF NOT EXISTS systems (
    system_id VARCHAR PRIMARY KEY,
    name VARCHAR NOT NULL,
    system_type VARCHAR,
    description TEXT,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    metadata TEXT
);
CREATE TABLE IF NOT EXISTS system_versions (
    version_id VARCHAR PRIMARY KEY,
    system_id VARCHAR NOT NULL,
    version_number VARCHAR NOT NULL,
    commit_hash VARCHAR,
    created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
    configuration TEXT,
    metadata TEXT,
    FOREIGN KEY(system_id) REFERENCES systems(system_id),
    UNIQUE(system_id, version_number)
);
CREATE TABLE IF NOT EXISTS experimental_systems (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    experiment_id VARCHAR NOT NULL,
    system_id VARCHAR NOT NULL,
    version_id VARCHAR NOT NULL,
    FOREIGN KEY(experiment_id) REFERENCES experiments(experiment_id),
    FOREIGN KEY(system_id) REFERENCES systems(system_id),
    FOREIGN KEY(version_id) REFERENCES system_versions(version_id)
);
CREATE TABLE IF NOT EXISTS session_traces (
    session_id VARCHAR PRIMARY KEY,
    created_at DATETIME NOT NULL,
    num_timesteps INTEGER NOT NULL,
    num_events INTEGER NOT NULL,
    num_messages INTEGER NOT NULL,
    metadata TEXT,
    experiment_id VARCHAR,
    embedding VECTOR,
    FOREIGN KEY(experiment_id) REFERENCES experiments(experiment_id)
);
CREATE TABLE IF NOT EXISTS session_timesteps (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session_id VARCHAR NOT NULL,
    step_id VARCHAR NOT NULL,
    step_index INTEGER NOT NULL,
    turn_number INTEGER,
    started_at DATETIME,
    completed_at DATETIME,
    num_events INTEGER,
    num_messages INTEGER,
    step_metadata TEXT,
    UNIQUE(session_id, step_id),
    FOREIGN KEY(session_id) REFERENCES session_traces(session_id)
);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session_id VARCHAR NOT NULL,
    timestep_id INTEGER,
    event_type VARCHAR NOT NULL,
    system_instance_id VARCHAR,
    event_time FLOAT,
    message_time INTEGER,
    created_at DATETIME,
    model_name VARCHAR,
    provider VARCHAR,
    input_tokens INTEGER,
    output_tokens INTEGER,
    total_tokens INTEGER,
    cost_usd INTEGER,
    latency_ms INTEGER,
    span_id VARCHAR,
    trace_id VARCHAR,
    call_records TEXT,
    reward FLOAT,
    terminated BOOLEAN,
    truncated BOOLEAN,
    system_state_before TEXT,
    system_state_after TEXT,
    metadata TEXT,
    event_metadata TEXT,
    embedding VECTOR,
    CHECK (event_type IN ('cais', 'environment', 'runtime')),
    FOREIGN KEY(session_id) REFERENCES session_traces(session_id),
    FOREIGN KEY(timestep_id) REFERENCES session_timesteps(id)
);
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session_id VARCHAR NOT NULL,
    timestep_id INTEGER,
    message_type VARCHAR NOT NULL,
    content TEXT NOT NULL,
    timestamp DATETIME,
    event_time FLOAT,
    message_time INTEGER,
    metadata TEXT,
    embedding VECTOR,
    CHECK (message_type IN ('user', 'assistant', 'system', 'tool_use', 'tool_result')),
    FOREIGN KEY(session_id) REFERENCES session_traces(session_id),
    FOREIGN KEY(timestep_id) REFERENCES session_timesteps(id)
);
CREATE TABLE IF NOT EXISTS outcome_rewards (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    session_id VARCHAR NOT NULL,
    total_reward INTEGER NOT NULL,
    achievements_count INTEGER NOT NULL,
    total_steps INTEGER NOT NULL,
    created_at DATETIME NOT NULL,
    reward_metadata TEXT,
    FOREIGN KEY(session_id) REFERENCES session_traces(session_id)
);
CREATE TABLE IF NOT EXISTS event_rewards (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id INTEGER NOT NULL,
    session_id VARCHAR NOT NULL,
    message_id INTEGER,
    turn_number INTEGER,
    reward_value FLOAT NOT NULL,
    reward_type VARCHAR,
    "key" VARCHAR,
    annotation TEXT,
    source VARCHAR,
    created_at DATETIME NOT NULL,
    FOREIGN KEY(event_id) REFERENCES events(id),
    FOREIGN KEY(session_id) REFERENCES session_traces(session_id),
    FOREIGN KEY(message_id) REFERENCES messages(id)
);
CREATE INDEX IF NOT EXISTS idx_session_created ON session_traces (created_at);
CREATE INDEX IF NOT EXISTS idx_session_experiment ON session_traces (experiment_id);
CREATE INDEX IF NOT EXISTS idx_timestep_session_step ON session_timesteps (session_id, step_id);
CREATE INDEX IF NOT EXISTS idx_timestep_turn ON session_timesteps (turn_number);
CREATE INDEX IF NOT EXISTS idx_event_session_step ON events (session_id, timestep_id);
CREATE INDEX IF NOT EXISTS idx_event_type ON events (event_type);
CREATE INDEX IF NOT EXISTS idx_event_created ON events (created_at);
CREATE INDEX IF NOT EXISTS idx_event_model ON events (model_name);
CREATE INDEX IF NOT EXISTS idx_event_trace ON events (trace_id);
CREATE INDEX IF NOT EXISTS idx_message_session_step ON messages (session_id, timestep_id);
CREATE INDEX IF NOT EXISTS idx_message_type ON messages (message_type);
CREATE INDEX IF NOT EXISTS idx_message_timestamp ON messages (timestamp);
CREATE INDEX IF NOT EXISTS idx_experiment_created ON experiments (created_at);
CREATE INDEX IF NOT EXISTS idx_experiment_name ON experiments (name);
CREATE INDEX IF NOT EXISTS idx_system_name ON systems (name);
CREATE INDEX IF NOT EXISTS idx_system_type ON systems (system_type);
CREATE UNIQUE INDEX IF NOT EXISTS uq_system_version ON system_versions (system_id, version_number);
CREATE INDEX IF NOT EXISTS idx_version_system ON system_versions (system_id);
CREATE INDEX IF NOT EXISTS idx_version_created ON system_versions (created_at);
CREATE UNIQUE INDEX IF NOT EXISTS uq_experiment_system ON experimental_systems (experiment_id, system_id);
CREATE INDEX IF NOT EXISTS idx_experimental_system ON experimental_systems (experiment_id, system_id);
CREATE INDEX IF NOT EXISTS idx_outcome_rewards_session ON outcome_rewards (session_id);
CREATE INDEX IF NOT EXISTS idx_outcome_rewards_total ON outcome_rewards (total_reward);
CREATE INDEX IF NOT EXISTS idx_event_rewards_session ON event_rewards (session_id);
CREATE INDEX IF NOT EXISTS idx_event_rewards_event ON event_rewards (event_id);
CREATE INDEX IF NOT EXISTS idx_event_rewards_type ON event_rewards (reward_type);
CREATE INDEX IF NOT EXISTS idx_event_rewards_key ON event_rewards ("key");
CREATE VIEW IF NOT EXISTS model_usage_stats AS
    SELECT model_name, provider, COUNT(*) AS usage_count,
           SUM(input_tokens) AS total_input_tokens, SUM(output_tokens) AS total_output_tokens,
           SUM(total_tokens) AS total_tokens, SUM(cost_usd) / 100.0 AS total_cost_usd,
           AVG(latency_ms) AS avg_latency_ms, MIN(created_at) AS first_used, MAX(created_at) AS last_used
    FROM events
    WHERE event_type = 'cais' AND model_name IS NOT NULL
    GROUP BY model_name, provider;
CREATE VIEW IF NOT EXISTS session_summary AS
    SELECT s.session_id, s.created_at, s.num_timesteps, s.num_events, s.num_messages, e.experiment_id,
           e.name AS experiment_name, COUNT(DISTINCT ev.model_name) AS unique_models_used,
           SUM(CASE WHEN ev.event_type = 'cais' THEN ev.cost_usd ELSE 0 END) / 100.0 AS total_cost_usd
    FROM session_traces s
    LEFT JOIN experiments e ON s.experiment_id = e.experiment_id
    LEFT JOIN events ev ON s.session_id = ev.session_id
    GROUP BY s.session_id;
CREATE VIEW IF NOT EXISTS experiment_overview AS
    SELECT e.experiment_id, e.name, e.description, e.created_at, COUNT(DISTINCT s.session_id) AS session_count,
           SUM(s.num_events) AS total_events, SUM(s.num_messages) AS total_messages,
           AVG(s.num_timesteps) AS avg_timesteps_per_session
    FROM experiments e
    LEFT JOIN session_traces s ON e.experiment_id = s.experiment_id
    GROUP BY e.experiment_id;
"""

_LEDGER = """
CREATE TABLE IF NOT EXISTS rollout_answers (
    session_id TEXT PRIMARY KEY,
    request_digest TEXT NOT NULL,
    answer BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS rollout_attempts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    started_at TEXT NOT NULL,
    error TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_attempt_run ON rollout_attempts (run_id);
"""

MIGRATIONS: tuple[str, ...] = (_V3, _LEDGER)
"""Append only: a migration that has run somewhere is never edited."""


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the database at `path` up to date for writing. Databases that are no trace databases, newer than this
    code or damaged are left as they are: one clear DataError."""
    try:
        tables = _tables(connection)
        if tables and not tables & set(V3_TABLES):
            shown = ", ".join(sorted(tables)[:5])
            raise DataError(f"{path} is a SQLite database, but no trace database (its tables: {shown}). Name another.")
        refuse_newer(connection, path)
        if (version := _version(connection)) > 0:
            _check_columns(connection, path, version)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # WAL: safe against a killed process, one fsync a checkpoint
        migrate(connection)
        _check_columns(connection, path, len(MIGRATIONS))
    except sqlite3.DatabaseError as e:
        raise DataError(f"{path}: not a usable trace database ({e}). {remedy(e)}") from e


def refuse_newer(connection: sqlite3.Connection, path: Path) -> None:
    """DataError for a database with a later schema: what its rows mean is not known here."""
    if (version := _version(connection)) > len(MIGRATIONS):
        raise DataError(
            f"{path} was written by a newer crafter-pipeline (schema {version}, this one knows {len(MIGRATIONS)}). "
            "Update this one, or name another file."
        )


@contextmanager
def fresh(version: int) -> Iterator[sqlite3.Connection]:
    """An empty database of a schema version, in memory."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for script in MIGRATIONS[:version]:
            db.executescript(script)
        yield db


def _check_columns(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """DataError if tables or columns that this schema version has are missing."""
    missing = []
    for table, columns in _columns_of(version).items():
        there = _columns(connection, table)
        if not there:
            missing.append(f"table {table}")
        missing += [f"column {table}.{name}" for name in columns if there and name not in there]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{path} says that it has schema version {version}, but lacks {', '.join(missing[:5])}{more}: it is "
            "damaged or half-migrated. Restore a copy, or name another file."
        )


@cache
def _columns_of(version: int) -> dict[str, tuple[str, ...]]:
    with fresh(version) as db:
        return {table: _columns(db, table) for table in sorted(_tables(db))}


def _columns(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
    return tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))


def _tables(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return {name for (name,) in rows}


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database up to date, in one transaction per migration. `connection` is in autocommit mode."""
    for number, script in enumerate(MIGRATIONS, start=1):
        if _version(connection) >= number:
            continue
        connection.execute("BEGIN IMMEDIATE")
        try:
            if _version(connection) < number:  # another process may have been faster
                for statement in script.split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk has ended it
                connection.execute("ROLLBACK")
            raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
