"""The table that the API, the supervisor and the workers share: files, jobs, events, metrics, models.

A worker computes; the supervisor schedules; the API records. They share this SQLite file and nothing else, each
with a `JobStore` of its own. A status that is final stays: whoever comes later changes nothing.

    queued ── claim ──► running ──► succeeded | failed | cancelled
       ▲                   │
       └── requeue_running ┘        (a restart of the API, or of a worker that died)
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["sft", "rl"]
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL_STATES = ("succeeded", "failed", "cancelled")
PREFIXES = ("fft", "ft", "qft", "rl")
"""First parts of model ids: full, LoRA, QLoRA, RL."""
JOB_ID = re.compile(r"job_[0-9a-f]{16}")

_SCHEMA = """
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


@dataclass(frozen=True, slots=True)
class File:
    """An uploaded dataset."""

    id: str
    purpose: str
    filename: str
    path: str
    bytes: int
    rows: int
    sha256: str
    created_at: float
    """Unix seconds, as everywhere below."""


@dataclass(frozen=True, slots=True)
class Job:
    """One training job."""

    id: str
    kind: Kind
    name: str
    base_model: str
    """The recipe's base: middle part of the model's id."""
    spec: dict[str, Any]
    """`SftSpec` or `RlSpec`, dumped: what the worker reads."""
    request: dict[str, Any]
    """The payload as the client sent it."""
    status: Status
    ready: bool
    """Started: the supervisor may take it."""
    error: str | None
    model_id: str | None
    idempotency_key: str | None
    cancel_requested: bool
    attempts: int
    """Workers started so far."""
    pid: int | None
    created_at: float
    updated_at: float
    started_at: float | None
    finished_at: float | None
    heartbeat_at: float | None

    @property
    def final(self) -> bool:
        return self.status in FINAL_STATES


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job; `seq` counts 1, 2, … within the job."""

    seq: int
    type: str
    level: str
    message: str
    data: dict[str, Any]
    created_at: float


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of one training step; steps start at 1."""

    name: str
    step: int
    value: float
    phase: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Model:
    """A trained model that can be served and trained further."""

    id: str
    base_model: str
    job_id: str
    kind: str
    """sft or rl."""
    path: str
    """Folder with weights and tokenizer."""
    parent: str | None
    """Model id or base that training started from."""
    dataset_sha256: str | None
    created_at: float
    metrics: dict[str, Any]


def job_folder(data_dir: Path, job_id: str) -> Path:
    """Where a job keeps its log, checkpoints and model."""
    return data_dir / "jobs" / job_id


def database_path(data_dir: Path) -> Path:
    """The file that API, supervisor and workers open."""
    return data_dir / "jobs.db"


