"""Experiments: one base, what varies, and how the results are compared."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from crafter_pipeline.config.base import Config, Split
from crafter_pipeline.config.pipeline import Baseline

Training = Literal["sft", "dagger", "rl"]
SEED_KEYS: dict[Training, str] = {"sft": "sft.seed", "dagger": "dagger.sft.seed", "rl": "rl.seed"}
"""Which key of a run's config is the training seed of a stage."""


def in_order(stages: tuple[Training, ...] | None) -> tuple[Training, ...] | None:
    """The stages, if they can follow one another as they are named."""
    if stages is not None:
        if list(stages) != [name for name in SEED_KEYS if name in stages]:
            raise ValueError(f"{', '.join(stages)}: name each stage once, in the order {', '.join(SEED_KEYS)}")
        if "dagger" in stages and "sft" not in stages:
            raise ValueError("dagger goes on from a fine-tuned model: name sft before it")
    return stages


class SweepRun(Config):
    """One run of a sweep: a row of its table, or with a grid one row per point of it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=-]*$")
    """What tables and plots call it."""
    set: dict[str, Any] = {}
    """Keys of the run's config, as in a profile: `{ sft.max_steps = 400, rl.kl = 0.1 }`."""
    stages: tuple[Training, ...] | None = Field(default=None, min_length=1)
    """What is trained in this run; unset: as the sweep says."""
    tags: dict[str, str] = {}
    """Words that stand in its row."""

    _stages = field_validator("stages")(in_order)


class RepeatConfig(Config):
    """The same run with other training seeds: how much of a difference is the luck of a training."""

    count: int = Field(default=1, ge=1, le=100)
    """Trainings of each run; the seeds are the config's own and the next ones."""
    keys: tuple[str, ...] = ()
    """Keys of the seeds that change; empty: of every stage that is trained. A run that trains none of them is trained
    once."""

    @field_validator("keys")
    @classmethod
    def _seeds(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        known = tuple(SEED_KEYS.values())
        for key in keys:
            if key not in known:
                raise ValueError(f"{key!r} is no training seed; name some of {', '.join(known)}")
        return keys


class SweepEvaluation(Config):
    """On which worlds the runs are compared; what is unset is as in the run's own `evaluate`."""

    suite: str | None = None
    """Worlds, episode length and options of a suite, e.g. crafter-100; models are asked as the run says."""
    split: Split | None = None
    """Which of the suite's worlds: dev to choose between runs, held_out to report a choice that was made; unset: the
    latter."""
    seeds: int | None = Field(default=None, ge=1, le=100_000)
    """How many worlds."""


class SweepConfig(Config):
    """Runs that differ in a few keys, and a table of what came of them."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Label of the sweep; its folder begins with it."""
    says: str = ""
    """What it asks, in a sentence."""
    base: str | dict[str, Any] = "tiny"
    """What the runs have in common: a profile's name, or the tables of one."""
    common: dict[str, Any] = {}
    """Keys on top of the base, for all runs."""
    grid: dict[str, Any] = {}
    """Key -> list of values; a run per combination."""
    runs: tuple[SweepRun, ...] = ()
    """Named runs; beside a grid each of them has its points."""
    against: str = ""
    """Whom the rows are compared with: a row's or a baseline's name; unset: the first row."""
    stages: tuple[Training, ...] = Field(default=("sft",), min_length=1)
    """What is trained, in the order sft, dagger, rl; the last one's model is judged."""
    repeats: RepeatConfig = RepeatConfig()
    """Several trainings of each run."""
    evaluate: SweepEvaluation = SweepEvaluation()
    """On which worlds the runs are compared."""
    baselines: tuple[Baseline, ...] = ("random", "teacher")
    """Who is judged beside the runs, once: with the first run's settings."""
    tags: dict[str, str] = {}
    """Words that stand in every row, and by which the training jobs are found."""

    _stages = field_validator("stages")(in_order)

    @field_validator("repeats", mode="before")
    @classmethod
    def _a_count(cls, value: Any) -> Any:
        return {"count": value} if isinstance(value, int) else value

    @model_validator(mode="after")
    def _something_varies(self) -> Self:
        if not self.grid and not self.runs:
            raise ValueError('nothing varies: give [grid], e.g. "sft.lora_rank" = [4, 8], or [[runs]]')
        names = [run.name for run in self.runs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"runs: two of them are called {twice!r}")
        return self
