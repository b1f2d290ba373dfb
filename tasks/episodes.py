"""Episodes: one Prefect task per seed, or per shard of seeds when there are many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from math import floor
from queue import SimpleQueue
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.tasks import exponential_backoff

from crafter_pipeline import connections
from crafter_pipeline.config import TaskRunner
from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.episodes import SEEDS_AS_TASKS, EpisodesFailed, EpisodeSpec, imported, play, shards
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.progress import progress
from tasks.artifacts import artifact_key, bar
from tasks.policies import may_pass
from tasks.runners import Pool, dask, threads

MAX_FAILED_SHARE = 0.05
"""More seeds than this missing, and the stage fails: the numbers would no longer be those that were asked for."""
DASK_TASKS_PER_ROLLOUT = 4
"""Tasks for each rollout in flight on Dask: a task costs a quarter of a second there, so they are few."""
NOTED = 10
"""Failed seeds that get a line of their own in the log."""


def name_of_run(parameters: dict[str, Any]) -> str:
    """seed-7, or seeds-0-199 of a shard."""
    seeds = parameters["seeds"]
    return f"seed-{seeds[0]}" if len(seeds) == 1 else f"seeds-{seeds[0]}-{seeds[-1]}"


@task(
    task_run_name=name_of_run,  # type: ignore[arg-type]  # a function will do, whatever Prefect's type says
    retries=2,
    retry_delay_seconds=exponential_backoff(backoff_factor=1),
    retry_jitter_factor=0.5,
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def play_episodes(seeds: Sequence[int], spec: EpisodeSpec) -> list[EpisodeResult]:
    """Play one episode per seed. Safe to retry: the task app answers a finished episode from its ledger, which is also
    why no result is stored here."""
    return play(spec, seeds)


def play_all(
    seeds: Sequence[int],
    spec: EpisodeSpec,
    *,
    concurrency: int,
    shard_size: int | None,
    task_runner: TaskRunner = "thread",
    dask_address: str | None = None,
) -> tuple[list[EpisodeResult], dict[int, str]]:
    """Every seed through a bounded pool: (results, why a seed failed). A failed seed does not stop the others.

    Raises EpisodesFailed when more than MAX_FAILED_SHARE of the seeds failed, and ServiceGone as soon as a service is
    gone: the seeds that wait are dropped.
    """
    with bar(artifact_key("rollouts", spec.purpose), "seeds"), imported(spec):  # one store: the last user closes it
        progress().expect(len(seeds), "seeds")
        if task_runner == "thread":
            with threads(concurrency) as pool:
                played = _played(pool, shards(seeds, shard_size), spec, concurrency)
                outcomes = {number: _counted(_outcome(future)) for number, future in played}
        else:
            _require_reach(spec, dask_address)
            away = spec.model_copy(update={"imports": None})
            parts = dask_shards(seeds, shard_size, concurrency)
            with dask(concurrency, dask_address) as pool:
                played = _played(pool, parts, away, concurrency)
                outcomes = {number: _brought_home(_outcome(future), spec) for number, future in played}
    results = [result for number in sorted(outcomes) for result in outcomes[number][0]]
    failed = {seed: why for number in sorted(outcomes) for seed, why in outcomes[number][1].items()}
    if len(failed) > floor(MAX_FAILED_SHARE * len(seeds)):
        raise EpisodesFailed(results, failed)
    for seed, why in islice(failed.items(), NOTED):
        progress().note(f"seed {seed} failed: {why}")
    if len(failed) > NOTED:
        progress().note(f"{len(failed) - NOTED} more seeds failed")
    return results, failed


Outcome = tuple[list[EpisodeResult], dict[int, str]]


def _played(
    pool: Pool, parts: Sequence[Sequence[int]], spec: EpisodeSpec, at_once: int
) -> Iterator[tuple[int, PrefectFuture[list[EpisodeResult]]]]:
    """The tasks as they end, with the number of their part. No more than `at_once` are submitted and not over, so that
    what waits costs nothing, and is dropped when the stage ends early."""
    ended: SimpleQueue[tuple[int, PrefectFuture[Any]]] = SimpleQueue()

    def submit(number: int, part: Sequence[int]) -> None:
        future = pool.submit(play_episodes, {"seeds": part, "spec": spec})
        future.add_done_callback(lambda done: ended.put((number, done)))

    waiting = enumerate(parts)
    for number, part in islice(waiting, at_once):
        submit(number, part)
    for _ in parts:
        over = ended.get()
        for number, part in islice(waiting, 1):
            submit(number, part)
        yield over


def _outcome(future: PrefectFuture[list[EpisodeResult]]) -> Outcome:
    outcome = future.result(raise_on_failure=False)
    if isinstance(outcome, EpisodesFailed):
        return outcome.done, outcome.failed
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome, {}


def _counted(outcome: Outcome) -> Outcome:
    """A task that failed has taken back what it told: nobody tries again any more."""
    done, failed = outcome
    if failed:
        progress().advance(len(done))
    return outcome


# --------------------------------------------------------------------------- on Dask


def dask_shards(seeds: Sequence[int], size: int | None, concurrency: int) -> list[Sequence[int]]:
    """Seeds by task: enough for a few tasks per rollout in flight, so that each is worth what it costs."""
    return shards(seeds, size, min(SEEDS_AS_TASKS, DASK_TASKS_PER_ROLLOUT * concurrency))


def _require_reach(spec: EpisodeSpec, dask_address: str | None) -> None:
    """ConfigError when workers of somebody else's scheduler would lack the key of a task app."""
    if dask_address is not None and any(map(connections.minted, spec.task_app_urls)):
        raise ConfigError(
            "dask_address: its workers do not know the key that this run made for its own task app. Start a task app "
            "that they can reach (task_app.runtime = 'url'), with ENVIRONMENT_API_KEY set here and there; or unset "
            "dask_address."
        )


def _brought_home(outcome: Outcome, spec: EpisodeSpec) -> Outcome:
    """What worker processes played, told to the `progress()` of this one. Traces are stored here, by one writer: the
    task app answers once more, from its ledger."""
    done, failed = outcome
    if spec.imports is None:
        progress().advance(len(done))
        return outcome
    try:
        return play(spec, [result.seed for result in done]), failed
    except EpisodesFailed as e:
        progress().advance(len(e.done))
        return e.done, {**failed, **e.failed}
