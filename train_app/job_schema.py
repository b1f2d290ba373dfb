"""The job table's schema as a list of migrations that we append to (`PRAGMA user_version` counts them).

Every statement of the first says `IF NOT EXISTS`: tables that were made before versions were counted stand at 0.
"""

from __future__ import annotations

import sqlite3

from crafter_pipeline.errors import DataError

_FIRST = """
CREATE TABLE IF NOT EXISTS files (
  id TEXT PRIMARY KEY, purpose TEXT NOT NULL, filename TEXT NOT NULL, path TEXT NOT NULL,
  bytes INTEGER NOT NULL, rows INTEGER NOT NULL, sha256 TEXT NOT NULL, created_at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS jobs (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, base_model TEXT NOT NULL, spec TEXT NOT NULL,
  request TEXT NOT NULL, status TEXT NOT NULL, ready INTEGER NOT NULL, error TEXT, model_id TEXT,
  idempotency_key TEXT, cancel_requested INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, pid INTEGER,
  created_at REAL NOT NULL, updated_at REAL NOT NULL, started_at REAL, finished_at REAL, heartbeat_at REAL
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_key ON jobs (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE TABLE IF NOT EXISTS events (
  job_id TEXT NOT NULL REFERENCES jobs (id), seq INTEGER NOT NULL, type TEXT NOT NULL, level TEXT NOT NULL,
  message TEXT NOT NULL, data TEXT NOT NULL, created_at REAL NOT NULL, PRIMARY KEY (job_id, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS metrics (
  job_id TEXT NOT NULL REFERENCES jobs (id), step INTEGER NOT NULL CHECK (step >= 1), name TEXT NOT NULL,
  phase TEXT NOT NULL, value REAL NOT NULL, created_at REAL NOT NULL, PRIMARY KEY (job_id, step, name, phase)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS models (
  id TEXT PRIMARY KEY, base_model TEXT NOT NULL, job_id TEXT NOT NULL REFERENCES jobs (id), kind TEXT NOT NULL,
  path TEXT NOT NULL, parent TEXT, dataset_sha256 TEXT, created_at REAL NOT NULL, metrics TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS models_by_job ON models (job_id);
"""

_RECORDS = """
ALTER TABLE models ADD COLUMN config TEXT NOT NULL DEFAULT '{}';
ALTER TABLE models ADD COLUMN tokenizer_sha256 TEXT;
ALTER TABLE models ADD COLUMN form TEXT NOT NULL DEFAULT 'full';
ALTER TABLE models ADD COLUMN facts TEXT NOT NULL DEFAULT '{}';
DROP INDEX models_by_job;
CREATE UNIQUE INDEX model_of_job ON models (job_id);
ALTER TABLE metrics ADD COLUMN attempt INTEGER NOT NULL DEFAULT 1;
ALTER TABLE jobs ADD COLUMN tags TEXT NOT NULL DEFAULT '{}';
"""
"""What a model's record says beside its numbers; one model per job; which worker told a number; a job's tags."""

_ALIASES = """
CREATE TABLE alias_moves (
  alias TEXT NOT NULL, number INTEGER NOT NULL CHECK (number >= 1), model_id TEXT REFERENCES models (id),
  behind INTEGER, restores INTEGER, evidence TEXT, comparison TEXT, by TEXT NOT NULL, reason TEXT NOT NULL,
  at REAL NOT NULL, PRIMARY KEY (alias, number)
) STRICT, WITHOUT ROWID;
"""
"""Names that move from model to model: every move, and what a rollback goes back to."""

_COMPUTE = """
CREATE TABLE job_compute (
  job_id TEXT NOT NULL REFERENCES jobs (id), attempt INTEGER NOT NULL, process INTEGER NOT NULL,
  wall_seconds REAL NOT NULL, cpu_seconds REAL NOT NULL, gpu_seconds REAL NOT NULL, tokens INTEGER NOT NULL,
  episodes INTEGER, turns INTEGER, PRIMARY KEY (job_id, attempt, process)
) STRICT, WITHOUT ROWID;
"""
"""What each process of each worker has used up, as it told last."""

MIGRATIONS = (_FIRST, _RECORDS, _ALIASES, _COMPUTE)


def migrate(db: sqlite3.Connection) -> None:
    """Bring an open table up to date; nothing is done twice, also with several processes at it.

    Raises:
        DataError: the table is of a newer version than this program knows.
    """
    newest = len(MIGRATIONS)
    if _version(db) == newest:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _version(db)
        if version > newest:
            raise DataError(
                f"The job table is of version {version}, this program knows {newest}. Update it, or choose another "
                "--data folder."
            )
        for script in MIGRATIONS[version:]:
            for statement in script.split(";\n"):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {newest}")
    except BaseException:
        if db.in_transaction:  # a full disk has ended it
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
