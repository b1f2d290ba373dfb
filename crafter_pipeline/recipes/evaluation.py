"""The recipe of `eval`: both published files, `[eval]` with its tables and the flat one, as one model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from crafter_pipeline.config.base import digest_of
from crafter_pipeline.config.reading import parse_config
from crafter_pipeline.contracts import MAX_OPS
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.recipes.base import Recipe, refuse_placeholders

MOST_TURNS = MAX_OPS // 2
MOST_SEEDS = 1_000_000
DEFAULT_TURNS = 10
"""Of an episode, where neither file nor command says it."""
_AGENT = frozenset({"agent", "policy", "model"})
_SAMPLING = (
    *("provider", "temperature", "top_p", "max_tokens", "reasoning_effort", "system_hint", "tool_choice"),
    *("thinking_mode", "thinking_budget", "use_tools"),
)
"""Keys beside the tables that belong to the policy's configuration."""
_NOT_POLICY = frozenset({"model", "inference_url", "provider", "vendor", "max_llm_calls", "max_turns"})
"""Keys of a policy's configuration that have a place of their own here."""


class RolloutTable(Recipe):
    """`[rollout]` of the flat file."""

    env_name: str | None = None
    """As `env_name` beside it."""
    policy_name: str | None = None
    """As `policy_name` beside it."""
    max_turns: int | None = Field(default=None, ge=1, le=MOST_TURNS)
    """As `max_turns` beside it."""
    env_config: dict[str, Any] = {}
    """As `env_config` beside it."""
    policy_config: dict[str, Any] = {}
    """As `policy_config` beside it."""


class JudgeRecipe(Recipe):
    """A function that scores episodes."""

    name: str
    """What its score is called."""
    target: str
    """`path/to/file.py:function` or `module:function`."""
    options: dict[str, Any] = {}
    """Passed on to it."""


