"""Rollouts from a trace database, ours (exact) or the original's (as far as the facts are there).

One damaged rollout never hides the others: whoever reads many gives a `damaged` callback, which is told of each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from crafter_pipeline.contracts import Rollout
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import records as r
from crafter_pipeline.traces.connect import TraceConnection, is_busy, open_read_only
from crafter_pipeline.traces.schema import refuse_newer

READ_TABLES = ("session_traces", "session_timesteps", "events", "messages", "outcome_rewards", "event_rewards")
"""Without these a file is no v3 trace database."""

# `+` before a column: without it SQLite may choose the index of that column, which holds every session's rows.
_IDS = "SELECT session_id FROM session_traces ORDER BY created_at, session_id"
_HEAD = """
SELECT s.session_id, s.created_at, s.num_timesteps, s.metadata, o.total_reward, o.reward_metadata
FROM session_traces s
LEFT JOIN outcome_rewards o
  ON o.id = (SELECT min(id) FROM outcome_rewards WHERE session_id = s.session_id)
WHERE s.session_id = ?
"""
_STEPS = "SELECT * FROM session_timesteps WHERE session_id = ? ORDER BY step_index, id"
_EVENTS = """
SELECT timestep_id, event_type, event_time, model_name, provider, input_tokens, output_tokens, call_records,
       reward, terminated, truncated, system_state_before, system_state_after, metadata, system_instance_id