class JobStore:
    """The shared table. One instance serves every thread of its process; each process opens its own.

    Unknown job ids raise KeyError.
    """

    def __init__(self, path: Path | str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        with self._lock:
            self._db.execute("PRAGMA busy_timeout = 30000")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(_SCHEMA)

    @classmethod
    def in_folder(cls, data_dir: Path | str) -> JobStore:
        """The store of a data folder: what API, supervisor and workers all open."""
        return cls(database_path(Path(data_dir)))

    def close(self) -> None:
        """Close the file; further calls raise sqlite3.ProgrammingError."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Several calls as one write; a nested one joins it."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    # ------------------------------------------------------------------ jobs

    def create_job(
        self,
        kind: Kind,
        base_model: str,
        spec: Mapping[str, Any],
        name: str = "",
        *,
        request: Mapping[str, Any] | None = None,
        ready: bool = True,
        idempotency_key: str | None = None,
    ) -> Job:
        """A new queued job with its first event. An equal key returns the job it made, unless that one failed or was
        cancelled. `ready=False`: it waits for `start`."""
        with self.transaction():
            before = self.job_of_key(kind, idempotency_key)
            if before is not None:
                return before
            job_id, now = f"job_{secrets.token_hex(8)}", time.time()
            self._db.execute(
                "INSERT INTO jobs (id, kind, name, base_model, spec, request, status, ready, idempotency_key, "
                "created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?, ?)",
                (
                    job_id,
                    kind,
                    name,
                    base_model,
                    _dump(spec),
                    _dump(request or {}),
                    int(ready),
                    idempotency_key,
                    now,
                    now,
                ),
            )
            self.add_event(
                job_id, "job.created", f"{kind} job from {base_model}", {"kind": kind, "base_model": base_model}
            )
            return self.get(job_id)

    def job_of_key(self, kind: Kind, key: str | None) -> Job | None:
        """The job that an idempotency key made; a failed or cancelled one does not count."""
        row = self._one(
            "SELECT * FROM jobs WHERE idempotency_key = ? AND kind = ? AND status NOT IN ('failed', 'cancelled') "
            "ORDER BY created_at DESC, id LIMIT 1",
            key,
            kind,
        )
        return None if row is None else _job(row)

    def get(self, job_id: str) -> Job:
        """The job; KeyError when there is none."""
        row = self._one("SELECT * FROM jobs WHERE id = ?", job_id)
        if row is None:
            raise KeyError(job_id)
        return _job(row)

    def list(self, kind: Kind | None = None, status: str | None = None, limit: int = 100) -> Sequence[Job]:
        """Newest first."""
        rows = self._all(
            "SELECT * FROM jobs WHERE (?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR status = ?2) "
            "ORDER BY created_at DESC, id LIMIT ?3",
            kind,
            status,
            limit,
        )
        return [_job(r) for r in rows]

    def start(self, job_id: str) -> Job:
        """Let the supervisor take the job; a second start changes nothing."""
        with self.transaction():
            changed = self._db.execute(
                "UPDATE jobs SET ready = 1, updated_at = ? WHERE id = ? AND ready = 0 AND status = 'queued'",
                (time.time(), job_id),
            ).rowcount
            if changed:
                self.add_event(job_id, "job.queued", "waiting for a worker")
            return self.get(job_id)

    def claim(self) -> Job | None:
        """Take the oldest started job: it is running from now on. None: nothing to do."""
        now = time.time()
        with self.transaction():
            row = self._db.execute(
                "UPDATE jobs SET status = 'running', started_at = COALESCE(started_at, ?1), heartbeat_at = ?1, "
                "updated_at = ?1 WHERE id = (SELECT id FROM jobs WHERE status = 'queued' AND ready = 1 AND "
                "cancel_requested = 0 ORDER BY created_at, id LIMIT 1) RETURNING *",
                (now,),
            ).fetchone()
            if row is None:
                return None
            self.add_event(row["id"], "job.running", "a worker takes over")
            return _job(row)

    def worker_started(self, job_id: str, pid: int) -> int:
        """Record the worker's pid; returns how many workers the job has had, this one included."""
        with self.transaction():
            row = self._db.execute(
                "UPDATE jobs SET pid = ?1, attempts = attempts + 1, heartbeat_at = ?2, updated_at = ?2 WHERE id = ?3 "
                "RETURNING attempts",
                (pid, time.time(), job_id),
            ).fetchone()
            if row is None:
                raise KeyError(job_id)
            return int(row["attempts"])

    def set_status(self, job_id: str, status: Status, error: str | None = None) -> bool:
        """Change the status and, for a final one, add the event that clients wait for (`sft.job.completed`, …).

        Returns False, and changes nothing, when the job already ended.
        """
        now = time.time()
        with self.transaction():
            job = self.get(job_id)
            if job.final:
                return False
            finished = now if status in FINAL_STATES else None
            self._db.execute(
                "UPDATE jobs SET status = ?, error = ?, finished_at = ?, updated_at = ? WHERE id = ?",
                (status, error, finished, now, job_id),
            )
            data = {"model_id": job.model_id, "fine_tuned_model": job.model_id} if job.model_id else {}
            if status == "succeeded":
                message = f"model {job.model_id}" if job.model_id else "done"
                names = ("sft.completed", "sft.job.completed") if job.kind == "sft" else ("rl.job.completed",)
                for name in names:
                    self.add_event(job_id, name, message, data)
            elif status == "failed":
                self.add_event(job_id, f"{job.kind}.job.failed", error or "failed", level="error")
            elif status == "cancelled":
                self.add_event(job_id, f"{job.kind}.job.cancelled", error or "cancelled", level="warning")
            return True

    def finish(self, job_id: str, model_id: str) -> bool:
        """The job succeeded with this model; False when it had already ended."""
        with self.transaction():
            self._db.execute("UPDATE jobs SET model_id = ? WHERE id = ?", (model_id, job_id))
            return self.set_status(job_id, "succeeded")

    def requeue(self, job_id: str) -> bool:
        """Put a running job back in the queue, attempts kept."""
        now = time.time()
        sql = "UPDATE jobs SET status = 'queued', pid = NULL, updated_at = ? WHERE id = ? AND status = 'running'"
        with self._lock:
            return self._db.execute(sql, (now, job_id)).rowcount == 1

    def heartbeat(self, job_id: str) -> None:
        """The worker lives."""
        with self._lock:
            self._db.execute("UPDATE jobs SET heartbeat_at = ? WHERE id = ?", (time.time(), job_id))

    def request_cancel(self, job_id: str) -> Job:
        """Ask for the job's end: a waiting one is cancelled at once, a running one by the supervisor."""
        with self.transaction():
            job = self.get(job_id)
            if not job.final and not job.cancel_requested:
                self._db.execute(
                    "UPDATE jobs SET cancel_requested = 1, updated_at = ? WHERE id = ?", (time.time(), job_id)
                )
                self.add_event(job_id, "job.cancel.requested", "cancel requested", level="warning")
                if job.status == "queued":
                    self.set_status(job_id, "cancelled")
            return self.get(job_id)

    def cancel_requested(self, job_id: str) -> bool:
        """Whether the worker should stop."""
        return self.get(job_id).cancel_requested

    # ------------------------------------------------------------------ events and metrics

    def add_event(
        self, job_id: str, type: str, message: str, data: Mapping[str, Any] | None = None, level: str = "info"
    ) -> int:
        """Append; returns the event's seq, 1 for the first of a job."""
        sql = (
            "INSERT INTO events (job_id, seq, type, level, message, data, created_at) "
            "SELECT ?1, COALESCE(MAX(seq), 0) + 1, ?2, ?3, ?4, ?5, ?6 FROM events WHERE job_id = ?1 RETURNING seq"
        )
        with self._lock:
            row = self._db.execute(sql, (job_id, type, level, message, _dump(data or {}), time.time())).fetchone()
            return int(row["seq"])

    def events(self, job_id: str, since_seq: int = 0, limit: int = 200) -> Sequence[Event]:
        """Events after `since_seq`, oldest first."""
        rows = self._all(
            "SELECT * FROM events WHERE job_id = ? AND seq > ? ORDER BY seq LIMIT ?", job_id, since_seq, limit
        )
        return [
            Event(r["seq"], r["type"], r["level"], r["message"], json.loads(r["data"]), r["created_at"]) for r in rows
        ]

    def add_metric(self, job_id: str, name: str, step: int, value: float, phase: str = "train") -> None:
        """One number; see `add_metrics`."""
        self.add_metrics(job_id, step, {name: value}, phase)

    def add_metrics(self, job_id: str, step: int, values: Mapping[str, float], phase: str = "train") -> None:
        """The numbers of a step, all at once: a reader that pages by step sees all of them or none.

        A step that is trained again after a restart replaces its numbers. Steps start at 1. NaN and infinities are
        left out.
        """
        now = time.time()
        rows = [(job_id, step, n, phase, float(v), now) for n, v in values.items() if abs(float(v)) < float("inf")]
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?, ?)", rows)

    def metrics(
        self, job_id: str, name: str | None = None, after_step: int | None = None, limit: int = 1000
    ) -> Sequence[Metric]:
        """Points after `after_step`, by step and name. A page never ends within a step, so it may exceed `limit`."""
        where = "job_id = ?1 AND (?2 IS NULL OR name = ?2) AND step > ?3"
        rows = self._all(
            f"SELECT * FROM metrics WHERE {where} AND step <= COALESCE((SELECT step FROM metrics WHERE {where} "
            "ORDER BY step, name, phase LIMIT 1 OFFSET ?4), 9223372036854775807) ORDER BY step, name, phase",
            job_id,
            name,
            after_step if after_step is not None else 0,
            max(limit, 1) - 1,
        )
        return [Metric(r["name"], r["step"], r["value"], r["phase"], r["created_at"]) for r in rows]

    # ------------------------------------------------------------------ files and models

    def add_file(
        self,
        path: Path | str,
        *,
        purpose: str,
        filename: str,
        bytes: int,
        rows: int,
        sha256: str,
        id: str | None = None,
    ) -> File:
        """Register an uploaded file that lies at `path`."""
        file = File(id or new_file_id(), purpose, filename, str(path), bytes, rows, sha256, time.time())
        with self._lock:
            self._db.execute(
                "INSERT INTO files (id, purpose, filename, path, bytes, rows, sha256, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (file.id, purpose, filename, file.path, bytes, rows, sha256, file.created_at),
            )
        return file

    def get_file(self, file_id: str) -> File:
        """The file; KeyError when there is none."""
        row = self._one("SELECT * FROM files WHERE id = ?", file_id)
        if row is None:
            raise KeyError(file_id)
        return File(**row)

    def files(self, limit: int = 100) -> Sequence[File]:
        """Newest first."""
        return [File(**r) for r in self._all("SELECT * FROM files ORDER BY created_at DESC, id LIMIT ?", limit)]

    def add_model(self, model: Model) -> None:
        """Register a model and name it in its job. Adding it twice keeps the newer one."""
        with self.transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    model.id,
                    model.base_model,
                    model.job_id,
                    model.kind,
                    str(model.path),
                    model.parent,
                    model.dataset_sha256,
                    model.created_at,
                    _dump(model.metrics),
                ),
            )
            self._db.execute(
                "UPDATE jobs SET model_id = ?, updated_at = ? WHERE id = ?", (model.id, time.time(), model.job_id)
            )

    def get_model(self, model_id: str) -> Model:
        """The model of exactly this id; KeyError when there is none."""
        row = self._one("SELECT * FROM models WHERE id = ?", model_id)
        if row is None:
            raise KeyError(model_id)
        return _model(row)

    def models(self, kind: str | None = None, limit: int = 100) -> Sequence[Model]:
        """Newest first; kind is sft or rl."""
        rows = self._all(
            "SELECT * FROM models WHERE ?1 IS NULL OR kind = ?1 ORDER BY created_at DESC, id LIMIT ?2", kind, limit
        )
        return [_model(r) for r in rows]

    def resolve_model(self, name: str) -> Model | None:
        """The trained model a name means: an id, a bare job id, `ft:<job>`, `latest:sft`, `latest:rl`; else None."""
        if name in ("latest:sft", "latest:rl"):
            newest = self.models(kind=name.removeprefix("latest:"), limit=1)
            return newest[0] if newest else None
        head, _, job_id = name.rpartition(":")
        if not JOB_ID.fullmatch(job_id):
            return None
        row = self._one("SELECT * FROM models WHERE job_id = ? ORDER BY created_at DESC, id LIMIT 1", job_id)
        if row is None:
            return None
        prefix, _, base = head.partition(":")
        named_right = prefix in ("", *PREFIXES) and base in ("", row["base_model"])
        return _model(row) if named_right else None

    def base_of(self, name: str) -> str:
        """The recipe's base: that of the trained model `name` means, or the name itself."""
        model = self.resolve_model(name)
        return model.base_model if model else name

    def weights_of(self, name: str, aliases: Mapping[str, str] | None = None) -> str:
        """What to load for a name: a trained model's folder, a stand-in (BASE -> STAND-IN), or the name itself."""
        model = self.resolve_model(name)
        if model is not None:
            return model.path
        stand_in = (aliases or {}).get(name, name)
        model = self.resolve_model(stand_in)
        return model.path if model is not None else stand_in

    # ------------------------------------------------------------------ inside

    def _one(self, sql: str, *values: Any) -> Any:
        with self._lock:
            return self._db.execute(sql, values).fetchone()

    def _all(self, sql: str, *values: Any) -> Any:
        with self._lock:
            return self._db.execute(sql, values).fetchall()


def new_file_id() -> str:
    """`file_` and 16 hex digits."""
    return f"file_{secrets.token_hex(8)}"


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    values["spec"], values["request"] = json.loads(values["spec"]), json.loads(values["request"])
    values["ready"], values["cancel_requested"] = bool(values["ready"]), bool(values["cancel_requested"])
    return Job(**values)


def _model(row: sqlite3.Row) -> Model:
    return Model(**{**dict(row), "metrics": json.loads(row["metrics"])})


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)
