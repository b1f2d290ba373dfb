"""What a sweep consists of: rows, their trainings, and the steps that these share. Nothing is run here.

A *row* is a set of keys on top of the base, a line of the table. A *trial* is one training of it (`repeats` makes
several, with seeds of their own). A trial is a chain of *steps*: collect, filter, sft, dagger, rl, evaluate. The key of
a step is the hash of what decides its result: its own part of the config and the keys of the steps before it. Trials
whose chains begin alike share those steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import ceil
from operator import attrgetter
from pathlib import Path
from typing import Any

from crafter_pipeline.config import (
    SEED_KEYS,
    SPREAD,
    DevSeeds,
    EvaluateConfig,
    PipelineConfig,
    SeedRange,
    SftConfig,
    SweepConfig,
    SweepEvaluation,
    Training,
    digest_of,
    load_config,
    parse_config,
)
from crafter_pipeline.config.pipeline import Baseline
from crafter_pipeline.connections import project_root
from crafter_pipeline.errors import ConfigError, suggest
from crafter_pipeline.evaluation.suites import find_suite
from crafter_pipeline.runs import profile_tables
from crafter_pipeline.tables import Tables, flat, merged, nested

_NOT_IN_A_RUN = {
    "baselines": "who is judged beside the runs stands at the top of the file, once for all.",
    "evaluate.baseline_seeds": "runs and baselines play the same worlds; leave it out.",
    "promotion": "a sweep promotes nobody; leave it out.",
}
"""Keys of a run's config that a sweep does not read -> what to do instead."""
_WORLDS = ("evaluate.seeds", "evaluate.max_env_steps", "evaluate.env_config")
"""What all runs are judged on."""
_COMMON: dict[str, bool | set[str]] = {
    "environment": True,
    "task_app": {"runtime", "url"},
    "backend": {"runtime", "url", "data_dir"},
}
"""Whom all runs play and train with: the parts of a config that cannot vary, and the keys that name another folder."""


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a trial, with everything that decides its result."""

    stage: str
    """collect, filter, sft, dagger, rl, evaluate, or evaluate-<baseline>."""
    key: str
    """Equal steps have equal keys."""

    @property
    def folder(self) -> str:
        """Its name in the sweep's folder `work`."""
        return f"{self.stage}-{self.key}"


@dataclass(frozen=True, slots=True)
class Work:
    """What a step asks of the machine."""

    episodes: int = 0
    env_steps: int = 0
    """At most: episodes may end early."""
    training_steps: int = 0
    """At most, where they follow from the number of rows."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.episodes + other.episodes,
            self.env_steps + other.env_steps,
            self.training_steps + other.training_steps,
        )


@dataclass(frozen=True)
class Trial:
    """One training of a row."""

    row: str
    repeat: int
    """Counted from 0."""
    config: PipelineConfig
    stages: tuple[Training, ...]

    @property
    def name(self) -> str:
        """Of the row; further repeats with their number."""
        return f"{self.row}#{self.repeat + 1}" if self.repeat else self.row

    @cached_property
    def steps(self) -> dict[str, Step]:
        """Stage -> step, in the order they are done."""
        return {step.stage: step for step in _chain(self.config, self.stages)}

    def work(self, stage: str) -> Work:
        """What one of its steps asks of the machine."""
        return _work(self.config, stage)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    changes: Tables
    """Dotted key -> value, on top of the base."""
    tags: dict[str, str]
    filter: tuple[str, ...]
    """Which rules select its training rows, `key=value` each, so that the data can be selected again."""
    trials: tuple[Trial, ...]

    @property
    def stages(self) -> tuple[Training, ...]:
        return self.trials[0].stages


@dataclass(frozen=True)
class Plan:
    """A sweep with everything resolved."""

    config: SweepConfig
    rows: tuple[Row, ...]

    @cached_property
    def digest(self) -> str:
        """Changes with the environment and the services, which all runs have in common. What they train and how they
        are judged is not part of it: each step has a key of its own, so that further runs, repeats and worlds go on
        from the models that are there."""
        return digest_of(self.first.config.model_dump(mode="json", include=_COMMON))

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(trial for row in self.rows for trial in row.trials)

    @property
    def first(self) -> Trial:
        """Whose settings the baselines are judged with."""
        return self.rows[0].trials[0]

    @property
    def against(self) -> str:
        """The row or baseline that the rows are compared with."""
        return self.config.against or self.rows[0].name

    def baseline(self, label: Baseline) -> Step:
        """The step that judges a baseline, with the first row's settings."""
        config = self.first.config
        made_of: Any = _plain(config.collect)
        if label == "mlp":
            made_of = [self.first.steps["filter"].key, _plain(config.mlp_job)]
        return Step(f"evaluate-{label}", digest_of([label, made_of, _plain(config.evaluate)]))

    @cached_property
    def shares(self) -> dict[Step, tuple[Trial, ...]]:
        """Each step and the trials that it is part of, in the order they are first needed."""
        shared: dict[Step, list[Trial]] = {}
        for trial in self.trials:
            for step in trial.steps.values():
                shared.setdefault(step, []).append(trial)
        return {step: tuple(trials) for step, trials in shared.items()}

    def only(self, names: Iterable[str]) -> tuple[Trial, ...]:
        """The trials of some rows; of all rows if none is named. ConfigError names the nearest row."""
        known = [row.name for row in self.rows]
        names = list(names)
        for name in names:
            if name not in known:
                raise ConfigError(f"The sweep has no run {name!r}; {suggest(name, known)}")
        return tuple(trial for trial in self.trials if not names or trial.row in names)


