"""Rollouts from a trace database, ours (exact) or the original's (as far as the facts are there)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crafter_pipeline.contracts import Rollout
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import records as r
from crafter_pipeline.traces.connect import open_read_only

_SESSIONS = """
SELECT s.session_id, s.created_at, s.num_timesteps, s.metadata, o.total_reward, o.reward_metadata
FROM session_traces s
LEFT JOIN outcome_rewards o
  ON o.id = (SELECT min(id) FROM outcome_rewards WHERE session_id = s.session_id)
ORDER BY s.created_at, s.session_id
"""
_SESSION = _SESSIONS.replace("ORDER BY", "WHERE s.session_id = ? ORDER BY")
_STEPS = "SELECT * FROM session_timesteps WHERE session_id = ? ORDER BY step_index, id"
_EVENTS = """
SELECT timestep_id, event_type, event_time, model_name, provider, call_records, reward, terminated, truncated,
       system_state_before, system_state_after, metadata
FROM events WHERE session_id = ? ORDER BY id
"""
_ANSWERS = "SELECT timestep_id, content FROM messages WHERE session_id = ? AND message_type = 'assistant' ORDER BY id"
_DELTAS = """
SELECT turn_number, annotation FROM event_rewards
WHERE session_id = ? AND reward_type = 'unique_achievement_delta' ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One stored rollout, without its turns."""

    session_id: str
    created_at: str
    """ISO 8601."""
    environment: str
    seed: int | None
    model: str
    """Empty where the writer did not say (the original's server)."""
    turns: int
    reward: float | None
    """Episode return; None: not recorded."""
    achievements: tuple[str, ...]


def trace_databases(folder: Path) -> list[Path]:
    """Every `*.db` file of a folder, by name; empty if there is no such folder."""
    return sorted(path for path in folder.glob("*.db") if path.is_file())


def list_sessions(path: Path | str) -> list[SessionInfo]:
    """Every rollout of a trace database, oldest first. DataError if it is none."""
    with closing(_open(Path(path))) as db:
        return [_info(row) for row in _rows(db, Path(path), _SESSIONS)]


def read_rollouts(path: Path | str, run_ids: Iterable[str] | None = None) -> Iterator[Rollout]:
    """The rollouts of a trace database, one in memory at a time: all, oldest first, or `run_ids` in their order.

    DataError if `path` is no trace database, or it lacks one of the run_ids.
    """
    path = Path(path)
    with closing(_open(path)) as db:
        if run_ids is None:
            for row in _rows(db, path, _SESSIONS):
                yield _rollout(db, row)
            return
        for run_id in run_ids:
            one = next(_rows(db, path, _SESSION, run_id), None)
            if one is None:
                raise DataError(f"{path} holds no rollout {run_id}. `list_sessions` says what it holds.")
            yield _rollout(db, one)


def _open(path: Path) -> sqlite3.Connection:
    try:
        db = open_read_only(path)
    except sqlite3.DatabaseError as e:
        raise DataError(f"{path}: cannot be read ({e}). Is it a trace database?") from e
    db.row_factory = sqlite3.Row
    return db


def _rows(db: sqlite3.Connection, path: Path, sql: str, *parameters: str) -> Iterator[sqlite3.Row]:
    try:
        yield from db.execute(sql, parameters).fetchall()
    except sqlite3.DatabaseError as e:
        raise DataError(f"{path}: not a readable v3 trace database ({e}).") from e


def _info(row: sqlite3.Row) -> SessionInfo:
    metadata, outcome = r.loads(row["metadata"]) or {}, r.loads(row["reward_metadata"])
    seed = r.first_of(metadata, "seed", "env_seed", "eval_seed")
    return SessionInfo(
        session_id=row["session_id"],
        created_at=row["created_at"],
        environment=str(metadata.get("env_name") or ""),
        seed=None if seed is None else int(seed),
        model=str(metadata.get("model") or ""),
        turns=int(row["num_timesteps"]),
        reward=None if row["total_reward"] is None else float(row["total_reward"]),
        achievements=tuple(metadata.get("final_achievements") or r.names_in(outcome)),
    )


def _rollout(db: sqlite3.Connection, row: sqlite3.Row) -> Rollout:
    session = row["session_id"]
    steps: dict[Any, r.StepRecord] = {}
    by_turn: dict[Any, r.StepRecord] = {}
    for step in db.execute(_STEPS, (session,)):
        index = step["step_index"] if step["turn_number"] is None else step["turn_number"]
        record = r.StepRecord(index=int(index), started_at=r.unix(step["started_at"]))
        steps[step["id"]] = by_turn[step["turn_number"]] = record
    for event in db.execute(_EVENTS, (session,)):
        record_of_event = steps.get(event["timestep_id"])
        if record_of_event is not None:
            attach_event(record_of_event, event["event_type"], _parsed(event))
    for answer in db.execute(_ANSWERS, (session,)):
        if answer["timestep_id"] in steps:
            steps[answer["timestep_id"]].assistant = r.loads(answer["content"])
    for delta in db.execute(_DELTAS, (session,)):
        if delta["turn_number"] in by_turn:
            by_turn[delta["turn_number"]].unlocked = r.names_in(r.loads(delta["annotation"]))
    return r.build_rollout(
        session,
        r.unix(row["created_at"]) or 0.0,
        r.loads(row["metadata"]) or {},
        list(steps.values()),
        total_reward=row["total_reward"],
        achievements=r.names_in(r.loads(row["reward_metadata"])),
    )


def attach_event(step: r.StepRecord, event_type: str, event: r.Json) -> None:
    """Put an event into its step; the first of a kind counts (one decision is one model call)."""
    if event_type == "cais" and step.cais is None:
        step.cais = event
    elif event_type == "environment" and step.environment is None:
        step.environment = event


def _parsed(event: sqlite3.Row) -> r.Json:
    parsed = dict(event)
    for name in ("call_records", "system_state_before", "system_state_after", "metadata"):
        parsed[name] = r.loads(parsed[name])
    return parsed