FROM events WHERE session_id = ? ORDER BY id
"""
_ANSWERS = "SELECT timestep_id, content FROM messages WHERE session_id = ? AND +message_type = 'assistant' ORDER BY id"
_DELTAS = """
SELECT turn_number, annotation FROM event_rewards
WHERE session_id = ? AND +reward_type = 'unique_achievement_delta' ORDER BY id
"""
_MODEL = """
SELECT model_name, provider FROM events WHERE session_id = ? AND +event_type = 'cais'
GROUP BY model_name, provider ORDER BY count(*) DESC, model_name, provider LIMIT 1
"""
_ENVIRONMENT = """
SELECT system_instance_id FROM events WHERE session_id = ? AND +event_type = 'environment' ORDER BY id LIMIT 1
"""
_MATCHES = """
SELECT session_id FROM session_traces
WHERE session_id = :name OR substr(session_id, 1, length(:name)) = :name
ORDER BY session_id = :name DESC, session_id
"""
_ATTEMPTS = "SELECT run_id, attempt, started_at, error FROM rollout_attempts ORDER BY id"


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One stored rollout, without its turns."""

    session_id: str
    created_at: str
    """ISO 8601."""
    environment: str
    seed: int | None
    model: str
    """Empty where no event names one."""
    provider: str
    turns: int
    reward: float | None
    """Episode return; None: not recorded."""
    achievements: tuple[str, ...]
    stop_reason: str
    """Empty where the writer did not say (the original)."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What of a stored rollout cannot be read."""

    path: Path
    session_id: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: rollout {self.session_id} is damaged: {self.what}"


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """One rollout and what of it cannot be read."""

    path: Path
    session_id: str
    rollout: Rollout | None
    """None: not even its frame can be read. Where there are problems, what they name is empty."""
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A rollout that failed before there was anything to keep."""

    run_id: str
    attempt: int
    """Its number, from 1 on."""
    started_at: str
    """ISO 8601."""
    error: str


OnDamage = Callable[[Damage], None]


def trace_databases(folder: Path) -> list[Path]:
    """Every `*.db` file of a folder, by name; empty if there is no such folder."""
    return sorted(path for path in folder.glob("*.db") if path.is_file())


def open_traces(path: Path) -> TraceConnection:
    """A read-only connection to a trace database, ours or the original's; rows have names.

    DataError, one sentence, for a file that is missing, no database, damaged, locked, empty, half made or newer.
    """
    with ExitStack() as unless_whole:
        try:
            db = unless_whole.enter_context(closing(open_read_only(path)))
            db.row_factory = sqlite3.Row
            _check_schema(db, path)
        except sqlite3.DatabaseError as e:
            raise DataError(f"{path}: cannot be read ({e}). {_remedy(e)}") from e
        unless_whole.pop_all()
    return db


def list_sessions(path: Path | str, damaged: OnDamage | None = None) -> list[SessionInfo]:
    """Every rollout of a trace database, oldest first.

    DataError if it is none. A head that cannot be read in part is told to `damaged`, and listed with what is left.
    """
    path = Path(path)
    with closing(open_traces(path)) as db:
        return [_info(db, path, head, damaged) for head in _heads(db, path, None)]


def read_rollouts(
    path: Path | str, run_ids: Iterable[str] | None = None, damaged: OnDamage | None = None
) -> Iterator[Rollout]:
    """The rollouts of a trace database, one in memory at a time: all, oldest first, or `run_ids` in their order.

    Args:
        damaged: Told of each rollout that cannot be read, which is left out; default: a DataError.

    Raises:
        DataError: `path` is no trace database, or it lacks one of the run_ids.
    """
    for stored in read_stored(path, run_ids):
        if stored.rollout is not None and not stored.problems:
            yield stored.rollout
            continue
        damage = Damage(stored.path, stored.session_id, "; ".join(stored.problems))
        if damaged is None:
            raise DataError(f"{damage}. `crafter-pipeline traces verify` lists everything that is wrong.")
        damaged(damage)


def read_stored(path: Path | str, run_ids: Iterable[str] | None = None) -> Iterator[StoredRollout]:
    """Like `read_rollouts`, but gives the damaged ones too, with what is left of them."""
    path = Path(path)
    with closing(open_traces(path)) as db:
        for head in _heads(db, path, run_ids):
            rollout, problems = _rollout(db, head)
            yield StoredRollout(path, head["session_id"], rollout, tuple(problems))


def find_rollout(paths: Sequence[Path], run_id: str) -> StoredRollout:
    """The rollout of a run id, or of the beginning of one, in the first database that holds it.

    DataError if none does, or if the beginning fits several.
    """
    found: dict[str, Path] = {}
    for path in paths:
        with closing(open_traces(path)) as db:
            names = [row["session_id"] for row in _rows(db, path, _MATCHES, {"name": run_id})]
        if run_id in names:
            return next(read_stored(path, [run_id]))
        for name in names:
            found.setdefault(name, path)
    if not found:
        none = f"{paths[0]} holds no" if len(paths) == 1 else f"None of the {len(paths)} databases holds a"
        raise DataError(f"{none} rollout {run_id!r}. `crafter-pipeline traces list --in …` shows what there is.")
    if len(found) > 1:
        some = ", ".join(list(found)[:5]) + (", …" if len(found) > 5 else "")
        raise DataError(f"{run_id!r} is the beginning of {len(found)} run ids: {some}. Write more of it.")
    name, path = found.popitem()
    return next(read_stored(path, [name]))


def count_rollouts(path: Path | str) -> int:
    """How many rollouts a trace database holds."""
    path = Path(path)
    with closing(open_traces(path)) as db:
        return int(next(_rows(db, path, "SELECT count(*) FROM session_traces"))[0])


def list_attempts(path: Path | str) -> list[Attempt]:
    """Failed attempts of a trace database of ours, oldest first; the original keeps none."""
    path = Path(path)
    with closing(open_traces(path)) as db:
        if not has_table(db, "rollout_attempts"):
            return []
        return [Attempt(row[0], int(row[1]), row[2], row[3]) for row in _rows(db, path, _ATTEMPTS)]


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    tables = _tables(db)
    missing = [name for name in READ_TABLES if name not in tables]
    if "session_traces" in tables:
        refuse_newer(db, path)
    if not tables:
        raise DataError(f"{path} is empty: there are no traces in it. Name another database.")
    if len(missing) == len(READ_TABLES):
        raise DataError(f"{path} is no trace database: it has none of the tables of schema v3. Name another database.")
    if missing:
        raise DataError(
            f"{path} is a trace database that was never finished: {len(missing)} of {len(READ_TABLES)} tables are "
            f"missing ({', '.join(missing)}). Collect again, or name another database."
        )


def has_table(db: sqlite3.Connection, name: str) -> bool:
    """Whether there is such a table; the original's databases have none of our own."""
    return name in _tables(db)


