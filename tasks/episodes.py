"""Episodes: one Prefect task per seed, or per shard of seeds when there are many."""

from __future__ import annotations

from collections.abc import Iterable
from math import floor

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import exponential_backoff

from crafter_pipeline import connections
from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.episodes import EpisodesFailed, EpisodeSpec, imported, play, shards
from crafter_pipeline.progress import progress
from tasks.policies import may_pass

MAX_FAILED_SHARE = 0.05
"""More seeds than this missing, and the stage fails: the numbers would no longer be those that were asked for."""


@task(
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=1),
    retry_jitter_factor=0.5,
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
)
def play_episodes(seeds: list[int], spec: EpisodeSpec) -> list[EpisodeResult]:
    """Play one episode per seed. Safe to retry: the task app answers a finished episode from its ledger."""
    return play(connections.task_app(spec.task_app_url), spec, seeds)


def play_all(
    seeds: Iterable[int], spec: EpisodeSpec, *, concurrency: int, shard_size: int | None
) -> tuple[list[EpisodeResult], dict[int, str]]:
    """Every seed through a bounded pool: (results, why a seed failed). A failed seed does not stop the others.

    Raises EpisodesFailed when more than MAX_FAILED_SHARE of the seeds failed, and ServiceGone as soon as a service is
    gone: the seeds that wait are dropped.
    """
    parts = shards(seeds, shard_size)
    progress().expect(sum(map(len, parts)), "seeds")
    runner: ThreadPoolTaskRunner[list[EpisodeResult]] = ThreadPoolTaskRunner(max_workers=concurrency)
    with imported(spec), runner as pool:  # one store over all tasks: the last one closes it
        futures: list[PrefectFuture[list[EpisodeResult]]] = [
            pool.submit(play_episodes.with_options(task_run_name=_name(part)), {"seeds": part, "spec": spec})
            for part in parts
        ]
        by_future = {future: _outcome(future) for future in as_completed(futures)}
        outcomes = [by_future[future] for future in futures]
    results = [result for done, _ in outcomes for result in done]
    failed = {seed: why for _, bad in outcomes for seed, why in bad.items()}
    if len(failed) > floor(MAX_FAILED_SHARE * (len(results) + len(failed))):
        raise EpisodesFailed(results, failed)
    for seed, why in failed.items():
        progress().note(f"seed {seed} failed: {why}")
    return results, failed


def _name(seeds: list[int]) -> str:
    return f"seed-{seeds[0]}" if len(seeds) == 1 else f"seeds-{seeds[0]}-{seeds[-1]}"


def _outcome(future: PrefectFuture[list[EpisodeResult]]) -> tuple[list[EpisodeResult], dict[int, str]]:
    outcome = future.result(raise_on_failure=False)
    if isinstance(outcome, EpisodesFailed):
        return outcome.done, outcome.failed
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome, {}
