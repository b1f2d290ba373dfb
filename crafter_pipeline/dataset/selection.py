"""Which rollouts and turns of the trace databases are examples: the rules, in SQL, and what each removed.

The verdicts come first, from the light columns; then the calls' text is read, block by block in the order of the
dataset, so that memory does not grow with the databases.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb

from crafter_pipeline.config import (
    DEV_SEEDS_START,
    GATE_SEEDS_START,
    HELD_OUT_SEEDS_START,
    FilterConfig,
    TurnRules,
)
from crafter_pipeline.config.data import utc
from crafter_pipeline.contracts import Reply
from crafter_pipeline.dataset.manifest import RuleCount, SkippedRow
from crafter_pipeline.environments import ENVIRONMENTS
from crafter_pipeline.errors import ConfigError, DataError, suggest
from crafter_pipeline.traces import records as r
from crafter_pipeline.traces.duck import attach, damage, database_name

Json = dict[str, Any]

SESSION_RULES = (
    "models",
    "providers",
    "environments",
    "splits",
    "task_ids",
    "min_reward",
    "max_reward",
    "min_unique",
    "max_unique",
    "require_achievements",
    "event_rewards",
    "min_judge_scores",
    "max_judge_scores",
    "min_created_at",
    "max_created_at",
    "offset",
    "limit",
)
"""The funnel, in its order; names of FilterConfig."""
ALWAYS_ON = ("stored_twice", "no_turns", "damaged")
"""What stands before it: copies in several databases, rollouts without a model call, unreadable ones."""
TURN_RULES = tuple(f"turns.{name}" for name in TurnRules.model_fields)
"""The turns' funnel, in its order."""

FETCH_ROWS = 1024
"""Rollouts that are fetched at once."""
BLOCK_TURNS = 1024
"""Turns whose text is in memory at once."""
DUCKDB_MEMORY = "320MB"
"""More is spilled to a temporary folder."""
DUCKDB_THREADS = 2
"""Each needs its share of the memory, and SQLite gives no more."""
VALUES_SHOWN = 12
"""Names that an error lists."""


@dataclass(frozen=True, slots=True)
class SelectedRollout:
    """A rollout that passed the session rules."""

    source: int
    """Position of its database in `select`'s paths."""
    session_id: str
    seed: int | None
    environment: str | None
    model: str | None
    """The one that answered most often."""
    provider: str | None
    reward: float | None
    """Episode return."""
    achievements: tuple[str, ...]
    turns: int
    """Model calls."""


class Call:
    """One stored model call, parsed when asked for. The properties raise DataError when it is damaged."""

    def __init__(self, text: str | None, session_tools: str | None, prompts: _Prompts) -> None:
        self._text, self._session_tools, self._prompts = text, session_tools, prompts

    @cached_property
    def record(self) -> Json:
        """The call record."""
        return _record(self._text)

    @cached_property
    def prompt(self) -> list[Json]:
        """The chat messages exactly as the model saw them. To be asked for before the next turn is read."""
        return self._prompts.last(self.record)

    @cached_property
    def reply(self) -> Reply:
        """The model's answer."""
        record = self.record
        try:
            return r.reply_of(record)
        except _MISSHAPEN as e:
            raise _damaged("answer", e) from e

    @cached_property
    def tools(self) -> list[Json]:
        """The tools it was offered."""
        record = self.record
        try:
            tools = list(r.tools_of(record) or _parsed(self._session_tools))
            lost = not tools and r.is_ours(record) and (record.get("metadata") or {}).get("num_tools")
        except _MISSHAPEN as e:
            raise _damaged("tools", e) from e
        if lost:
            raise DataError("the tools it was offered stood in the rollout's metadata, which is damaged")
        return tools


@lru_cache(maxsize=16)
def _parsed(session_tools: str | None) -> list[Json]:
    """The tools of a session; nobody changes them."""
    return r.loads(session_tools) or []


@dataclass(frozen=True, slots=True)
class SelectedTurn:
    """A model call of a selected rollout. A turn that a rule removed is told too: labellers follow whole episodes."""

    rollout: SelectedRollout
    index: int
    model: str | None
    provider: str | None
    reward: float
    """Of the turn."""
    unlocked: tuple[str, ...]
    goal: str | None
    """The next achievement that the rollout unlocked, in this turn or a later one; None: none."""
    parse_failure: str | None
    """Why the environment could not read the answer; None: it could."""
    removed_by: str | None
    """The turn rule that removed it; None: it is an example."""
    call: Call


