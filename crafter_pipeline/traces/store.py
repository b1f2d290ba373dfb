"""The trace store: one writer, one transaction per rollout, storing twice is storing once."""

from __future__ import annotations

import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from crafter_pipeline.contracts import Rollout, Turn
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import records as r
from crafter_pipeline.traces.connect import open_for_writing
from crafter_pipeline.traces.schema import NewerSchemaError, migrate

_SESSION = "INSERT OR IGNORE INTO session_traces VALUES (?,?,?,?,?,?,NULL,NULL)"
_STEP = "INSERT INTO session_timesteps VALUES (?,?,?,?,?,?,?,2,?,'{}')"
_CAIS = (
    "INSERT INTO events (id, session_id, timestep_id, event_type, system_instance_id, event_time,"
    " model_name, provider, input_tokens, output_tokens, total_tokens, latency_ms, call_records, metadata)"
    " VALUES (?,?,?,'cais',?,?,?,?,?,?,?,?,?,?)"
)
_ENVIRONMENT = (
    "INSERT INTO events (id, session_id, timestep_id, event_type, system_instance_id, event_time,"
    " reward, terminated, truncated, system_state_before, system_state_after, metadata)"
    " VALUES (?,?,?,'environment',?,?,?,?,?,?,?,?)"
)
_MESSAGE = (
    "INSERT INTO messages (session_id, timestep_id, message_type, content, event_time, metadata) VALUES (?,?,?,?,?,?)"
)
_REWARD = (
    "INSERT INTO event_rewards (event_id, session_id, turn_number, reward_value, reward_type, annotation, source,"
    " created_at) VALUES (?,?,?,?,?,?,'environment',?)"
)
_OUTCOME = (
    "INSERT INTO outcome_rewards (session_id, total_reward, achievements_count, total_steps, created_at,"
    " reward_metadata) VALUES (?,?,?,?,?,?)"
)


def default_trace_path(folder: Path) -> Path:
    """`<folder>/task_app_traces_<YYYY-MM-DD_HH-MM-SS>.db` in local time; `_2`, `_3`, … before `.db` if it is taken."""
    stem = f"task_app_traces_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    path, number = folder / f"{stem}.db", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}.db"
    return path