def find_sweep(file: Path | str, overrides: Iterable[str] = ()) -> Plan:
    """The plan of a sweep's file with `key=value` overrides on top; a bare name is one of `configs/sweeps`.

    ConfigError names what is wrong with the file, or with a run's config.
    """
    path = Path(file)
    if not path.suffix and not path.exists():
        path = project_root() / "configs" / "sweeps" / f"{file}.toml"
        if not path.is_file():
            known = ", ".join(p.stem for p in sorted(path.parent.glob("*.toml")))
            raise ConfigError(f"There is no sweep {str(file)!r} in {path.parent}; known: {known}.")
    return plan_sweep(load_config(SweepConfig, path, overrides), str(path))


def plan_sweep(config: SweepConfig, source: str = "sweep") -> Plan:
    """Rows and trials of a sweep. ConfigError when a run's config is not valid, with the run and the nearest key.

    Args:
        source: What to call the file in an error.
    """
    base = profile_tables(config.base) if isinstance(config.base, str) else config.base
    varied = [config.grid, *(run.set for run in config.runs)]
    _refuse_keys([config.common, *varied], _NOT_IN_A_RUN, source)
    said_once = dict.fromkeys(_WORLDS, "all runs play the same worlds; say it in common, or by evaluate.suite.")
    _refuse_keys(varied, said_once, source)
    if config.evaluate.suite is not None:
        said_twice = dict.fromkeys(_WORLDS, "evaluate.suite says that as well; leave one of them out.")
        _refuse_keys([config.common], said_twice, source)
    base = merged(merged(base, nested(config.common)), {"evaluate": {"baseline_seeds": None}})
    rows: tuple[Row, ...] = ()
    for name, run in _runs(config, source):
        judged_too = () if rows else config.baselines  # with the first row's settings
        tables = merged(base, {**nested(run.changes), "baselines": judged_too})
        rows += (_row(config, tables, name, run, f"{source}, run {name}"),)
    if "mlp" in config.baselines and "sft" not in rows[0].stages:
        raise ConfigError(f"{source}: baselines: mlp learns from the rows of the first run, which has no stage sft.")
    names = [*(row.name for row in rows), *config.baselines]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice in config.baselines:
        raise ConfigError(f"{source}: run {twice} has a baseline's name; call it something else.")
    if twice is not None:
        raise ConfigError(f"{source}: two rows are called {twice!r}; name them apart with [[runs]].")
    if config.against not in ("", *names):
        raise ConfigError(f"{source}: against: no run or baseline; {suggest(config.against, names)}.")
    _refuse_other_services(rows, source)
    _refuse_equal_rows(rows, source)
    return Plan(config, rows)