@dataclass(slots=True)
class Selection:
    """What `select` found."""

    rollouts: list[SelectedRollout]
    """In the order of the dataset."""
    held: Counter[int]
    """Position of a database -> rollouts in it."""
    rules: list[RuleCount]
    """The session rules' part of the funnel: active rules, and others that removed something."""
    skipped: list[SkippedRow] = field(default_factory=list)
    """Stored rollouts that cannot be read."""
    _connection: duckdb.DuckDBPyConnection = field(kw_only=True, repr=False)
    _config: FilterConfig = field(kw_only=True, repr=False)
    _tools: list[str | None] = field(kw_only=True, repr=False)
    """Of each rollout, as JSON text."""
    _turns: int | None = field(default=None, init=False, repr=False)
    """How many the table `turns` holds; None: it is not there yet."""

    def turns(self) -> Iterator[SelectedTurn]:
        """Every turn of the selected rollouts, in the order of the dataset: rollout by rollout, turn by turn."""
        prompts = _Prompts()
        for first in range(0, self._judge_turns(), BLOCK_TURNS):
            rows = self._connection.execute(_TURNS_BLOCK, [first, first + BLOCK_TURNS]).fetchall()
            texts = self._texts([(self.rollouts[position].source, event_id) for position, event_id, *_ in rows])
            for position, event_id, turn, model, provider, reward, unlocked, goal, failure, removed_by in rows:
                rollout = self.rollouts[position]
                text = texts.get((rollout.source, event_id))
                prompts.add(position, turn, text)
                yield SelectedTurn(
                    rollout=rollout,
                    index=turn,
                    model=model or rollout.model,
                    provider=provider or rollout.provider,
                    reward=reward,
                    unlocked=tuple(unlocked),
                    goal=goal,
                    parse_failure=failure,
                    removed_by=removed_by,
                    call=Call(text, self._tools[position], prompts),
                )

    def turn_rules(self) -> list[RuleCount]:
        """The turn rules' part of the funnel: active rules."""
        left = self._judge_turns()
        removed = dict(self._connection.execute(_TURNS_REMOVED).fetchall())
        counts = []
        for rule, (_, value) in zip(TURN_RULES, self._config.turns, strict=True):
            if value not in (None, False):
                left -= removed.get(rule, 0)
                counts.append(RuleCount(rule, "turns", removed.get(rule, 0), left))
        return counts

    def explain(self, rules: Sequence[RuleCount] | None = None) -> str:
        """Why nothing is left, in one line: the funnel, what there is instead, and the rule to loosen.

        Args:
            rules: The whole funnel, where it is known; otherwise that of the session and turn rules.
        """
        total = self.held.total()
        if not total:
            return "The trace databases hold no rollouts. Collect some first."
        counts = [count for count in rules or [*self.rules, *self.turn_rules()] if count.removed]
        steps = "; ".join(f"{self._asked(count.rule)} removed {count.removed} {count.of}" for count in counts)
        told = [f"No example is left of {total} rollouts: {steps or 'no rule is active'}."]
        if there := "; ".join(dict.fromkeys(words for count in counts if (words := self._there(count.rule)))):
            told.append(f"What they hold: {there}.")
        blame = [count for count in counts if count.of == counts[-1].of and count.rule not in ALWAYS_ON]
        most = max(blame, key=lambda count: count.removed, default=None)
        told.append(f"Loosen {most.rule}, which removed most." if most else "Collect more.")
        return " ".join(told)

    # ----------------------------------------------------------------------- inside

    def _judge_turns(self) -> int:
        """Fill the table `turns`, once. Returns how many there are."""
        if self._turns is None:
            self._connection.execute(_sql("select_turns.sql"), self._config.turns.model_dump())
            (self._turns,) = self._one("SELECT count(*) FROM turns")
        return self._turns

    def _texts(self, calls: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str | None]:
        """(source, event id) -> JSON text of `events.call_records`."""
        texts: dict[tuple[int, int], str | None] = {}
        ids: dict[int, list[int]] = {}
        for source, event_id in calls:
            ids.setdefault(source, []).append(event_id)
        for source, wanted in ids.items():
            for event_id, text in self._read_calls(source, wanted):
                texts[source, event_id] = text
        return texts

    def _read_calls(self, source: int, ids: list[int]) -> list[tuple[int, str | None]]:
        try:
            parameters = {"database": database_name(source), "ids": json.dumps(ids)}
            return self._connection.execute(_sql("select_calls.sql"), parameters).fetchall()
        except duckdb.InvalidInputException:  # a text that is no UTF-8: DuckDB refuses the whole block
            if len(ids) == 1:
                return [(ids[0], None)]
            half = len(ids) // 2
            return [*self._read_calls(source, ids[:half]), *self._read_calls(source, ids[half:])]

    def _asked(self, rule: str) -> str:
        """A rule as the config has it: name=value."""
        value: Any = self._config.model_dump(mode="json")
        for part in rule.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None or isinstance(value, bool):
            return rule
        if isinstance(value, Mapping):
            value = [f"{name}:{number:g}" for name, number in value.items()]
        return f"{rule}={','.join(map(str, value)) if isinstance(value, list) else value}"

    def _there(self, rule: str) -> str:
        """What the rollouts that came to a session rule hold of what it asks for; empty for other rules."""
        if rule not in _ASKED_OF:
            return ""
        what, column = _ASKED_OF[rule]
        later = list(SESSION_RULES[SESSION_RULES.index(rule) :])
        if column in _NUMBERS:
            low, high = self._one(f"SELECT min({column}), max({column}) FROM ({_REACHED})", [later])
            return f"{what} none" if low is None else f"{what} {_shown(low)} to {_shown(high)}"
        found = self._connection.execute(_NAMES_HELD.format(column=column, reached=_REACHED), [later]).fetchall()
        names = [f"{name} ({n})" for name, n in found[:VALUES_SHOWN]]
        if len(found) > VALUES_SHOWN:
            names.append(f"{len(found) - VALUES_SHOWN} more")
        return f"{what} {', '.join(names) or 'none'}"

    def _one(self, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._connection.execute(sql, list(parameters)).fetchall()[0]
        return row


@contextmanager
def select(paths: Sequence[Path], config: FilterConfig, work: Path) -> Iterator[Selection]:
    """Apply the session rules of `config` to the trace databases; the turns are read from the result.

    Args:
        work: Folder for what does not fit into memory.

    Raises:
        DataError: a database cannot be used; the message names it and the remedy.
        ConfigError: an achievement that the config names exists nowhere.
    """
    connection = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": DUCKDB_MEMORY,
            "threads": DUCKDB_THREADS,
            "preserve_insertion_order": False,  # it costs memory, and everything is read in an order that it names
            "temp_directory": str(work / "spill"),
        },
    )
    try:
        attach(connection, paths)
        yield _select(connection, paths, config)
    except duckdb.Error as e:
        connection.close()
        raise damage(paths, e) from e
    finally:
        connection.close()


