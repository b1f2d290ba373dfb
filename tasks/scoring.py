"""From episodes to scores."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from crafter_pipeline.config import EvaluateConfig
from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.environments import find_environment
from crafter_pipeline.evaluation import Evaluation, evaluate
from tasks.policies import may_pass


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def score(label: str, model: str, results: list[EpisodeResult], config: EvaluateConfig) -> Evaluation:
    """Mean achievements, success rates, Crafter score. A retry computes the same numbers."""
    names = find_environment(config.environment).achievements
    return evaluate(label, model, results, config.max_env_steps, names, config.bootstrap)