class EvaluationRecipe(Recipe):
    """Who plays which worlds, and how. Keys of both published files."""

    type: str | None = None
    """What the models came from, e.g. sft; a word for people."""
    suite: str | None = None
    """A fixed way to judge, e.g. crafter-200: it says environment, limits and worlds, and how models are asked."""
    app_id: str | None = None
    """The environment's app: grpo-crafter (default), math."""
    task_app_url: str | None = None
    """Where it runs, or a comma list of several; unset: one is started."""
    model: str | None = None
    """Who plays, in any form of an id."""
    models: tuple[str, ...] = ()
    """Several players that are compared: `model`, `label=model`, and `@URL` behind it for one served elsewhere."""
    seeds: tuple[int, ...] | None = None
    """Worlds: a list, ranges as "0-9,20", or a list of both."""
    num_episodes: int | None = Field(default=None, ge=1, le=MOST_SEEDS)
    """How many worlds, from seed_start on, where seeds are not named."""
    seed_start: int = Field(default=1, ge=0)
    """The first one."""
    split: str | None = None
    """Which split of the task set; told to the environment and kept in the traces."""
    max_turns: int | None = Field(default=None, ge=1, le=MOST_TURNS)
    """Model calls per episode; the least of this, max_llm_calls, max_steps_per_episode and ops holds."""
    max_llm_calls: int | None = Field(default=None, ge=1, le=MOST_TURNS)
    """The same."""
    ops: tuple[str, ...] | None = None
    """The same: as many as there are agent ops."""
    concurrency: int = Field(default=16, ge=1, le=512)
    """Episodes at once."""
    env_name: str | None = None
    """The environment as the task app names it."""
    policy_name: str | None = None
    """What the player is called in the traces."""
    difficulty: str | None = None
    """Of the world: easy, normal, …"""
    env_config: dict[str, Any] = {}
    """Options of the environment, among them step_rewards, max_env_steps and env_params.max_steps_per_episode."""
    policy_config: dict[str, Any] = {}
    """How the model is asked, as the task app's page says it."""
    policy: dict[str, Any] = {}
    """The same; policy_name and config in it, or the keys themselves. policy_config wins."""
    rollout: RolloutTable = RolloutTable()
    """The same two tables once more, as the flat file has them."""
    provider: str | None = None
    """groq or openai: that host; anything else, or none: the training backend."""
    inference_url: str | None = None
    """The OpenAI-compatible base URL of the models."""
    temperature: float | None = None
    """Of sampling."""
    top_p: float | None = None
    """Of sampling."""
    max_tokens: int | None = None
    """Of an answer."""
    reasoning_effort: str | None = None
    """For models that know it."""
    thinking_mode: Literal["think", "no_think"] | None = None
    """Switches the thinking of models that can do both."""
    thinking_budget: int | None = None
    """Thinking tokens."""
    use_tools: bool | None = None
    """Whether the model answers by the environment's tool."""
    tool_choice: str | dict[str, Any] | None = None
    """For use_tools."""
    system_hint: str | None = None
    """Added to the system prompt."""
    return_trace: bool | None = None
    """Whether answers bring their traces; they do where --trace-db or a judge needs them."""
    trace_format: Literal["compact", "full", "structured"] | None = None
    """As published files say it; what is asked for is `structured`, which is all there is."""
    trace_db: str | None = None
    """Trace database that the traces are stored in; unset, with return_trace: traces.db beside the report."""
    metadata: dict[str, str] = {}
    """Only tasks of these facts: scenario_id, loop_id, thread_id, difficulty."""
    metadata_sql: str | None = None
    """Only the seeds that this query finds in the table tasks(seed, scenario_id, loop_id, thread_id, difficulty)."""
    env_file: str | None = None
    """Variables for what is unset."""
    judge: dict[str, Any] = {}
    """A judge (path or module, callable, name, its options), or a table of such tables by name."""
    judges: list[dict[str, Any]] | dict[str, dict[str, Any]] = []
    """Several judges."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _read_seeds(cls, value: Any) -> Any:
        return None if value is None else parse_seeds(value)

    @field_validator("metadata", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return {k: str(v) for k, v in value.items()} if isinstance(value, Mapping) else value

    @field_validator("metadata_sql", mode="before")
    @classmethod
    def _query_of(cls, value: Any) -> Any:
        return (value.get("query") or value.get("sql")) if isinstance(value, Mapping) else value

    @field_validator("models", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return split_words(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_model(self) -> EvaluationRecipe:
        named = {"model": self.model, "policy_config.model": self._policy_tables.get("model")}
        if self.model is not None and named["policy_config.model"] not in (None, self.model):
            raise ValueError(
                f"model is {self.model!r} and policy_config.model {named['policy_config.model']!r}: keep one of them"
            )
        return self

    # ------------------------------------------------------------------ what follows from it

    @property
    def players(self) -> tuple[str, ...]:
        """Who plays, as written."""
        one = self.model or self._policy_tables.get("model")
        return self.models or ((str(one),) if one else ())

    @property
    def worlds(self) -> tuple[int, ...] | None:
        """The seeds; None: the recipe names none."""
        if self.seeds is not None:
            return self.seeds
        if self.num_episodes is None:
            return None
        return tuple(range(self.seed_start, self.seed_start + self.num_episodes))

    @property
    def turns(self) -> int | None:
        """Model calls per episode; None: the recipe limits none."""
        tables = self._policy_tables
        params = self._env_tables.get("env_params")
        given = [
            self.max_turns,
            self.max_llm_calls,
            self.rollout.max_turns,
            _count("policy_config.max_llm_calls", tables.get("max_llm_calls")),
            _count("policy.max_turns", tables.get("max_turns")),
            _count(
                "env_config.env_params.max_steps_per_episode",
                params.get("max_steps_per_episode") if isinstance(params, Mapping) else None,
            ),
            sum(op in _AGENT for op in self.ops) if self.ops else None,
        ]
        return min((n for n in given if n is not None), default=None)

    @property
    def base_url(self) -> str | None:
        """Where the models are served, where the recipe says it."""
        url = self._policy_tables.get("inference_url") or self.inference_url
        return str(url) if url else None

    @property
    def host(self) -> str | None:
        """`groq`, `openai`, … where the recipe says it."""
        provider = self._policy_tables.get("provider") or self._policy_tables.get("vendor") or self.provider
        return str(provider).lower() if provider else None

    @property
    def asked(self) -> dict[str, Any]:
        """The policy's configuration, without model, host and limit."""
        beside = {key: value for key in _SAMPLING if (value := getattr(self, key)) is not None}
        merged = {**beside, **self._policy_tables}
        return {key: value for key, value in merged.items() if key not in _NOT_POLICY}

    @property
    def environment(self) -> dict[str, Any]:
        """The environment's configuration, without the limit of turns."""
        config = dict(self._env_tables)
        if isinstance(config.get("env_params"), Mapping):
            rest = {k: v for k, v in config.pop("env_params").items() if k != "max_steps_per_episode"}
            config |= {"env_params": rest} if rest else {}
        if self.difficulty is not None:
            config["difficulty"] = self.difficulty
        if self.split is not None:
            config["split"] = self.split
        return config

    @property
    def played_as(self) -> str | None:
        """The policy's name."""
        return self.policy_name or self.rollout.policy_name or self.policy.get("policy_name")

    @property
    def scorers(self) -> tuple[JudgeRecipe, ...]:
        """The judges. ConfigError names one that says no file or module."""
        return tuple(_judges(self.judge, self.judges))

    @property
    def _policy_tables(self) -> dict[str, Any]:
        """All tables of the policy's configuration, the strongest last."""
        inner = self.policy.get("config")
        beside = {k: v for k, v in self.policy.items() if k not in ("policy_name", "policy_id", "config")}
        return {
            **beside,
            **(inner if isinstance(inner, Mapping) else {}),
            **self.rollout.policy_config,
            **self.policy_config,
        }

    @property
    def _env_tables(self) -> dict[str, Any]:
        return {**self.rollout.env_config, **self.env_config}