def _select(connection: duckdb.DuckDBPyConnection, paths: Sequence[Path], config: FilterConfig) -> Selection:
    connection.execute(_sql("select_macros.sql"))
    connection.execute(_sql("select_facts.sql"))
    connection.execute(_sql("select_rollouts.sql"), _parameters(config))
    _refuse_unknown_achievements(connection, config)
    connection.execute(_KEPT)
    rollouts, tools = _kept(connection)
    held = Counter(dict(connection.execute("SELECT source, count(*) FROM rollouts GROUP BY source").fetchall()))
    removed = dict(connection.execute("SELECT removed_by, count(*) FROM rollouts GROUP BY removed_by").fetchall())
    return Selection(
        rollouts,
        held,
        list(_funnel(config, held.total(), removed)),
        [
            SkippedRow(str(paths[source]), session_id, None, _UNREADABLE)
            for source, session_id in connection.execute(_DAMAGED).fetchall()
        ],
        _connection=connection,
        _config=config,
        _tools=tools,
    )


def _kept(connection: duckdb.DuckDBPyConnection) -> tuple[list[SelectedRollout], list[str | None]]:
    """The selected rollouts, and the tools of each as JSON text; equal texts, which most share, are held once."""
    rollouts: list[SelectedRollout] = []
    tools: list[str | None] = []
    texts: dict[str | None, str | None] = {}
    cursor = connection.execute(_KEPT_FACTS)
    while rows := cursor.fetchmany(FETCH_ROWS):
        for source, session_id, seed, environment, model, provider, reward, achievements, turns, text in rows:
            rollouts.append(
                SelectedRollout(
                    source, session_id, seed, environment, model, provider, reward, tuple(achievements), turns
                )
            )
            tools.append(texts.setdefault(text, text))
    return rollouts, tools


