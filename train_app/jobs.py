"""The table that the API, the supervisor and the workers share: files, jobs, events, metrics, models, aliases.

A worker computes; the supervisor schedules; the API records. They share this SQLite file and nothing else, each
with a `JobStore` of its own. A status that is final stays: whoever comes later changes nothing. What a worker writes
goes through its lease (`train_app.leases`), so that a worker that was replaced changes nothing either.

    queued ── claim ──► running ──► succeeded | failed | cancelled
       ▲                   │
       └───── requeue ─────┘        (a restart of the API)
"""

from __future__ import annotations

import json
import math
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from crafter_pipeline.contracts import Compute
from crafter_pipeline.promotion import CHAMPION
from train_app.job_schema import migrate

Kind = Literal["sft", "rl"]
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL_STATES = ("succeeded", "failed", "cancelled")
PREFIXES = ("fft", "ft", "qft", "rl")
"""First parts of model ids: full, LoRA, QLoRA, RL."""
JOB_ID = re.compile(r"job_[0-9a-f]{16}")
ALIASES = (CHAMPION,)
"""Names that move from model to model, by decision: see `train_app.champion`."""


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
    tags: dict[str, Any] = field(default_factory=dict)
    """The client's words to find the job by."""

    @property
    def final(self) -> bool:
        return self.status in FINAL_STATES


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list holds; None: any."""

    kind: str | None = None
    status: str | None = None
    base_model: str | None = None
    """The job's base, or the model that it started from."""
    file: str | None = None
    """Path of an uploaded file that it trains on."""
    created_after: float | None = None
    """Unix seconds, exclusive."""
    created_before: float | None = None
    """Unix seconds, exclusive."""
    tags: Mapping[str, str | None] = field(default_factory=dict)
    """Tags it has; None: with any value."""
    after: str | None = None
    """Id of a job: only those that come behind it in the list."""


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
    attempt: int = 1
    """Worker that told it, counted from 1."""


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
    """The trainer's last numbers."""
    config: dict[str, Any] = field(default_factory=dict)
    """What it was trained with."""
    tokenizer_sha256: str | None = None
    """Equal for models that read and write equal tokens; None: made before it was kept."""
    form: Literal["full", "adapter"] = "full"
    """What lies in the folder: all weights, or an adapter of the parent's."""
    facts: dict[str, Any] = field(default_factory=dict)
    """How it was made: method, device, dtype, steps, …"""


@dataclass(frozen=True, slots=True)
class AliasMove:
    """An alias went from one model to another. Moves count 1, 2, … within the alias; the last one says who holds it."""

    number: int
    model_id: str | None
    """Who has held it since; None: nobody, the first holder was taken back."""
    behind: int | None
    """The move that a rollback goes back to; None: nobody held it before."""
    restores: int | None
    """Of a rollback: the promotion that it went back to."""
    evidence: dict[str, Any] | None
    """`crafter_pipeline.promotion.Evidence`, dumped; None: a rollback."""
    comparison: dict[str, Any] | None
    """What the evidence showed."""
    by: str
    """Who moved it."""
    reason: str
    at: float

    @property
    def promotes(self) -> bool:
        return self.evidence is not None


def job_folder(data_dir: Path, job_id: str) -> Path:
    """Where a job keeps its log, checkpoints and model."""
    return data_dir / "jobs" / job_id


def model_folder(data_dir: Path, job_id: str) -> Path:
    """Where the model of a job lies once it is whole."""
    return data_dir / "models" / job_id


def database_path(data_dir: Path) -> Path:
    """The file that API, supervisor and workers open."""
    return data_dir / "jobs.db"


