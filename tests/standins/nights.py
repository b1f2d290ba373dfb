"""Nights that nobody played."""

from __future__ import annotations

from crafter_pipeline.config import NightlyConfig
from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.evaluation import Evaluation, evaluate
from crafter_pipeline.nightly import Night, Nights


def evaluation_of(name: str, unlocked: int, config: NightlyConfig, *, missing: int = 0) -> Evaluation:
    """An evaluation in which every episode unlocked so many achievements.

    Args:
        missing: How many of the last seeds were not played.
    """
    results = [
        EpisodeResult(
            run_id=f"planted-{seed}",
            seed=seed,
            achievements=tuple(f"achievement-{i}" for i in range(unlocked)),
            total_reward=0.0,
            turns=1,
            env_steps=1,
            stop_reason="env_limit",
            parse_failures=0,
        )
        for seed in config.seeds.seeds[: config.seeds.count - missing]
    ]
    return evaluate(name, "rl:crafter-tiny:job_1", results, config.max_env_steps, (), bootstrap=200)


def plant_baseline(name: str, unlocked: int, config: NightlyConfig) -> Night:
    """The first night of a model, in the folder of runs."""
    return Nights.of(name).keep("planted", evaluation_of(name, unlocked, config), config)