def _parameters(config: FilterConfig) -> Json:
    """The parameters of select_rollouts.sql."""

    def moment(value: Any) -> Any:
        return None if value is None else utc(value).astimezone(UTC).replace(tzinfo=None)

    def table(value: Mapping[str, float]) -> str | None:
        return json.dumps(dict(value)) if value else None

    return {
        "models": list(config.models) or None,
        "providers": list(config.providers) or None,
        "environments": _all_names(config.environments) or None,
        "splits": list(config.splits) or None,
        "task_ids": list(config.task_ids) or None,
        "min_reward": config.min_reward,
        "max_reward": config.max_reward,
        "min_unique": config.min_unique,
        "max_unique": config.max_unique,
        "require_achievements": list(config.require_achievements),
        "exclude_achievements": list(config.exclude_achievements),
        "event_rewards": table(config.event_rewards),
        "min_judge_scores": table(config.min_judge_scores),
        "max_judge_scores": table(config.max_judge_scores),
        "min_created_at": moment(config.min_created_at),
        "max_created_at": moment(config.max_created_at),
        "shuffle_seed": (config.shuffle_seed or 0) if config.shuffle else None,
        "offset": config.offset,
        "limit": config.limit,
        "dev_seeds": DEV_SEEDS_START,
        "gate_seeds": GATE_SEEDS_START,
        "held_out_seeds": HELD_OUT_SEEDS_START,
    }


def _all_names(environments: Sequence[str]) -> list[str]:
    """The environments under all names that configs and task apps use for them."""
    names = dict.fromkeys(environments)
    for info in ENVIRONMENTS.values():
        same = (info.name, *info.app_names)
        if names.keys() & set(same):
            names.update(dict.fromkeys(same))
    return list(names)


def _refuse_unknown_achievements(connection: duckdb.DuckDBPyConnection, config: FilterConfig) -> None:
    known = {name for info in ENVIRONMENTS.values() for name in info.achievements}
    for rule in ("require_achievements", "exclude_achievements"):
        strange = [name for name in getattr(config, rule) if name not in known]
        if strange:
            seen = {
                name for (name,) in connection.execute("SELECT DISTINCT unnest(achievements) FROM rollouts").fetchall()
            }
            for name in strange:
                if name not in seen:
                    raise ConfigError(
                        f"{rule}: no environment and no rollout knows the achievement {name!r}; "
                        f"{suggest(name, sorted(known | seen))}"
                    )


def _funnel(config: FilterConfig, left: int, removed: Mapping[str | None, int]) -> Iterator[RuleCount]:
    asked = {rule for rule in SESSION_RULES if getattr(config, rule) not in (None, (), {}, 0)}
    asked |= {rule for rule in ("min_reward", "max_reward", "min_unique", "max_unique") if getattr(config, rule) == 0}
    for rule in (*ALWAYS_ON, *SESSION_RULES):
        count = removed.get(rule, 0)
        if count or rule in asked:
            left -= count
            yield RuleCount(rule, "rollouts", count, left)


# --------------------------------------------------------------------------- calls


def _record(text: str | None) -> Json:
    calls = r.loads(text)
    record = calls[0] if isinstance(calls, list) and calls else None
    if not isinstance(record, dict):
        raise DataError("its call record is no JSON list with an object")
    return record


_MISSHAPEN = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""Foreign writers may have put anything anywhere: what does not have the record's shape is damaged."""


def _damaged(what: str, e: Exception) -> DataError:
    return DataError(f"the {what} in its call record cannot be read ({type(e).__name__}: {e})")


