"""What `crafter-pipeline eval` is to play: options, variables and file as one order, before any service is asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crafter_pipeline.cli.choices import Choices
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.tables import flat

if TYPE_CHECKING:
    from crafter_pipeline.environments import EnvironmentInfo
    from crafter_pipeline.evaluation.match import MatchPlan
    from crafter_pipeline.evaluation.players import Player
    from crafter_pipeline.evaluation.suites import Suite
    from crafter_pipeline.recipes.evaluation import EvaluationRecipe

DEFAULT_APP = "grpo-crafter"
DEFAULT_SEEDS = "1000000-1000015"
"""Worlds that are played where nobody names any: sixteen held-out ones."""
SPLITS = ("held_out", "dev", "train")
"""Whose worlds a suite plays; those of the promotion's gate are its own."""
_SAID_BY_A_SUITE = (
    *("app_id", "env_name", "seeds", "num_episodes", "split", "difficulty", "metadata", "metadata_sql"),
    *("max_turns", "max_llm_calls", "ops", "rollout", "env_config"),
)
TRACE_FILES = (".db", ".sqlite", ".sqlite3")


@dataclass(frozen=True, slots=True)
class Asked:
    """The options, as far as they say what is played."""

    suite: str | None
    app: str | None
    url: str | None
    model: str | None
    models: str | None
    seeds: str | None
    split: str | None
    turns: int | None
    concurrency: int | None
    inference_url: str | None
    backend: str | None
    trace_db: str | None
    metadata: list[str]
    metadata_sql: str | None


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be played."""

    name: str | None
    """Of the recipe; None: there is no file."""
    suite: Suite | None
    recipe: EvaluationRecipe
    choices: Choices
    app: str
    environment: EnvironmentInfo | None
    """None: an app that is not ours."""
    players: list[Player]
    seeds: tuple[int, ...] | None
    """None: those that metadata finds."""
    trace_db: Path | None
    own_traces: bool
    """Traces go beside the report."""
    backend_url: str

    @property
    def by_facts(self) -> bool:
        """Whether the task set says which seeds are played."""
        return bool(self.recipe.metadata or self.recipe.metadata_sql)

    def settle(self, players: list[Player], seeds: tuple[int, ...], out: Path | None) -> tuple[MatchPlan, Path]:
        """The plan for players and seeds as they turned out, and the folder of its results."""
        from dataclasses import replace

        from crafter_pipeline.evaluation.match import MatchPlan
        from crafter_pipeline.files import safe_name

        recipe = self.recipe
        plan = MatchPlan(
            tuple(players), seeds, (), recipe.concurrency, recipe.scorers, trace_db=self.trace_db, split=recipe.split
        )
        labels = "_".join(player.label for player in plan.players)[:60]
        name = self.name or (labels if self.suite is None else f"{self.suite.name}-{labels}")
        folder = out if out is not None else Path("evals") / f"{safe_name(name)}-{plan.digest}"
        return (replace(plan, trace_db=folder / "traces.db") if self.own_traces else plan), folder


def read_order(file: Path | None, asked: Asked, env_files: list[Path] | None, overrides: list[str]) -> Order:
    """The order. ConfigError says what is wrong with the file, an option or a variable."""
    from crafter_pipeline import connections
    from crafter_pipeline.config import one_split
    from crafter_pipeline.evaluation.players import players_of, rules_of
    from crafter_pipeline.evaluation.suites import find_suite
    from crafter_pipeline.recipes.evaluation import parse_seeds, read_evaluation

    reader = _Reader(file, overrides, env_files)
    everywhere = reader.take(asked)
    backend_url = connections.backend_address(
        reader.choices.choose("backend", flag="--backend", given=asked.backend, variables=("BACKEND_BASE_URL",))
    )
    recipe = read_evaluation(reader.toml, file or "the options")
    app = recipe.app_id or DEFAULT_APP
    environment = _environment(app, recipe)
    trace_db = _trace_file(recipe.trace_db)
    own_traces = trace_db is None and bool(recipe.return_trace)
    rules = rules_of(
        recipe,
        environment=app if environment is None else environment.name,
        traced=trace_db is not None or own_traces or bool(recipe.scorers),
        whole=file is None,
    )
    inference = connections.inference_url(backend_url)
    suite = None if recipe.suite is None else find_suite(recipe.suite)
    players = players_of(recipe, rules, suite, backend_inference=inference, everywhere=everywhere)
    seeds = recipe.worlds
    if seeds is None and not (recipe.metadata or recipe.metadata_sql):
        seeds = parse_seeds(DEFAULT_SEEDS)
    try:
        one_split("seeds", seeds or ())
    except ValueError as e:
        raise ConfigError(f"{e}.") from None
    return Order(
        name=None if file is None else file.stem,
        suite=suite,
        recipe=recipe,
        choices=reader.choices,
        app=app,
        environment=environment,
        players=players,
        seeds=seeds,
        trace_db=trace_db,
        own_traces=own_traces,
        backend_url=backend_url,
    )


class _Reader:
    """Lays what options and variables say over the file's table."""

    def __init__(self, file: Path | None, overrides: list[str], env_files: list[Path] | None) -> None:
        from crafter_pipeline.cli.common import use_env_files
        from crafter_pipeline.config import apply_overrides, load_toml
        from crafter_pipeline.recipes.evaluation import table_of

        self.file = file
        self.toml = apply_overrides({} if file is None else load_toml(file), overrides)
        self._above = table_of(self.toml)
        self._table: dict[str, Any] = self.toml[self._above[0]] if self._above else self.toml
        named = self._table.get("env_file")
        files = [*(env_files or []), *([Path(named)] if isinstance(named, str) else [])]
        self.choices = Choices(apply_overrides(self.toml, []), file, use_env_files(files))

    def take(self, asked: Asked) -> str | None:
        """Everything. Returns the base URL that an option or a variable says for all models, or None."""
        self._choose("suite", "--suite", asked.suite)
        self._choose("task_app_url", "--url", asked.url, ("TASK_APP_URL",))
        self._take_models(asked)
        if self._table.get("suite") is None:
            self._choose("app_id", "APP", asked.app, default=DEFAULT_APP)
            self._take_seeds(asked)
            self._choose("split", "--split", asked.split)
            self._take_turns(asked)
            self._choose("difficulty", "", None, ("DIFFICULTY",))
        else:
            self._take_suite(asked)
        self._choose("concurrency", "--concurrency", asked.concurrency, ("CONCURRENCY",), default=16, whole=True)
        self._choose("trace_db", "--trace-db", asked.trace_db, _trace_variables(asked.trace_db))
        if asked.metadata:
            told = self._table.get("metadata")
            pairs = dict(_pair(item) for item in asked.metadata)
            self._table["metadata"] = {**(told if isinstance(told, dict) else {}), **pairs}
        self._choose("metadata_sql", "--metadata-sql", asked.metadata_sql)
        return self._take_address(asked)

    def _take_suite(self, asked: Asked) -> None:
        """What the suite says, as if it stood in the table. ConfigError where something else says it too."""
        from crafter_pipeline.environments import find_environment
        from crafter_pipeline.evaluation.suites import find_suite

        suite = find_suite(self._table["suite"])
        given = [key for key in _SAID_BY_A_SUITE if self._table.get(key) not in (None, {})]
        policy = flat({key: self._table.get(key) for key in ("policy", "policy_config")})
        given += [key for key in policy if key.rpartition(".")[2] in ("max_turns", "max_llm_calls")]
        options = {
            "--max-turns": asked.turns,
            "--metadata": asked.metadata,
            "--metadata-sql": asked.metadata_sql,
        }
        given += [option for option, value in options.items() if value]
        if asked.app is not None and find_environment(asked.app).name != suite.environment:
            given.append(f"APP {asked.app}")
        if given:
            raise ConfigError(f"The suite {suite.name} says what is played; leave out {', '.join(given)}.")
        split = self.choices.choose("split", flag="--split", given=asked.split, default="held_out")
        if split not in SPLITS:
            raise ConfigError(f"--split {split}: with a suite, name one of {', '.join(SPLITS)}.")
        wanted = self.choices.choose("seeds", flag="--seeds", given=asked.seeds, default=suite.seeds.count)
        if not str(wanted).isdecimal():
            raise ConfigError(f"--seeds {wanted}: the suite says which worlds; with it, say how many, e.g. --seeds 50.")
        self._table |= {
            "app_id": suite.environment,
            "seeds": list(suite.worlds(split, int(wanted)).seeds),
            "max_turns": suite.max_env_steps,
            "env_config": {**suite.env_config, "max_env_steps": suite.max_env_steps},
        }

    def _take_models(self, asked: Asked) -> None:
        from crafter_pipeline.recipes.evaluation import replace_models, split_words

        if asked.models is not None and asked.model is not None:
            raise ConfigError("Give --model or --models, not both.")
        several = asked.models is not None
        value, outside = self._look_up(
            "models",
            "--models" if several else "--model",
            asked.models if several else asked.model,
            ("EVAL_MODEL",),
            ("models", "model", "policy_config.model", "rollout.policy_config.model", "policy.model"),
        )
        if outside:
            replace_models(self._table, split_words(value) if several else [value])

    def _take_seeds(self, asked: Asked) -> None:
        from crafter_pipeline.recipes.evaluation import parse_seeds

        try:
            seeds = None if asked.seeds is None else list(parse_seeds(asked.seeds))
        except ValueError as e:
            raise ConfigError(f"--seeds {asked.seeds}: {e}.") from None
        _, outside = self._look_up("seeds", "--seeds", asked.seeds, (), ("seeds",))
        if outside:
            self._table["seeds"] = seeds
        self._choose("num_episodes", "", None, ("NUM_EPISODES",), whole=True)

    def _take_turns(self, asked: Asked) -> None:
        from crafter_pipeline.recipes.evaluation import replace_turns

        value, outside = self._look_up(
            "max_turns",
            "--max-turns",
            asked.turns,
            ("MAX_TURNS",),
            ("max_turns", "max_llm_calls", "policy_config.max_llm_calls", "rollout.max_turns"),
        )
        if outside:
            replace_turns(self._table, _whole("MAX_TURNS", value))

    def _take_address(self, asked: Asked) -> str | None:
        tables = (self._table, self._table.get("policy_config"), self._table.get("policy"))
        vllm = any(isinstance(table, dict) and table.get("provider") == "vllm" for table in tables)
        value, outside = self._look_up(
            "inference_url",
            "--inference-url",
            asked.inference_url,
            ("VLLM_BASE_URL",) if vllm else (),
            ("policy_config.inference_url", "rollout.policy_config.inference_url", "inference_url"),
        )
        return str(value) if outside else None

    def _choose(
        self,
        name: str,
        flag: str,
        given: Any,
        variables: tuple[str, ...] = (),
        *,
        default: Any = None,
        whole: bool = False,
    ) -> None:
        """A key of the table; `whole`: a variable's text is to be a number."""
        value, outside = self._look_up(name, flag, given, variables, (name,), default)
        if outside:
            self._table[name] = _whole(variables[0], value) if whole else value

    def _look_up(
        self,
        name: str,
        flag: str,
        given: Any,
        variables: tuple[str, ...],
        keys: Iterable[str],
        default: Any = None,
    ) -> tuple[Any, bool]:
        """(the value, whether an option or a variable says it)."""
        dotted = [".".join((*self._above, key)) for key in keys]
        value = self.choices.choose(name, flag=flag, given=given, variables=variables, keys=dotted, default=default)
        source = self.choices.made[-1].source
        return value, source != "default" and not source.startswith(f"{self.file} ")


def _environment(app: str, recipe: EvaluationRecipe) -> EnvironmentInfo | None:
    from crafter_pipeline.environments import find_environment

    try:
        return find_environment(app)
    except ConfigError:
        if recipe.task_app_url is None:
            raise
        return None  # somebody else's environment: its answers are read as far as they tell


def _trace_variables(given: str | None) -> tuple[str, ...]:
    """The variable that may name the database: for other commands it may also be a folder, a glob or `latest`."""
    from crafter_pipeline.settings import load_settings

    named = None if given is not None else load_settings().crafter_trace_db
    return ("CRAFTER_TRACE_DB",) if named and Path(named).suffix in TRACE_FILES and "*" not in named else ()


def _trace_file(named: str | None) -> Path | None:
    path = Path(named) if named else None
    if path is not None and path.is_dir():
        raise ConfigError(f"--trace-db {path}: a folder; name a file in it, e.g. {path / 'eval.db'}.")
    return path


def _whole(variable: str, value: Any) -> int:
    if isinstance(value, str) and not value.strip().isdecimal():
        raise ConfigError(f"{variable}: {value!r} is no whole number.")
    return int(value)


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--metadata {text}: write key=value, e.g. difficulty=easy.")
    return key.strip(), value.strip()