# --------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class _Variation:
    """What makes a row: a named run, a point of the grid, or both."""

    changes: Tables
    stages: tuple[Training, ...]
    tags: dict[str, str]


def _runs(config: SweepConfig, source: str) -> Iterator[tuple[str, _Variation]]:
    """(name, variation) of every row."""
    named = [(run.name, run.set, run.stages or config.stages, run.tags) for run in config.runs]
    for name, changes, stages, tags in named or [("", {}, config.stages, {})]:
        for point in _points(flat(config.grid), source):
            at = " ".join(f"{_short(key, point)}={_word(value)}" for key, value in point.items())
            told = f"{name} {at}".strip()
            yield told, _Variation({**flat(changes), **point}, stages, {**config.tags, **tags})


def _points(grid: Tables, source: str) -> Iterator[Tables]:
    """Every combination of the grid's values; an empty grid has one point, which changes nothing."""
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{source}: grid: {key} = {values!r}; a grid gives each key a list of values.")
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _row(config: SweepConfig, tables: Tables, name: str, run: _Variation, source: str) -> Row:
    resolved = parse_config(PipelineConfig, tables, source)
    if "dagger" in run.stages and not resolved.dagger.rounds:
        raise ConfigError(f"{source}: dagger is one of its stages, and dagger.rounds is 0; set common.dagger.rounds.")
    changing = config.repeats.keys or tuple(SEED_KEYS.values())
    keys = [SEED_KEYS[stage] for stage in run.stages if SEED_KEYS[stage] in changing]
    trials = []
    for repeat in range(config.repeats.count if keys else 1):
        seeds = nested({key: attrgetter(key)(resolved) + repeat for key in keys})
        one = parse_config(PipelineConfig, merged(tables, seeds), source)
        judged = _judged(one.evaluate, config.evaluate, source)
        trials.append(Trial(name, repeat, one.model_copy(update={"evaluate": judged}), run.stages))
    return Row(name, run.changes, run.tags, filter_rules(resolved), tuple(trials))


def _refuse_keys(tables: Iterable[Tables], remedies: Mapping[str, str], source: str) -> None:
    """Keys that a sweep's tables may not have -> what to do instead."""
    for key in (key for table in tables for key in flat(table)):
        for name, remedy in remedies.items():
            if key == name or key.startswith(f"{name}."):
                raise ConfigError(f"{source}: {key}: {remedy}")


def _refuse_equal_rows(rows: tuple[Row, ...], source: str) -> None:
    """Two rows with one and the same training: what tells them apart is not read by any stage they have, or it is the
    seed from which `repeats` counts on."""
    known: dict[Step, Trial] = {}
    changes = {row.name: row.changes for row in rows}
    for trial in (trial for row in rows for trial in row.trials):
        other = known.setdefault(trial.steps["evaluate"], trial)
        if other is trial:
            continue
        a, b = changes[other.row], changes[trial.row]
        keys = " or ".join(key for key in {**a, **b} if a.get(key) != b.get(key))
        why = f"no stage of {' → '.join(trial.stages)} reads {keys}" if keys else "they say the same"
        if (other.repeat, trial.repeat) != (0, 0):
            why = f"{other.name} and {trial.name}; repeats count on from the seeds of each row"
        raise ConfigError(f"{source}: the rows {other.row!r} and {trial.row!r} have one training in common: {why}.")


def _refuse_other_services(rows: tuple[Row, ...], source: str) -> None:
    first = rows[0].trials[0].config
    for row in rows:
        for part in _COMMON:
            if getattr(row.trials[0].config, part) != getattr(first, part):
                raise ConfigError(f"{source}, run {row.name}: {part}: all runs share one task app and one backend.")


def _judged(config: EvaluateConfig, asked: SweepEvaluation, source: str) -> EvaluateConfig:
    """The run's own evaluation, on the worlds that the sweep compares on."""
    data = config.model_dump(mode="json") | {"baseline_seeds": None}
    if asked.suite is not None:
        suite = find_suite(asked.suite)
        if suite.environment != config.environment:
            raise ConfigError(
                f"{source}: evaluate.suite: {suite.name} is of {suite.environment}, not {config.environment}."
            )
        data |= {"max_env_steps": suite.max_env_steps, "env_config": dict(suite.env_config)}
        data["seeds"] = suite.worlds(asked.split or "held_out", asked.seeds).model_dump()
    elif asked.split is not None:
        raise ConfigError(f"{source}: evaluate.split needs evaluate.suite, whose worlds it chooses from.")
    elif asked.seeds is not None:
        data["seeds"] = SeedRange(start=config.seeds.start, count=asked.seeds).model_dump()
    return parse_config(EvaluateConfig, data, source)