class _Prompts:
    """The prompt of the turn that was read last. One may build on the turn before it, whether that is exported or not;
    so every turn is told, and only what is needed is parsed."""

    def __init__(self) -> None:
        self._turn: tuple[int, int] | None = None
        self._skipped: list[str | None] = []
        self._prompt: list[Json] = []
        """Of the turn before the skipped ones; empty: there is none, or it cannot be read."""

    def add(self, position: int, turn: int, call_records: str | None) -> None:
        """The next turn, in order."""
        if self._turn != (position, turn - 1):  # another rollout, or a turn is missing
            self._prompt = []
            self._skipped.clear()
        if not r.builds_on_earlier(call_records or ""):
            self._skipped.clear()
        self._turn = position, turn
        self._skipped.append(call_records)

    def last(self, record: Json) -> list[Json]:
        """The prompt of the turn that was added last; `record` is its call record. DataError if it is damaged, or if
        it builds on one that is."""
        for text in self._skipped[:-1]:
            try:
                self._prompt = self._of(_record(text))
            except DataError:
                self._prompt = []
        self._skipped.clear()
        try:
            self._prompt = self._of(record)
        except DataError:
            self._prompt = []
            raise
        return self._prompt

    def _of(self, record: Json) -> list[Json]:
        try:
            prompt = r.prompt_of(record, self._prompt)
        except _MISSHAPEN as e:
            raise _damaged("prompt", e) from e
        if not all(isinstance(message, dict) for message in prompt):
            raise DataError("the prompt in its call record is no list of messages")
        return prompt


# --------------------------------------------------------------------------- SQL

_KEPT = """
CREATE OR REPLACE TEMP TABLE kept AS
SELECT row_number() OVER (ORDER BY place) - 1 AS position, source, session_id
FROM rollouts WHERE removed_by IS NULL ORDER BY place
"""
_KEPT_FACTS = """
SELECT r.source, r.session_id, r.seed, r.environment, r.model, r.provider, r.reward, r.achievements, r.turns, f.tools
FROM rollouts r JOIN facts f USING (source, session_id) WHERE r.removed_by IS NULL ORDER BY r.place
"""
_DAMAGED = "SELECT source, session_id FROM rollouts WHERE removed_by = 'damaged' ORDER BY place"
_UNREADABLE = "its metadata is no JSON object, and its world seed stands nowhere else: it may be a held-out one"
_TURNS_BLOCK = """
SELECT position, event_id, turn, model, provider, reward, unlocked, goal, parse_failure, removed_by
FROM turns WHERE number >= $1 AND number < $2 ORDER BY number
"""
_TURNS_REMOVED = "SELECT removed_by, count(*) FROM turns GROUP BY removed_by ORDER BY removed_by"
_REACHED = "SELECT * FROM rollouts WHERE removed_by IS NULL OR list_contains($1, removed_by)"
_NAMES_HELD = """
SELECT name, count(*) FROM (SELECT {column} AS name FROM ({reached})) WHERE name IS NOT NULL
GROUP BY name ORDER BY count(*) DESC, name
"""
_NUMBERS = ("reward", "different", "created_at")
_ASKED_OF = {
    "models": ("models", "model"),
    "providers": ("providers", "provider"),
    "environments": ("environments", "environment"),
    "splits": ("splits", "split"),
    "task_ids": ("task_ids", "task_id"),
    "min_reward": ("rewards", "reward"),
    "max_reward": ("rewards", "reward"),
    "min_unique": ("different achievements", "different"),
    "max_unique": ("different achievements", "different"),
    "require_achievements": ("achievements", "unnest(achievements)"),
    "event_rewards": ("event rewards", "unnest(reward_types)"),
    "min_judge_scores": ("judges", "unnest(map_keys(judge_scores))"),
    "max_judge_scores": ("judges", "unnest(map_keys(judge_scores))"),
    "min_created_at": ("times", "created_at"),
    "max_created_at": ("times", "created_at"),
}
"""Session rule -> what it asks about, in words and as an expression over the table `rollouts`."""


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else value.isoformat(timespec="seconds") + "Z"


@cache
def _sql(name: str) -> str:
    return files("crafter_pipeline.dataset").joinpath(name).read_text(encoding="utf-8")
