"""Takes rollouts out of a trace database: whole ones, from every table. First a plan, then the deed."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.traces import ledger
from crafter_pipeline.traces import records as r
from crafter_pipeline.traces.connect import TraceConnection, is_busy, open_for_writing, remedy
from crafter_pipeline.traces.reader import Attempt, SessionInfo, list_attempts, list_sessions

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_BATCH = 500
"""Ids in one statement."""
_LAST = ("events", "session_timesteps", "session_traces")
"""Tables that others point to, in the order in which they may lose rows."""


@dataclass(frozen=True, slots=True)
class PruneRules:
    """What goes: rollouts that every rule names. Without a rule nothing does."""

    older_than_seconds: float | None = None
    keep_last: int | None = None
    """All but the newest so many of a database; with other rules: those among the newest are spared."""
    models: tuple[str, ...] = ()
    """Rollouts of one of these models."""
    below_reward: float | None = None
    """Rollouts whose return is lower; one without a return stays."""
    attempts: bool = False
    """Failed attempts: all, or those `older_than_seconds`."""

    @property
    def names_rollouts(self) -> bool:
        """Whether any rule is about rollouts."""
        if self.keep_last is not None or self.models or self.below_reward is not None:
            return True
        return self.older_than_seconds is not None and not self.attempts


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What would go from one database."""

    path: Path
    rollouts: tuple[SessionInfo, ...]
    attempts: tuple[Attempt, ...]
    kept: int
    """Rollouts that stay."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "path": str(self.path),
            "rollouts": [info.session_id for info in self.rollouts],
            "turns": sum(info.turns for info in self.rollouts),
            "attempts": len(self.attempts),
            "kept": self.kept,
        }


def read_age(text: str) -> float:
    """Seconds of an age like 90m, 12h, 30d, 2w. ConfigError for another form."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip())
    if found is None:
        raise ConfigError(f"{text!r} is no age: write a number and m, h, d or w, as 30d.")
    return float(found[1]) * _UNITS[found[2]]


def plan_prune(path: Path, rules: PruneRules, now: float | None = None) -> PrunePlan:
    """What the rules take from a database. Changes nothing. ConfigError without a rule.

    Args:
        now: Unix seconds; default: now.
    """
    if not rules.names_rollouts and not rules.attempts:
        raise ConfigError(
            "Nothing says what is to go. Give one of --older-than, --keep-last, --model, --below-reward, --attempts."
        )
    now = time.time() if now is None else now
    sessions = list_sessions(path)
    spared = set()
    if rules.keep_last is not None:
        spared = {info.session_id for info in sessions[len(sessions) - rules.keep_last :]} if rules.keep_last else set()
    going = [
        info
        for info in (sessions if rules.names_rollouts else ())
        if info.session_id not in spared and _named(info, rules, now)
    ]
    attempts = [a for a in (list_attempts(path) if rules.attempts else ()) if _old(a.started_at, rules, now)]
    return PrunePlan(path, tuple(going), tuple(attempts), len(sessions) - len(going))


def prune(plan: PrunePlan) -> int:
    """Do what the plan says, all or nothing, and give the space back. Returns the bytes by which the file shrank.

    DataError if another process has the database open: its server must end first.
    """
    ledger.forget(plan.path.parent)
    before = plan.path.stat().st_size
    with _alone(plan.path) as db:
        db.execute("BEGIN EXCLUSIVE")
        try:
            _delete(db, plan)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        try:
            db.execute("VACUUM")
        except sqlite3.OperationalError as e:
            raise DataError(
                f"{plan.path}: the rollouts are removed, but their space could not be given back ({e}). "
                "Free as much space as the file has, then run `sqlite3 FILE VACUUM`."
            ) from e
    return before - plan.path.stat().st_size


def _named(info: SessionInfo, rules: PruneRules, now: float) -> bool:
    if rules.models and info.model not in rules.models:
        return False
    if rules.below_reward is not None and (info.reward is None or info.reward >= rules.below_reward):
        return False
    return _old(info.created_at, rules, now)


def _old(created_at: str, rules: PruneRules, now: float) -> bool:
    if rules.older_than_seconds is None:
        return True
    created = r.unix(created_at)
    return created is not None and created < now - rules.older_than_seconds


@contextmanager
def _alone(path: Path) -> Iterator[TraceConnection]:
    """A connection to a database that nobody else has open, not even to read."""
    with closing(open_for_writing(path)) as db:
        try:
            db.execute("PRAGMA busy_timeout = 0")
            (mode,) = db.execute("PRAGMA journal_mode = DELETE").fetchone()  # of a WAL file only who is alone may
            if mode != "delete":
                raise _in_use(path)
            yield db
        except sqlite3.OperationalError as e:
            if is_busy(e):
                raise _in_use(path) from e
            raise DataError(f"{path}: nothing was removed ({e}). {remedy(e)}") from e


def _in_use(path: Path) -> DataError:
    return DataError(f"{path} is open in another process (a task app that traces to it?). End that one first.")


def _delete(db: sqlite3.Connection, plan: PrunePlan) -> None:
    ids = [info.session_id for info in plan.rollouts]
    for table in _tables_of_sessions(db):
        for start in range(0, len(ids), _BATCH):
            some = ids[start : start + _BATCH]
            db.execute(f'DELETE FROM "{table}" WHERE session_id IN ({", ".join("?" * len(some))})', some)
    if plan.attempts:
        db.executemany(
            "DELETE FROM rollout_attempts WHERE run_id = ? AND attempt = ?",
            [(attempt.run_id, attempt.attempt) for attempt in plan.attempts],
        )


def _tables_of_sessions(db: sqlite3.Connection) -> Sequence[str]:
    """Every table with a column session_id, those that others point to last."""
    names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    with_session = [n for n in names if any(c[1] == "session_id" for c in db.execute(f'PRAGMA table_info("{n}")'))]
    first = [name for name in with_session if name not in _LAST]
    return [*first, *(name for name in _LAST if name in with_session)]
