"""Many trace databases into one of ours: every rollout once, with its stored answer; failed attempts too."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from crafter_pipeline.contracts import Rollout
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import records as r
from crafter_pipeline.traces.reader import Damage, has_table, list_attempts, open_traces, read_rollouts
from crafter_pipeline.traces.store import TraceStore, unpack_answer

_PENDING = 32
"""Rollouts that are written while the next is read."""
_ANSWER = "SELECT answer, request_digest FROM rollout_answers WHERE session_id = ?"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two rollouts of one run id: the first was kept."""

    run_id: str
    kept: Path
    left_out: Path

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {"run_id": self.run_id, "kept": str(self.kept), "left_out": str(self.left_out)}


@dataclass(slots=True)
class Merged:
    """What a merge did."""

    out: Path
    databases: int
    rollouts: int = 0
    answers: int = 0
    attempts: int = 0
    same: int = 0
    """Rollouts that were there already, equal in everything."""
    conflicts: list[Conflict] = field(default_factory=list)
    damaged: list[Damage] = field(default_factory=list)
    """Rollouts that cannot be read, left out."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "out": str(self.out),
            "databases": self.databases,
            "rollouts": self.rollouts,
            "answers": self.answers,
            "attempts": self.attempts,
            "same": self.same,
            "conflicts": [conflict.to_json() for conflict in self.conflicts],
            "damaged": [str(damage) for damage in self.damaged],
        }


def rollout_digest(rollout: Rollout) -> str:
    """Equal for rollouts that are equal in everything."""
    try:
        text = orjson.dumps(rollout, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # an integer beyond 64 bits
        text = repr(rollout).encode("utf-8", "backslashreplace")
    return hashlib.sha256(text).hexdigest()


def merge(dbs: Sequence[Path], out: Path, advance: Callable[[], None] = lambda: None) -> Merged:
    """Write every rollout of `dbs` to the new database `out`, which appears whole or not at all.

    Of two rollouts with one run id the first in the order of `dbs` is kept. Failed attempts are kept once.

    Args:
        advance: Called after each rollout.

    Raises:
        DataError: `out` exists, nothing can be read, or the disk is full.
    """
    if out.exists():
        raise DataError(f"{out} exists already. Name a new file for --out, or remove it first.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.")
    except OSError as e:
        raise DataError(f"{out} cannot be written ({e.strerror}). Choose another path for --out.") from e
    merged = Merged(out, len(dbs))
    with folder:
        temporary = Path(folder.name) / out.name
        with TraceStore(temporary) as store:
            _copy(dbs, store, merged, advance)
        if not merged.rollouts:
            why = f" {merged.damaged[0]}." if merged.damaged else ""
            raise DataError(f"There is no rollout in the {len(dbs)} databases that can be read.{why}")
        _settle(temporary)
        try:
            os.link(temporary, out)  # unlike a rename it never replaces what appeared meanwhile
        except FileExistsError:
            raise DataError(f"{out} exists already. Name a new file for --out.") from None
        except OSError:  # a file system without links
            os.replace(temporary, out)
    return merged


def _copy(dbs: Sequence[Path], store: TraceStore, merged: Merged, advance: Callable[[], None]) -> None:
    seen: dict[str, tuple[str, Path]] = {}
    attempts: set[tuple[str, str, str]] = set()
    pending: deque[Future[bool]] = deque()
    for path in dbs:
        answers = _Answers(path)
        with closing(answers):
            for rollout in read_rollouts(path, damaged=merged.damaged.append):
                advance()
                digest = rollout_digest(rollout)
                if (known := seen.get(rollout.run_id)) is not None:
                    if known[0] == digest:
                        merged.same += 1
                    else:
                        merged.conflicts.append(Conflict(rollout.run_id, known[1], path))
                    continue
                seen[rollout.run_id] = (digest, path)
                answer, request_digest = answers.of(rollout.run_id)
                pending.append(store.submit(rollout, answer, request_digest))
                if len(pending) >= _PENDING:
                    pending.popleft().result()
                merged.rollouts += 1
                merged.answers += answer is not None
        for attempt in list_attempts(path):
            key = (attempt.run_id, attempt.started_at, attempt.error)
            if key not in attempts:
                attempts.add(key)
                store.add_attempt(attempt.run_id, attempt.error, r.unix(attempt.started_at))
                merged.attempts += 1
    for write in pending:
        write.result()


class _Answers:
    """The stored answers of one database; the original's have none."""

    def __init__(self, path: Path) -> None:
        self._path, self._db = path, open_traces(path)
        self._any = has_table(self._db, "rollout_answers")

    def of(self, run_id: str) -> tuple[bytes | None, str]:
        """(answer, request digest)."""
        if not self._any:
            return None, ""
        try:
            row = self._db.execute(_ANSWER, (run_id,)).fetchone()
            return (None, "") if row is None else (unpack_answer(row[0]), str(row[1]))
        except (sqlite3.DatabaseError, zlib.error) as e:
            raise DataError(
                f"{self._path}: the stored answer of {run_id} cannot be read ({e}). Leave the file out."
            ) from e

    def close(self) -> None:
        self._db.close()


def _settle(path: Path) -> None:
    """The bytes are on the disk before the file gets its name."""
    with path.open("rb") as f:
        os.fsync(f.fileno())
