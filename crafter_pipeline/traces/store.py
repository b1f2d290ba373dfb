"""The trace store: one writer, a rollout whole or not at all, storing twice is storing once.

Every store has one writer thread. What waits for it is committed together, so that many players cost few transactions;
each rollout has a savepoint of its own in that transaction, so that one that cannot be stored fails alone.
"""

from __future__ import annotations

import itertools
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from crafter_pipeline.contracts import Rollout, Turn
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import records as r
from crafter_pipeline.traces.connect import TraceConnection, is_busy, open_for_writing, open_read_only, remedy
from crafter_pipeline.traces.schema import prepare

MOST_AT_ONCE = 64
"""Rollouts in one transaction: the wait of those behind it stays short."""

_SESSION = "INSERT OR IGNORE INTO session_traces VALUES (?,?,?,?,?,?,NULL,NULL)"
_STEP = "INSERT INTO session_timesteps VALUES (?,?,?,?,?,?,?,2,?,'{}')"
_EVENT = (
    "INSERT INTO events (id, session_id, timestep_id, event_type, system_instance_id, event_time, created_at,"
    " model_name, provider, input_tokens, output_tokens, total_tokens, latency_ms, call_records,"
    " reward, terminated, truncated, system_state_before, system_state_after, metadata)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
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
    """`<folder>/task_app_traces_<YYYY-MM-DD_HH-MM-SS>.db` in local time; `_2`, `_3`, … before `.db` if it is taken.

    The file is made, empty, so that of two task apps that start in the same second each has its own.
    """
    stem = f"task_app_traces_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    for number in itertools.count(1):
        path = folder / (f"{stem}.db" if number == 1 else f"{stem}_{number}.db")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
            break
        except FileExistsError:
            if not folder.is_dir():
                break  # who opens the database says what is wrong with the folder
        except OSError:
            break
    return path


class TraceStore:
    """A trace database that is open for writing. Its methods may be called from any thread.

    The folder is made; an existing v3 database (also the original's) is continued. A path that cannot be a trace
    database raises one clear DataError. Use it as a context manager, or call `close`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._connection = open_for_writing(self.path)
        """Of the writer thread."""
        try:
            prepare(self._connection, self.path)
            self._reader = open_read_only(self.path)
        except BaseException:
            self._connection.close()
            raise
        self._reading = threading.Lock()
        self._writer = _Writer(self._connection, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what waits, and close. If nobody else has the file open it becomes one plain file, as the original's
        are."""
        self._writer.stop()
        with self._reading:
            self._reader.close()
        try:
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error:
            pass  # somebody reads it, or it is closed already: a WAL database is as good
        self._connection.close()

    def add(self, rollout: Rollout, answer: bytes | None = None, request_digest: str = "") -> bool:
        """Store a finished rollout, with the answer that was given for it. It is committed when this returns.

        Returns False, and changes nothing, if its run_id is stored already. DataError if it cannot be stored.
        """
        return self.submit(rollout, answer, request_digest).result()

    def submit(self, rollout: Rollout, answer: bytes | None = None, request_digest: str = "") -> Future[bool]:
        """`add` for who cannot wait: the future is done when the rollout is committed."""
        # Making the JSON is half of the work. The writer does it, so that an event loop can hand in a long rollout.
        return self._writer.submit(
            f"rollout {rollout.run_id}", lambda db: _EncodedRollout(rollout, answer, request_digest).write(db)
        )

    def annotate(self, run_id: str, facts: Mapping[str, Any]) -> bool:
        """Lay what an evaluation found (`records.EVALUATION_KEYS`) over a stored rollout's metadata; all else stays.

        False if the rollout is not stored, or its metadata is damaged. DataError if it cannot be written.
        """

        def write(db: sqlite3.Connection) -> bool:
            row = db.execute("SELECT metadata FROM session_traces WHERE session_id = ?", (run_id,)).fetchone()
            metadata = r.loads(row[0]) if row is not None else None
            if not isinstance(metadata, dict):
                return False
            metadata |= facts
            if isinstance(metadata.get("further"), dict):
                metadata["further"] |= facts
            db.execute("UPDATE session_traces SET metadata = ? WHERE session_id = ?", (r.dumps(metadata), run_id))
            return True

        found: bool = self._writer.submit(f"the scores of {run_id}", write).result()
        return found

    def answer(self, run_id: str) -> bytes | None:
        """The answer stored with a rollout; None: not stored, or stored without one. Waits for no writer."""
        with self._reading:
            row = self._reader.execute("SELECT answer FROM rollout_answers WHERE session_id = ?", (run_id,)).fetchone()
        return None if row is None else unpack_answer(row[0])

    def add_attempt(self, run_id: str, error: str, started_at: float | None = None) -> int:
        """Record a failed attempt (Unix seconds; default now) in our own table. Returns its number, from 1 on."""
        return self.submit_attempt(run_id, error, started_at).result()

    def submit_attempt(self, run_id: str, error: str, started_at: float | None = None) -> Future[int]:
        """`add_attempt` for who cannot wait."""
        started = r.iso(time.time() if started_at is None else started_at)

        def write(db: sqlite3.Connection) -> int:
            row = db.execute("SELECT coalesce(max(attempt), 0) FROM rollout_attempts WHERE run_id = ?", (run_id,))
            attempt = int(row.fetchone()[0]) + 1
            db.execute(
                "INSERT INTO rollout_attempts (run_id, attempt, started_at, error) VALUES (?,?,?,?)",
                (run_id, attempt, started, error),
            )
            return attempt

        return self._writer.submit(f"attempt at {run_id}", write)


def unpack_answer(blob: bytes) -> bytes:
    """The answer of a `rollout_answers` row."""
    return zlib.decompress(blob)


# --------------------------------------------------------------------------- the writer


@dataclass(slots=True)
class _Job:
    """Something to be written whole."""

    what: str
    write: Callable[[sqlite3.Connection], Any]
    future: Future[Any] = field(default_factory=Future)
    result: Any = None
    error: Exception | None = None


class _Writer:
    """The thread that writes, in groups."""

    def __init__(self, connection: TraceConnection, path: Path) -> None:
        self._connection, self._path = connection, path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)
        self._thread.start()

    def submit(self, what: str, write: Callable[[sqlite3.Connection], Any]) -> Future[Any]:
        """Have `write` called in a transaction; the future holds what it returned once that is committed."""
        job = _Job(what, write)
        with self._closing:  # nothing is queued behind the end, where nobody would see it
            if self._closed:
                raise DataError(f"{self._path}: cannot store {what}, the store is closed.")
            self._jobs.put(job)
        return job.future

    def stop(self) -> None:
        """Write what waits, and end. Stopping twice is stopping once."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            group = [job]
            while len(group) < MOST_AT_ONCE and not self._jobs.empty():
                if (job := self._jobs.get()) is None:
                    self._jobs.put(None)  # the next round ends
                    break
                group.append(job)
            group = [job for job in group if job.future.set_running_or_notify_cancel()]
            self._write(group)
            for job in group:
                if job.error is None:
                    job.future.set_result(job.result)
                else:
                    job.future.set_exception(job.error)

    def _write(self, group: Sequence[_Job]) -> None:
        """Commit a group. One that fails as a whole (a full disk) is tried again one by one: some may still fit."""
        try:
            self._commit(group)
        except sqlite3.Error as e:
            if len(group) > 1 and not is_busy(e):  # who waited for a lock in vain does not wait again
                for job in group:
                    self._write([job])
                return
            for job in group:
                job.error = DataError(
                    f"{self._path}: cannot store {job.what} ({e}). Nothing of it was written. {remedy(e)}"
                )
        except Exception as e:  # a bug: it goes to whoever asked
            for job in group:
                job.error = e

    def _commit(self, group: Sequence[_Job]) -> None:
        db = self._connection
        db.execute("BEGIN IMMEDIATE")
        try:
            for job in group:
                job.error = None
                db.execute("SAVEPOINT job")
                try:
                    job.result = job.write(db)
                except Exception as e:
                    if isinstance(e, sqlite3.OperationalError) or type(e) is sqlite3.DatabaseError:
                        raise  # of the file, not of this rollout
                    job.error = e
                    db.execute("ROLLBACK TO job")
                db.execute("RELEASE job")
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")


# --------------------------------------------------------------------------- rows


class _EncodedRollout:
    """A rollout with its JSON made; `write` adds the ids that are known inside the transaction."""

    __slots__ = ("_turns", "_head", "_outcome", "_answer")

    def __init__(self, rollout: Rollout, answer: bytes | None, request_digest: str) -> None:
        turns = rollout.turns
        around = zip((None, *turns), turns, (*turns[1:], None), strict=False)
        self._turns = [_EncodedTurn(rollout, turn, before, following) for before, turn, following in around]
        created_at = r.iso(rollout.created_at)
        self._head = (
            rollout.run_id,
            created_at,
            len(turns),
            2 * len(turns),
            sum(len(turn.messages) for turn in self._turns),
            r.dumps(r.session_metadata(rollout)),
        )
        self._outcome = (
            rollout.run_id,
            rollout.total_reward,
            len(rollout.achievements),
            len(turns),
            r.iso(turns[-1].ended_at) if turns else created_at,
            r.dumps(r.outcome_metadata(rollout)),
        )
        self._answer = None if answer is None else (rollout.run_id, request_digest, zlib.compress(answer, 1))

    def write(self, db: sqlite3.Connection) -> bool:
        """Insert every row. False, and nothing is written, if the run_id is there already."""
        if db.execute(_SESSION, self._head).rowcount == 0:
            return False
        turns, session = self._turns, self._head[0]
        step = _last_id(db, "session_timesteps") + 1
        event = _last_id(db, "events") + 1
        db.executemany(_STEP, [t.step(step + i, i) for i, t in enumerate(turns)])
        # in the order of their ids: rows that are put between others leave pages half empty
        db.executemany(_EVENT, [row for i, t in enumerate(turns) for row in t.events(event + 2 * i, step + i)])
        db.executemany(_MESSAGE, [(session, step + i, *m) for i, t in enumerate(turns) for m in t.messages])
        db.executemany(_REWARD, [row for i, t in enumerate(turns) for row in t.rewards(event + 2 * i + 1)])
        db.execute(_OUTCOME, self._outcome)
        if self._answer is not None:
            db.execute("INSERT OR REPLACE INTO rollout_answers VALUES (?,?,?)", self._answer)
        return True


def _last_id(db: sqlite3.Connection, table: str) -> int:
    """Highest id ever given in an AUTOINCREMENT table. Inside the write transaction, so nobody can be faster."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
    return 0 if row is None else int(row[0])