class TraceStore:
    """A trace database that is open for writing. Its methods may be called from any thread.

    The folder is made; an existing v3 database (also the original's) is continued. A path that cannot be a trace
    database raises one clear DataError. Use it as a context manager, or call `close`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._connection = open_for_writing(self.path)
        try:
            migrate(self._connection)
        except NewerSchemaError as e:
            self._connection.close()
            raise DataError(f"{self.path} was written by a newer crafter-pipeline ({e}). Update this one.") from e
        except sqlite3.DatabaseError as e:
            self._connection.close()
            raise DataError(f"{self.path}: not a usable trace database ({e}). Choose another path.") from e

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close. If nobody else has the file open it becomes one plain file, as the original's are."""
        with self._lock:
            try:
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA journal_mode = DELETE")
            except sqlite3.Error:
                pass  # somebody reads it, or it is closed already: a WAL database is as good
            self._connection.close()

    def add(self, rollout: Rollout, answer: bytes | None = None, request_digest: str = "") -> bool:
        """Store a finished rollout, with the answer that was given for it, in one transaction.

        Returns False, and changes nothing, if its run_id is stored already.
        """
        session = rollout.run_id
        befores = (None, *rollout.turns)
        encoded = [_EncodedTurn(rollout, turn, before) for turn, before in zip(rollout.turns, befores, strict=False)]
        created_at = r.iso(rollout.created_at)
        messages = sum(len(turn.messages) for turn in encoded)
        head = (session, created_at, len(encoded), 2 * len(encoded), messages, r.dumps(r.session_metadata(rollout)))
        outcome = (
            session,
            rollout.total_reward,
            len(rollout.achievements),
            len(encoded),
            r.iso(rollout.turns[-1].ended_at) if rollout.turns else created_at,
            r.dumps(r.outcome_metadata(rollout)),
        )
        packed = None if answer is None else zlib.compress(answer, 1)
        with self._transaction(f"rollout {session}") as db:
            if db.execute(_SESSION, head).rowcount == 0:
                return False
            step = _last_id(db, "session_timesteps") + 1
            event = _last_id(db, "events") + 1
            db.executemany(_STEP, [t.step(step + i, i) for i, t in enumerate(encoded)])
            db.executemany(_CAIS, [t.cais(event + 2 * i, step + i) for i, t in enumerate(encoded)])
            db.executemany(_ENVIRONMENT, [t.environment(event + 2 * i + 1, step + i) for i, t in enumerate(encoded)])
            db.executemany(_MESSAGE, [(session, step + i, *m) for i, t in enumerate(encoded) for m in t.messages])
            db.executemany(_REWARD, [row for i, t in enumerate(encoded) for row in t.rewards(event + 2 * i + 1)])
            db.execute(_OUTCOME, outcome)
            if packed is not None:
                db.execute("INSERT OR REPLACE INTO rollout_answers VALUES (?,?,?)", (session, request_digest, packed))
        return True

    def answer(self, run_id: str) -> bytes | None:
        """The answer stored with a rollout; None: not stored, or stored without one."""
        with self._lock:
            row = self._connection.execute(
                "SELECT answer FROM rollout_answers WHERE session_id = ?", (run_id,)
            ).fetchone()
        return None if row is None else unpack_answer(row[0])

    def add_attempt(self, run_id: str, error: str, started_at: float | None = None) -> int:
        """Record a failed attempt (Unix seconds; default now) in our own table. Returns its number, from 1 on."""
        with self._transaction(f"attempt at {run_id}") as db:
            row = db.execute("SELECT coalesce(max(attempt), 0) FROM rollout_attempts WHERE run_id = ?", (run_id,))
            attempt = int(row.fetchone()[0]) + 1
            db.execute(
                "INSERT INTO rollout_attempts (run_id, attempt, started_at, error) VALUES (?,?,?,?)",
                (run_id, attempt, r.iso(time.time() if started_at is None else started_at), error),
            )
        return attempt

    @contextmanager
    def _transaction(self, what: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            db = self._connection
            try:
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    db.execute("COMMIT")
                finally:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
            except sqlite3.OperationalError as e:
                raise DataError(f"{self.path}: cannot store {what} ({e}). Check disk space and other writers.") from e


def unpack_answer(blob: bytes) -> bytes:
    """The answer of a `rollout_answers` row."""
    return zlib.decompress(blob)


def _last_id(db: sqlite3.Connection, table: str) -> int:
    """Highest id ever given in an AUTOINCREMENT table. Inside the write transaction, so nobody can be faster."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return 0 if row is None else int(row[0])


class _EncodedTurn:
    """A turn with its JSON made, outside the lock; the methods add the ids that are known inside."""

    __slots__ = ("_turn", "_session", "_cais", "_environment", "_rewards", "_started", "_ended", "messages")

    def __init__(self, rollout: Rollout, turn: Turn, before: Turn | None) -> None:
        self._turn, self._session = turn, rollout.run_id
        reply = turn.reply
        self._started, self._ended = r.iso(turn.started_at), r.iso(turn.ended_at)
        self._cais = (
            f"policy:{rollout.policy}",
            turn.started_at + reply.latency_ms / 1000.0,
            rollout.model,
            rollout.provider,
            reply.prompt_tokens,
            reply.completion_tokens,
            reply.prompt_tokens + reply.completion_tokens,
            round(reply.latency_ms),
            r.dumps([r.call_record(rollout, turn, before)]),
            r.dumps(r.cais_metadata(rollout, turn)),
        )
        self._environment = (
            f"environment:{rollout.environment}",
            turn.ended_at,
            turn.reward,
            *r.ending(rollout, turn),
            r.dumps({"text": turn.observation}),
            r.dumps({"text": turn.next_observation}),
            r.dumps(r.environment_metadata(rollout, turn)),
        )
        note = r.dumps(r.annotation(turn))
        unlocked = float(len(turn.unlocked))
        self._rewards: list[tuple[Any, ...]] = [
            (turn.index, turn.reward, "sparse", None, self._ended),
            (turn.index, unlocked, "achievement_delta", note, self._ended),
        ]
        if turn.unlocked:
            self._rewards.append((turn.index, unlocked, "unique_achievement_delta", note, self._ended))
        self.messages = [
            (
                m.message_type,
                r.dumps(m.content),
                m.event_time,
                r.dumps(m.metadata),
            )
            for m in r.message_records(rollout, turn)
        ]

    def step(self, step: int, position: int) -> tuple[Any, ...]:
        turn = self._turn
        return (
            step,
            self._session,
            r.step_id(turn),
            position,
            turn.index,
            self._started,
            self._ended,
            len(self.messages),
        )

    def cais(self, event: int, step: int) -> tuple[Any, ...]:
        return (event, self._session, step, *self._cais)

    def environment(self, event: int, step: int) -> tuple[Any, ...]:
        return (event, self._session, step, *self._environment)

    def rewards(self, event: int) -> list[tuple[Any, ...]]:
        return [(event, self._session, *row) for row in self._rewards]