def filter_rules(config: PipelineConfig) -> tuple[str, ...]:
    """The rules of a filter that are not off, `key=value` each; how rows are written is not among them."""
    rules = config.filter.model_dump(mode="json", exclude_defaults=True, exclude={"export"})
    return tuple(f"{key}={_word(value)}" for key, value in flat(rules).items())


# --------------------------------------------------------------------------- steps


def _chain(config: PipelineConfig, stages: tuple[Training, ...]) -> Iterator[Step]:
    """The steps of a trial."""
    before = ""
    if "sft" in stages:
        yield (step := Step("collect", digest_of(["collect", _plain(config.collect)])))
        yield (step := Step("filter", digest_of(["filter", step.key, _plain(config.filter)])))
        before = step.key
    parts: dict[Training, Any] = {
        "sft": _plain(config.sft),
        "dagger": _plain(config.dagger),
        "rl": [_plain(config.rl), _plain(config.evaluate.policy), config.sft.base_model],
    }
    for stage in stages:
        yield (step := Step(stage, digest_of([stage, before, parts[stage]])))
        before = step.key
    yield Step("evaluate", digest_of(["evaluate", before, _plain(config.evaluate)]))


def _plain(config: Any) -> Any:
    """A part of the config, without what says only how episodes are spread."""
    return config.model_dump(mode="json", exclude=set(SPREAD))


def _work(config: PipelineConfig, stage: str) -> Work:
    rows = config.collect.most_turns
    if stage == "collect":
        return Work(config.collect.seeds.count, rows)
    if stage == "sft":
        steps = _steps(config.sft, rows)
        dev = config.sft.dev
        return Work(training_steps=steps) + (_dev_play(dev, steps, dev.max_env_steps) if dev else Work())
    if stage == "dagger":
        work = Work()
        for index in range(config.dagger.rounds):
            turns = config.dagger.round_play(index, "", config.environment).most_turns
            rows += turns
            work += Work(config.dagger.seeds.count, turns, _steps(config.dagger.sft, rows))
        return work
    if stage == "rl":
        rl = config.rl
        work = _played(rl.iterations * rl.groups_per_iteration * rl.group_size, rl.max_env_steps)
        work += Work(training_steps=rl.iterations * rl.minibatches)
        return work + (_dev_play(rl.dev, rl.iterations, rl.max_env_steps) if rl.dev else Work())
    if stage.startswith("evaluate"):
        trained = Work(training_steps=_steps(config.mlp_job, rows)) if stage == "evaluate-mlp" else Work()
        return trained + _played(config.evaluate.seeds.count, config.evaluate.max_env_steps)
    return Work()


def _played(episodes: int, max_env_steps: int) -> Work:
    return Work(episodes, episodes * max_env_steps)


def _dev_play(dev: DevSeeds, steps: int, max_env_steps: int) -> Work:
    """The last step is judged, too."""
    return _played(len(dev.seeds) * ceil(steps / dev.every), max_env_steps)


def _steps(job: SftConfig, rows: int) -> int:
    return job.max_steps or ceil(job.n_epochs * ceil(min(rows, job.examples or rows) / job.batch_size))


# --------------------------------------------------------------------------- words


def _short(key: str, point: Mapping[str, Any]) -> str:
    """The last word of a key, if no other key of the point ends in it."""
    last = key.rsplit(".", 1)[-1]
    return last if sum(other.rsplit(".", 1)[-1] == last for other in point) == 1 else key


def _word(value: Any) -> str:
    """A value in a row's name or a filter tuple."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(_word, value))
    if isinstance(value, Mapping):
        return ",".join(f"{k}:{_word(v)}" for k, v in value.items())
    return str(value)
