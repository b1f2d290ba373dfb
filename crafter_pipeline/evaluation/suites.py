"""The suites: fixed ways to judge a model, by name. What is played, for how long, on which worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crafter_pipeline.config import HELD_OUT_SEEDS_START, SPLIT_STARTS, SeedRange, Split, own_form
from crafter_pipeline.errors import ConfigError, suggest

USUAL_SEEDS = 200


@dataclass(frozen=True, slots=True)
class Suite:
    """One fixed way to judge a model."""

    name: str
    environment: str
    """Name in `crafter_pipeline.environments`."""
    max_env_steps: int
    """Limit of an episode; there are as many turns, so that it is the only limit."""
    seeds: SeedRange = SeedRange(start=HELD_OUT_SEEDS_START, count=USUAL_SEEDS)
    """The worlds that judge."""
    env_config: Mapping[str, Any] = field(default_factory=dict)
    """Further options of the environment."""
    policy: Mapping[str, Any] | None = None
    """How models are asked that have no form of their own; None: as the task app asks by default."""
    own_policy: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the usual form of those that have one: the built-in models and the tiny student."""
    says: str = ""
    """What it is for, in a sentence."""

    def worlds(self, split: Split = "held_out", count: int | None = None) -> SeedRange:
        """The suite's worlds of a split: as many as it has, or `count`."""
        start = SPLIT_STARTS[split]
        end = min((s for s in SPLIT_STARTS.values() if s > start), default=None)
        wanted = self.seeds.count if count is None else count
        if wanted < 1 or (end is not None and start + wanted > end):
            most = "" if end is None else f" to {end - start}"
            raise ConfigError(f"{wanted} seeds of the split {split}: give a number from 1{most}.")
        return SeedRange(start=start, count=wanted)

    def asks(self, model: str) -> dict[str, Any]:
        """How the suite asks a model: the policy's configuration."""
        own = own_form(model)
        return {**own, **self.own_policy} if own else dict(self.policy or {})


def _crafter(steps: int, says: str) -> Suite:
    return Suite(f"crafter-{steps}", "crafter", steps, says=says)


def _math(level: str, says: str) -> Suite:
    return Suite(
        name=f"math-{level}",
        environment="math",
        max_env_steps=1,
        env_config={"level": level, "source": "generator"},
        own_policy={"history": 0, "max_tokens": 96},
        says=says,
    )


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        _crafter(50, "The first tools. For a quick look."),
        _crafter(100, "A day's beginning: wood, stone, food, water."),
        _crafter(200, "The usual one: up to iron; quality without much survival."),
        _crafter(500, "Adds the first night, sleep and iron tools."),
        Suite(
            name="crafter-full",
            environment="crafter",
            max_env_steps=10_000,
            seeds=SeedRange(start=HELD_OUT_SEEDS_START, count=100),
            says="Until death or 10,000 env steps, as published Crafter scores are taken.",
        ),
        Suite(
            name="crafter-balrog",
            environment="crafter",
            max_env_steps=2_000,
            seeds=SeedRange(start=HELD_OUT_SEEDS_START, count=10),
            policy={
                "observation": "balrog",
                "history": 16,
                "history_form": "turns",
                "max_actions_per_turn": 1,
                "use_tools": False,
                "event_line": False,
                "temperature": 1.0,
                "top_p": 1.0,
                "max_tokens": 8192,
            },
            says="BALROG's prompts and limits; its progress is the share of the 22 achievements.",
        ),
        _math("easy", "Sums and differences below 100."),
        _math("medium", "Products and brackets."),
        _math("hard", "Linear equations, fractions, percents."),
    )
}
"""By name."""


def find_suite(name: str) -> Suite:
    """The suite of this name. ConfigError names the nearest one."""
    if name not in SUITES:
        raise ConfigError(f"There is no suite {name!r}; {suggest(name, tuple(SUITES))}")
    return SUITES[name]