def _tables(db: sqlite3.Connection) -> set[str]:
    return {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} - {"sqlite_sequence"}


def _remedy(error: sqlite3.DatabaseError) -> str:
    if is_busy(error):
        return "Another process holds it; try again when that one has ended."
    return "Restore it from a copy; `sqlite3 FILE .recover` saves what can be saved."


def _rows(db: sqlite3.Connection, path: Path, sql: str, parameters: Any = ()) -> Iterator[sqlite3.Row]:
    try:
        yield from db.execute(sql, parameters)
    except sqlite3.DatabaseError as e:
        raise DataError(f"{path}: cannot be read ({e}). {_remedy(e)}") from e


def _heads(db: sqlite3.Connection, path: Path, run_ids: Iterable[str] | None) -> Iterator[sqlite3.Row]:
    if run_ids is None:
        names = [row[0] for row in _rows(db, path, _IDS)]
    else:
        names = list(run_ids)
    for name in names:
        head = next(_rows(db, path, _HEAD, (name,)), None)
        if head is not None:
            yield head
        elif run_ids is not None:
            raise DataError(f"{path} holds no rollout {name}. `crafter-pipeline traces list` says what it holds.")


def _info(db: sqlite3.Connection, path: Path, head: sqlite3.Row, damaged: OnDamage | None) -> SessionInfo:
    json = _Json()
    metadata = json.mapping(head["metadata"], "session_traces.metadata")
    outcome = json.read(head["reward_metadata"], "outcome_rewards.reward_metadata")
    model, provider = str(metadata.get("model") or ""), str(metadata.get("provider") or "")
    if not model:
        named = next(_rows(db, path, _MODEL, (head["session_id"],)), None)
        if named is not None:
            model, provider = str(named[0] or ""), str(named[1] or "")
    environment = str(metadata.get("env_name") or "")
    if not environment:
        acted = next(_rows(db, path, _ENVIRONMENT, (head["session_id"],)), None)
        environment = _after_colon(None if acted is None else acted[0])
    if json.problems and damaged is not None:
        damaged(Damage(path, head["session_id"], "; ".join(json.problems)))
    return SessionInfo(
        session_id=head["session_id"],
        created_at=str(head["created_at"]),
        environment=environment,
        seed=_whole(_seed(metadata, outcome)),
        model=model,
        provider=provider,
        turns=_whole(head["num_timesteps"]) or 0,
        reward=_number(head["total_reward"]),
        achievements=tuple(map(str, metadata.get("final_achievements") or r.names_in(outcome))),
        stop_reason=str(metadata.get("stop_reason") or ""),
    )


def _rollout(db: sqlite3.Connection, head: sqlite3.Row) -> tuple[Rollout | None, list[str]]:
    """The rollout, and what of it cannot be read: that is empty in it, and without a frame it is None."""
    session, json = head["session_id"], _Json()
    try:
        metadata = json.mapping(head["metadata"], "session_traces.metadata")
        outcome = json.read(head["reward_metadata"], "outcome_rewards.reward_metadata")
        steps = _steps(db, session, json)
        if not metadata.get("env_name"):  # the original's eval: its events tell
            metadata["env_name"] = next(map(_environment_of, filter(_acted, steps)), "")
        if (seed := _seed(metadata, outcome)) is not None:
            metadata["seed"] = seed
        rollout = r.build_rollout(
            session,
            r.unix(head["created_at"]) or 0.0,
            metadata,
            steps,
            total_reward=_number(head["total_reward"]),
            achievements=r.names_in(outcome),
        )
    except sqlite3.DatabaseError as e:
        return None, [*json.problems, f"the file is damaged there ({e})"]
    except DataError as e:
        return None, [*json.problems, str(e).rstrip(".")]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        return None, json.problems or [f"a record has another shape than schema v3 ({type(e).__name__}: {e})"]
    return rollout, json.problems