class _File(Recipe):
    type: str | None = None
    eval: EvaluationRecipe


def table_of(toml: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the recipe's keys stand in a file: in its table `eval`, or at the top."""
    return ("eval",) if isinstance(toml.get("eval"), Mapping) else ()


def read_evaluation(toml: Mapping[str, Any], source: Path | str) -> EvaluationRecipe:
    """The recipe of a parsed file. ConfigError names what is wrong, and the nearest valid key."""
    refuse_placeholders(toml, source)
    if table_of(toml):
        return parse_config(_File, dict(toml), str(source)).eval
    return parse_config(EvaluationRecipe, dict(toml), str(source))


def replace_models(table: dict[str, Any], models: Iterable[str]) -> None:
    """Let these play, whatever the table says, in each of the places where it can say it."""
    _forget(table, {"model"}, {"model"})
    table["models"] = list(models)


def replace_turns(table: dict[str, Any], turns: int) -> None:
    """Limit episodes to so many model calls, whatever the table says."""
    _forget(table, {"max_turns", "max_llm_calls", "ops"}, {"max_llm_calls", "max_turns"})
    for place in (table, table.get("rollout")):
        if isinstance(place, dict) and isinstance(place.get("env_config"), dict):
            params = place["env_config"].get("env_params")
            if isinstance(params, dict):
                params.pop("max_steps_per_episode", None)
    table["max_turns"] = turns


def parse_seeds(value: str | Iterable[int | str] | int) -> tuple[int, ...]:
    """`"0-9,20"`, `[0, 1, "5-7"]` → distinct seeds, ascending. ValueError says what is no seed."""
    words: list[int | str] = []
    for item in [value] if isinstance(value, str | int) else value:
        words += [w for w in item.split(",") if w.strip()] if isinstance(item, str) else [item]
    seeds: set[int] = set()
    for word in words:
        seeds.update(_range(word))
        if len(seeds) > MOST_SEEDS:
            raise ValueError(f"more than {MOST_SEEDS:,} seeds")
    if not seeds:
        raise ValueError("no seed is named; write them as 0-9,20")
    return tuple(sorted(seeds))


def split_words(text: str) -> tuple[str, ...]:
    """A comma list's words."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def digest_of_judges(judges: Iterable[JudgeRecipe]) -> str:
    """Changes with everything that is said of them."""
    return digest_of([judge.model_dump(mode="json") for judge in judges])


def _range(word: int | str) -> range:
    text = str(word).strip()
    first, dash, last = text.partition("-")
    if isinstance(word, bool) or not first.isdecimal() or (dash and not last.isdecimal()):
        raise ValueError(f"{word!r} is no seed; write seeds as 0-9,20")
    low, high = int(first), int(last or first)
    if high < low:
        raise ValueError(f"{text}: the first seed of a range is its lowest")
    if high - low >= MOST_SEEDS:
        raise ValueError(f"{text}: more than {MOST_SEEDS:,} seeds")
    return range(low, high + 1)


def _forget(table: dict[str, Any], keys: Iterable[str], in_policy: Iterable[str]) -> None:
    rollout = table.get("rollout")
    policy = table.get("policy")
    places: list[tuple[Any, Iterable[str]]] = [
        (table, keys),
        (rollout, keys),
        (table.get("policy_config"), in_policy),
        (policy, in_policy),
        (policy.get("config") if isinstance(policy, dict) else None, in_policy),
        (rollout.get("policy_config") if isinstance(rollout, dict) else None, in_policy),
    ]
    for place, names in places:
        if isinstance(place, dict):
            for name in names:
                place.pop(name, None)


def _count(key: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_TURNS:
        raise ConfigError(f"{key}: {value!r} is not a whole number from 1 to {MOST_TURNS}.")
    return value


def _judges(
    judge: Mapping[str, Any], judges: list[dict[str, Any]] | dict[str, dict[str, Any]]
) -> Iterator[JudgeRecipe]:
    tables: list[tuple[str | None, Mapping[str, Any]]] = []
    if judge and all(isinstance(value, Mapping) for value in judge.values()):
        tables += judge.items()
    elif judge:
        tables.append((None, judge))
    tables += judges.items() if isinstance(judges, Mapping) else [(None, table) for table in judges]
    named: set[str] = set()
    for number, (name, table) in enumerate(tables, start=1):
        rest = dict(table)
        where = rest.pop("path", None) or rest.pop("module", None)
        function = rest.pop("callable", None) or rest.pop("function", None) or "judge"
        name = str(rest.pop("name", None) or name or (Path(where).stem if isinstance(where, str) else number))
        if not isinstance(where, str) or not where:
            raise ConfigError(f"judge {name}: say the file it is in (path) or its module.")
        if name in named:
            raise ConfigError(f"judge {name}: two judges have this name; give each its own.")
        named.add(name)
        yield JudgeRecipe(name=name, target=f"{where}:{function}", options=rest)