class JobStore:
    """The shared table. One instance serves every thread of its process; each process opens its own.

    Reads never wait for writes: they have a connection of their own. Unknown job ids raise KeyError.
    """

    def __init__(self, path: Path | str) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._lock, self._read_lock = threading.RLock(), threading.Lock()
        self._in_transaction: int | None = None
        """Thread that has one open: it alone reads what it has written."""
        self._db, self._reader = _connect(path), _connect(path)
        with self._lock:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            migrate(self._db)
        self._reader.execute("PRAGMA query_only = ON")

    @classmethod
    def in_folder(cls, data_dir: Path | str) -> JobStore:
        """The store of a data folder: what API, supervisor and workers all open."""
        return cls(database_path(Path(data_dir)))

    def close(self) -> None:
        """Close the file; further calls raise sqlite3.ProgrammingError."""
        with self._lock, self._read_lock:
            self._reader.close()
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Several calls as one write; a nested one joins it."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            self._in_transaction = threading.get_ident()
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._in_transaction = None

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
        tags: Mapping[str, Any] | None = None,
    ) -> Job:
        """A new queued job with its first event. An equal key returns the job it made, unless that one failed or was
        cancelled. `ready=False`: it waits for `start`."""
        with self.transaction():
            before = self.job_of_key(kind, idempotency_key)
            if before is not None:
                return before
            job_id, now = f"job_{secrets.token_hex(8)}", time.time()
            self._db.execute(
                "INSERT INTO jobs (id, kind, name, base_model, spec, request, status, ready, idempotency_key, tags, "
                "created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?)",
                (
                    job_id,
                    kind,
                    name,
                    base_model,
                    _dump(spec),
                    _dump(request or {}),
                    int(ready),
                    idempotency_key,
                    _dump(tags or {}),
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

    def list(self, asked: JobFilter = JobFilter(), limit: int = 100) -> Sequence[Job]:  # noqa: B008
        """Newest first. KeyError when `asked.after` is no job."""
        behind = self.get(asked.after) if asked.after is not None else None
        clauses: list[str] = ["1"]
        values: list[Any] = []
        for clause, value in (
            ("kind = ?", asked.kind),
            ("status = ?", asked.status),
            ("created_at > ?", asked.created_after),
            ("created_at < ?", asked.created_before),
            (
                "? IN (base_model, json_extract(spec, '$.source'), json_extract(spec, '$.config.base_model'))",
                asked.base_model,
            ),
            ("? IN (json_extract(spec, '$.training_file'), json_extract(spec, '$.validation_file'))", asked.file),
        ):
            if value is not None:
                clauses.append(clause)
                values.append(value)
        for key, tag in asked.tags.items():
            same = "coalesce(? = CAST(value AS TEXT), 1)"
            clauses.append(f"EXISTS (SELECT 1 FROM json_each(tags) WHERE key = ? AND {same})")
            values += [key, tag]
        if behind is not None:
            clauses.append("(-created_at, id) > (?, ?)")
            values += [-behind.created_at, behind.id]
        where = " AND ".join(clauses)
        rows = self._all(f"SELECT * FROM jobs WHERE {where} ORDER BY created_at DESC, id LIMIT ?", *values, limit)
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

    def next_in_queue(self) -> Job | None:
        """The oldest started job that nobody runs; None: nothing to do."""
        row = self._one(
            "SELECT * FROM jobs WHERE status = 'queued' AND ready = 1 AND cancel_requested = 0 "
            "ORDER BY created_at, id LIMIT 1"
        )
        return None if row is None else _job(row)

    def claim(self, job_id: str) -> bool:
        """Take a job from the queue: it is running from now on. False when it is not there any more."""
        now = time.time()
        with self.transaction():
            changed = self._db.execute(
                "UPDATE jobs SET status = 'running', started_at = COALESCE(started_at, ?1), heartbeat_at = ?1, "
                "updated_at = ?1 WHERE id = ?2 AND status = 'queued' AND ready = 1 AND cancel_requested = 0",
                (now, job_id),
            ).rowcount
            if changed:
                self.add_event(job_id, "job.running", "a worker takes over")
            return changed == 1

    def begin_attempt(self, job_id: str) -> Job:
        """The job with a new attempt, before its worker starts: what earlier workers write is refused from now on."""
        with self.transaction():
            self._db.execute(
                "UPDATE jobs SET pid = NULL, attempts = attempts + 1, heartbeat_at = ?1, updated_at = ?1 WHERE id = ?2",
                (time.time(), job_id),
            )
            return self.get(job_id)

    def set_pid(self, job_id: str, attempt: int, pid: int) -> None:
        """The process of an attempt, so that it can be ended after a restart of the API."""
        with self._lock:
            self._db.execute("UPDATE jobs SET pid = ? WHERE id = ? AND attempts = ?", (pid, job_id, attempt))

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

    def succeed(self, model: Model) -> bool:
        """Register the model and end its job, both or neither. False, and nothing changed, when it had ended."""
        with self.transaction():
            if self.get(model.job_id).final:
                return False
            self.add_model(model)
            return self.set_status(model.job_id, "succeeded")

    def requeue(self, job_id: str) -> bool:
        """Put a running job back in the queue, attempts kept."""
        now = time.time()
        sql = "UPDATE jobs SET status = 'queued', pid = NULL, updated_at = ? WHERE id = ? AND status = 'running'"
        with self._lock:
            return self._db.execute(sql, (now, job_id)).rowcount == 1

    def heartbeat(self, job_id: str, attempt: int) -> bool:
        """The worker lives. False when it is not the job's worker (any more)."""
        sql = "UPDATE jobs SET heartbeat_at = ? WHERE id = ? AND attempts = ? AND status = 'running'"
        with self._lock:
            return self._db.execute(sql, (time.time(), job_id, attempt)).rowcount == 1

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

    def holder(self, job_id: str) -> tuple[int | None, bool]:
        """(attempt that runs the job or None, whether its end was asked for)."""
        row = self._one("SELECT attempts, status, cancel_requested FROM jobs WHERE id = ?", job_id)
        if row is None:
            raise KeyError(job_id)
        return (row["attempts"] if row["status"] == "running" else None), bool(row["cancel_requested"])

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

    def replace_event(self, job_id: str, type: str, message: str, level: str = "info") -> int:
        """Append, and forget the job's earlier events of this type; returns the seq, which no event had before."""
        with self.transaction():
            seq = self.add_event(job_id, type, message, level=level)
            self._db.execute("DELETE FROM events WHERE job_id = ? AND type = ? AND seq < ?", (job_id, type, seq))
            return seq

    def events(
        self,
        job_id: str,
        since_seq: int = 0,
        limit: int = 200,
        types: Iterable[str] | None = None,
        *,
        before_seq: int | None = None,
        created_after: float | None = None,
        newest: bool = False,
    ) -> Sequence[Event]:
        """Events after `since_seq`, oldest first.

        Args:
            types: Only of these; None: of any.
            before_seq: Only earlier ones.
            created_after: Unix seconds, exclusive.
            newest: Of more than `limit` the last ones, not the first.
        """
        rows = self._all(
            "SELECT * FROM events WHERE job_id = ?1 AND seq > ?2 AND (?4 IS NULL OR type IN "
            "(SELECT value FROM json_each(?4))) AND (?5 IS NULL OR seq < ?5) AND (?6 IS NULL OR created_at > ?6) "
            f"ORDER BY seq {'DESC' if newest else 'ASC'} LIMIT ?3",
            job_id,
            since_seq,
            limit,
            None if types is None else json.dumps(list(types)),
            before_seq,
            created_after,
        )
        found = [
            Event(r["seq"], r["type"], r["level"], r["message"], json.loads(r["data"]), r["created_at"]) for r in rows
        ]
        return found[::-1] if newest else found

    def add_metrics(
        self, job_id: str, step: int, values: Mapping[str, float], phase: str = "train", attempt: int = 1
    ) -> None:
        """The numbers of a step, all at once: a reader that pages by step sees all of them or none.

        A step that is trained again after a restart replaces its numbers. Steps start at 1. NaN and infinities are
        left out.
        """
        now = time.time()
        rows = [
            (job_id, step, name, phase, float(value), now, attempt)
            for name, value in values.items()
            if math.isfinite(value)
        ]
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def metrics(
        self,
        job_id: str,
        name: str | None = None,
        after_step: int | None = None,
        limit: int = 1000,
        attempt: int | None = None,
    ) -> Sequence[Metric]:
        """Points after `after_step`, by step and name. A page never ends within a step, so it may exceed `limit`.

        Args:
            attempt: Only what this worker told; None: all.
        """
        where = "job_id = ?1 AND (?2 IS NULL OR name = ?2) AND step > ?3 AND (?5 IS NULL OR attempt = ?5)"
        rows = self._all(
            f"SELECT * FROM metrics WHERE {where} AND step <= COALESCE((SELECT step FROM metrics WHERE {where} "
            "ORDER BY step, name, phase LIMIT 1 OFFSET ?4), 9223372036854775807) ORDER BY step, name, phase",
            job_id,
            name,
            after_step if after_step is not None else 0,
            max(limit, 1) - 1,
            attempt,
        )
        return [Metric(r["name"], r["step"], r["value"], r["phase"], r["created_at"], r["attempt"]) for r in rows]

    # ------------------------------------------------------------------ what it costs

    def set_compute(self, job_id: str, attempt: int, used: Compute, process: int = 0) -> None:
        """What a process of a worker has used up since it started; replaces what it told before.

        Args:
            process: Of several of one worker, counted from 0.
        """
        with self._lock:
            self._db.execute(
                "INSERT OR REPLACE INTO job_compute (job_id, attempt, process, wall_seconds, cpu_seconds, gpu_seconds, "
                "tokens, episodes, turns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job_id,
                    attempt,
                    process,
                    used.wall_seconds,
                    used.cpu_seconds,
                    used.gpu_seconds,
                    used.tokens,
                    used.episodes,
                    used.turns,
                ),
            )

    def compute(self, job_id: str) -> Compute | None:
        """What the job has used up: seconds of all its workers, tokens as far as any of them got; None: not told yet.

        A worker that was killed counts until its last heartbeat.
        """
        row = self._one(
            "SELECT sum(longest) AS wall_seconds, sum(cpu) AS cpu_seconds, sum(gpu) AS gpu_seconds, "
            "max(tokens) AS tokens, max(episodes) AS episodes, max(turns) AS turns "
            "FROM (SELECT max(wall_seconds) AS longest, sum(cpu_seconds) AS cpu, sum(gpu_seconds) AS gpu, "
            "max(tokens) AS tokens, max(episodes) AS episodes, max(turns) AS turns "
            "FROM job_compute WHERE job_id = ? GROUP BY attempt)",
            job_id,
        )
        return None if row["wall_seconds"] is None else Compute(**dict(row))

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

    def file_of(self, sha256: str | None) -> File | None:
        """The newest file of this content."""
        row = self._one("SELECT * FROM files WHERE sha256 = ? ORDER BY created_at DESC, id LIMIT 1", sha256)
        return None if row is None else File(**row)

    def files(self, limit: int = 100, purpose: str | None = None, after: str | None = None) -> Sequence[File]:
        """Newest first; `after`: only those that come behind this file."""
        rows = self._all(
            "SELECT * FROM files WHERE (?1 IS NULL OR purpose = ?1) AND (?2 IS NULL OR (-created_at, id) > "
            "(SELECT -created_at, id FROM files WHERE id = ?2)) ORDER BY created_at DESC, id LIMIT ?3",
            purpose,
            after,
            limit,
        )
        return [File(**r) for r in rows]

    def add_model(self, model: Model) -> None:
        """Register a model and name it in its job. sqlite3.IntegrityError when the job has one."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO models (id, base_model, job_id, kind, path, parent, dataset_sha256, created_at, metrics, "
                "config, tokenizer_sha256, form, facts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                    _dump(model.config),
                    model.tokenizer_sha256,
                    model.form,
                    _dump(model.facts),
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

    def models(self, kind: str | None = None, limit: int = 100, base_model: str | None = None) -> Sequence[Model]:
        """Newest first; kind is sft or rl."""
        rows = self._all(
            "SELECT * FROM models WHERE (?1 IS NULL OR kind = ?1) AND (?3 IS NULL OR base_model = ?3) "
            "ORDER BY created_at DESC, id LIMIT ?2",
            kind,
            limit,
            base_model,
        )
        return [_model(r) for r in rows]

    def resolve_model(self, name: str) -> Model | None:
        """The trained model a name means: an id, a bare job id, `ft:<job>`, `latest:sft`, `latest:rl`, `champion`; else
        None."""
        if name in ALIASES:
            row = self._one(
                "SELECT models.* FROM alias_moves JOIN models ON models.id = model_id WHERE alias = ?1 AND number = "
                "(SELECT MAX(number) FROM alias_moves WHERE alias = ?1)",
                name,
            )
            return None if row is None else _model(row)
        if name in ("latest:sft", "latest:rl"):
            newest = self.models(kind=name.removeprefix("latest:"), limit=1)
            return newest[0] if newest else None
        head, _, job_id = name.rpartition(":")
        if not JOB_ID.fullmatch(job_id):
            return None
        row = self._one("SELECT * FROM models WHERE job_id = ?", job_id)
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

    # ------------------------------------------------------------------ aliases

    def alias_moves(self, alias: str) -> Sequence[AliasMove]:
        """Newest first."""
        rows = self._all("SELECT * FROM alias_moves WHERE alias = ? ORDER BY number DESC", alias)
        return [_alias_move(r) for r in rows]

    def reigns(self, alias: str, model_id: str) -> Sequence[tuple[float, float | None]]:
        """When a model held an alias, (from, until); until None: it does."""
        rows = self._all(
            "SELECT at, until FROM (SELECT model_id, at, LEAD(at) OVER (ORDER BY number) AS until FROM alias_moves "
            "WHERE alias = ?) WHERE model_id = ? ORDER BY at",
            alias,
            model_id,
        )
        return [(r["at"], r["until"]) for r in rows]

    def add_alias_move(self, alias: str, move: AliasMove) -> None:
        """Append a move. sqlite3.IntegrityError when there is one of its number."""
        with self._lock:
            self._db.execute(
                "INSERT INTO alias_moves (alias, number, model_id, behind, restores, evidence, comparison, by, reason, "
                "at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    alias,
                    move.number,
                    move.model_id,
                    move.behind,
                    move.restores,
                    None if move.evidence is None else _dump(move.evidence),
                    None if move.comparison is None else _dump(move.comparison),
                    move.by,
                    move.reason,
                    move.at,
                ),
            )

    # ------------------------------------------------------------------ inside

    def _one(self, sql: str, *values: Any) -> Any:
        return next(iter(self._all(sql, *values)), None)

    def _all(self, sql: str, *values: Any) -> Any:
        if self._in_transaction == threading.get_ident():
            return self._db.execute(sql, values).fetchall()
        with self._read_lock:
            return self._reader.execute(sql, values).fetchall()


def _connect(path: Path | str) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    return db


def new_file_id() -> str:
    """`file_` and 16 hex digits."""
    return f"file_{secrets.token_hex(8)}"


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    values |= {name: json.loads(values[name]) for name in ("spec", "request", "tags")}
    values["ready"], values["cancel_requested"] = bool(values["ready"]), bool(values["cancel_requested"])
    return Job(**values)


def _model(row: sqlite3.Row) -> Model:
    documents = {name: json.loads(row[name]) for name in ("metrics", "config", "facts")}
    return Model(**{**dict(row), **documents})


def _alias_move(row: sqlite3.Row) -> AliasMove:
    values = {name: row[name] for name in row.keys() if name != "alias"}  # noqa: SIM118 (a Row iterates over values)
    for name in ("evidence", "comparison"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return AliasMove(**values)


def is_moving(name: str) -> bool:
    """Whether a name may mean another model tomorrow: who pins models must not keep it."""
    return name in ALIASES or name.startswith("latest:")


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)