def _steps(db: sqlite3.Connection, session: str, json: _Json) -> list[r.StepRecord]:
    steps: dict[Any, r.StepRecord] = {}
    by_turn: dict[Any, r.StepRecord] = {}
    for step in db.execute(_STEPS, (session,)):
        index = step["step_index"] if step["turn_number"] is None else step["turn_number"]
        record = r.StepRecord(index=int(index), started_at=r.unix(step["started_at"]))
        steps[step["id"]] = by_turn[step["turn_number"]] = record
    for event in db.execute(_EVENTS, (session,)):
        record_of_event = steps.get(event["timestep_id"])
        if record_of_event is not None:
            attach_event(record_of_event, event["event_type"], _parsed(event, record_of_event.index, json))
    for answer in db.execute(_ANSWERS, (session,)):
        if (record_of_answer := steps.get(answer["timestep_id"])) is not None:
            where = f"turn {record_of_answer.index}, messages.content"
            record_of_answer.assistant = json.read(answer["content"], where)
    for delta in db.execute(_DELTAS, (session,)):
        if delta["turn_number"] in by_turn:
            where = f"turn {delta['turn_number']}, event_rewards.annotation"
            by_turn[delta["turn_number"]].unlocked = r.names_in(json.read(delta["annotation"], where))
    return list(steps.values())


def attach_event(step: r.StepRecord, event_type: str, event: r.Json) -> None:
    """Put an event into its step; the first of a kind counts (one decision is one model call)."""
    if event_type == "cais" and step.cais is None:
        step.cais = event
    elif event_type == "environment" and step.environment is None:
        step.environment = event


def _parsed(event: sqlite3.Row, turn: int, json: _Json) -> r.Json:
    parsed = dict(event)
    for name in ("call_records", "system_state_before", "system_state_after", "metadata"):
        parsed[name] = json.read(parsed[name], f"turn {turn}, {event['event_type']} event's {name}")
    if event["event_type"] == "cais" and event["input_tokens"] is not None:
        _count_tokens(parsed)
    return parsed


def _count_tokens(event: r.Json) -> None:
    """The original counts tokens in the event alone, we in the call record."""
    for record in event["call_records"] or ():
        usage = record["usage"] = dict(record.get("usage") or {})
        for name in ("input_tokens", "output_tokens"):
            if usage.get(name) is None:
                usage[name] = event[name]


class _Json:
    """Reads JSON and remembers where there was none to read."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def read(self, text: Any, where: str) -> Any:
        """Parsed JSON; None where there is none or it is damaged."""
        if not text:
            return None
        try:
            return orjson.loads(text)
        except (orjson.JSONDecodeError, TypeError):
            self.problems.append(f"{where} is no JSON")
            return None

    def mapping(self, text: Any, where: str) -> dict[str, Any]:
        """A JSON object; empty where there is none."""
        value = self.read(text, where)
        if value is None or isinstance(value, dict):
            return value or {}
        self.problems.append(f"{where} is no JSON object")
        return {}


def _acted(step: r.StepRecord) -> bool:
    return step.environment is not None


def _environment_of(step: r.StepRecord) -> str:
    return _after_colon((step.environment or {}).get("system_instance_id"))


def _after_colon(instance: Any) -> str:
    """`crafter` of `environment:crafter`."""
    return str(instance or "").partition(":")[2]


def _seed(metadata: dict[str, Any], outcome: Any) -> Any:
    """The world's seed, where any of the writers puts it; None: nowhere."""
    said = r.first_of(metadata, "seed", "env_seed", "eval_seed")
    return outcome.get("env_seed") if said is None and isinstance(outcome, dict) else said


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