class _EncodedTurn:
    """A turn with its JSON made; the methods add the ids."""

    __slots__ = ("_turn", "_session", "_cais", "_environment", "_rewards", "_started", "_ended", "messages")

    def __init__(self, rollout: Rollout, turn: Turn, before: Turn | None, following: Turn | None) -> None:
        self._turn, self._session = turn, rollout.run_id
        reply = turn.reply
        self._started, self._ended = r.iso(turn.started_at), r.iso(turn.ended_at)
        self._cais = (
            "cais",
            f"policy:{rollout.policy}",
            answered_at := r.answered_at(turn),
            r.iso(answered_at),
            rollout.model,
            rollout.provider,
            reply.prompt_tokens,
            reply.completion_tokens,
            reply.prompt_tokens + reply.completion_tokens,
            round(reply.latency_ms),
            r.dumps([r.call_record(rollout, turn, before)]),
            *(None,) * 5,
            r.dumps(r.cais_metadata(turn)),
        )
        after = r.state_after(turn, following)
        self._environment = (
            "environment",
            f"environment:{rollout.environment}",
            turn.ended_at,
            *(None,) * 8,
            turn.reward,
            *r.ending(rollout, turn),
            r.dumps({"text": turn.observation}),
            None if after is None else r.dumps(after),
            r.dumps(r.environment_metadata(turn)),
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

    def events(self, event: int, step: int) -> list[tuple[Any, ...]]:
        """The model's event and the environment's, in this order."""
        return [(event, self._session, step, *self._cais), (event + 1, self._session, step, *self._environment)]

    def rewards(self, event: int) -> list[tuple[Any, ...]]:
        return [(event, self._session, *row) for row in self._rewards]
