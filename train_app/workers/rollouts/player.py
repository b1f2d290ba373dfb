"""RL's rollouts: played by task apps over HTTP, sampled and captured by our gateway.

One event loop in a thread of its own serves the gateway and drives the task apps; the trainer calls `play` and
`evaluate`, which block until a batch is complete.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvicorn

from crafter_pipeline.errors import JudgeError, PipelineError, TaskAppError
from crafter_pipeline.processes import listen, url_of
from train_app.curriculum import Task
from train_app.specs import RlSpec, SftSpec
from train_app.workers.inference.chat import ChatModel
from train_app.workers.inference.sampling import Sample
from train_app.workers.rollouts.dev_evaluation import DevScore, achievements_of
from train_app.workers.rollouts.episodes import Episodes, Outcome, read_outcome
from train_app.workers.rollouts.gateway import LOOPBACK, Gateway, address_for, samples_of
from train_app.workers.rollouts.judging import RolloutJudge
from train_app.workers.rollouts.task_apps import RolloutFailed, TaskAppLost, TaskApps

log = logging.getLogger(__name__)
T = TypeVar("T")
ATTEMPTS = 2
"""Of a rollout that fails."""
MOVES = 3
"""To another task app, or to the same one after an outage, on top of the attempts."""
ROLLOUT_SECONDS = 900.0
"""Deadline of a rollout."""


@dataclass(frozen=True, slots=True)
class PlayedRollout:
    """One rollout ready for training: a sample and a reward per turn."""

    task: Task
    samples: tuple[Sample, ...]
    turn_rewards: tuple[float, ...]
    """What advantages see: the environment's, or blended with a judge's."""
    achievements: tuple[str, ...]
    parse_failures: int
    run_id: str = ""
    """Under which the task app played it."""
    trace_id: str | None = None
    """Under which its trace is found, where the task app says."""
    index: int = 0
    """Within its group."""
    length_steps: int = 0
    """Env steps."""
    env_rewards: tuple[float, ...] | None = None
    """The environment's alone, where a judge's are blended in."""
    outcome_score: float | None = None
    """The judge's of the episode, 0 to 1."""
    event_score: float | None = None
    """The judge's of the turns, 0 to 1, their mean."""
    judge_failure: str | None = None
    """Why the judge could not score it."""

    @property
    def seed(self) -> int:
        """Of the world."""
        return self.task.seed

    @property
    def truncated(self) -> int:
        """How many of its answers were cut at max_tokens."""
        return sum(not sample.finished for sample in self.samples)


@dataclass(slots=True)
class BatchStats:
    """How a batch was played."""

    rollouts: int = 0
    """Played, whether or not they could be judged."""
    failed: int = 0
    """Left out after all attempts."""
    retried: int = 0
    """Attempts after the first one."""
    lost: int = 0
    """Attempts that went down with their task app."""
    mismatched: int = 0
    """Attempts whose captured calls were not their turns."""
    turns: int = 0
    truncated: int = 0
    """Turns that were cut at max_tokens."""
    parse_failures: int = 0
    tokens: int = 0
    """Sampled."""
    prompt_tokens: int = 0
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    """Reasons of failed attempts."""

    def metrics(self) -> dict[str, float]:
        """The numbers for the job's metrics."""
        seconds, turns = max(self.seconds, 1e-9), max(self.turns, 1)
        return {
            "rollouts": float(self.rollouts),
            "rollouts_failed": float(self.failed),
            "rollouts_retried": float(self.retried),
            "rollouts_mismatched": float(self.mismatched),
            "rollouts_per_second": self.rollouts / seconds,
            "tokens_per_second": self.tokens / seconds,
            "truncated_rate": self.truncated / turns,
            "parse_failure_rate": self.parse_failures / turns,
        }


class RolloutPlayer:
    """Plays batches of rollouts with the policy that a model holds, and has them judged where the spec says so.

    Args:
        spec: The job; of a fine-tuning one, the episodes on its dev seeds.
        job_id: Names the rollouts.
        model: The policy.
        task_app_key: What the task apps ask for.
        folder: The job's, for the judge's calls.
        event: Called as `event(type, message, level, **data)` with what the job's owner should know.
        task_app: For tests: how the task apps are reached.
        rollout_seconds: Deadline of a rollout.

    Raises:
        TaskAppError: a task app refuses our key or is none, or none answers.
        ConfigError: there is a judge, and it has no rubric that it can score.
    """

    def __init__(
        self,
        spec: RlSpec | SftSpec,
        job_id: str,
        model: ChatModel,
        task_app_key: str | None,
        *,
        folder: Path,
        event: Callable[..., None],
        task_app: httpx.AsyncBaseTransport | None = None,
        rollout_seconds: float = ROLLOUT_SECONDS,
    ) -> None:
        self._episodes = Episodes.of(spec, job_id)
        self._event, self._seconds = event, rollout_seconds
        self._key, self._transport, self._judge_record = task_app_key, task_app, folder / "judge.sqlite"
        self._judge: RolloutJudge | None = None
        self._told: set[str] = set()
        self._gateway = Gateway(model)
        # a restarted worker plays an iteration again: under its old names a task app would answer from its ledger
        self._run = f"{job_id}-{secrets.token_hex(3)}"
        self.stats = BatchStats()
        """Of the last batch."""
        self._open = AsyncExitStack()
        self._working: set[Future[Any]] = set()
        self._calling = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()
        try:
            self._call(self._start())
        except BaseException:
            self.close()
            raise

    def play(self, iteration: int, tasks: Sequence[Task], group_size: int) -> list[list[PlayedRollout]]:
        """[len(tasks)][≤ group_size] rollouts. One that fails in all its attempts is left out of its group.

        Raises:
            TaskAppError: more than a quarter of the batch failed, or no attempt can succeed any more.
            JudgeError: more than a quarter of the batch could not be judged, and such rollouts are left out.
        """
        return self._call(self._play(iteration, tasks, group_size))

    def evaluate(self, seeds: Sequence[int], temperature: float, label: str) -> DevScore:
        """One episode per seed, with the environment's own reward; neither judged, stored nor trained on.

        Args:
            label: Names the rollouts.

        Raises:
            TaskAppError: as `play`.
        """
        return self._call(self._evaluate(seeds, temperature, label))

    def close(self) -> None:
        """Stop what is played, the gateway and the loop."""
        if not self._thread.is_alive():
            return
        with self._calling:
            begun = tuple(self._working)
        for work in begun:
            work.cancel()
        self._call(self._open.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)

    # ------------------------------------------------------------------ in the loop

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        with self._calling:  # or `close` might miss what has just begun, and its caller would wait for ever
            done = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._working.add(done)
        try:
            return done.result()
        finally:
            self._working.discard(done)

    async def _start(self) -> None:
        apps = TaskApps(self._episodes.task_app_urls, self._key, self._event, self._transport)
        self._task_apps = apps
        self._open.push_async_callback(apps.aclose)
        host = address_for(self._episodes.task_app_urls)
        sock = listen(host, 0)
        self._gateway_url = url_of(sock)
        config = uvicorn.Config(
            self._gateway.app(), log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[sock]))

        async def stop() -> None:
            server.should_exit = True
            await serving

        self._open.push_async_callback(stop)
        if host != LOOPBACK:
            message = f"A task app is on another machine: it must reach the policy at {self._gateway_url}."
            self._event("gateway.reachable", message, "info", url=self._gateway_url)
        info = await apps.check()
        if self._episodes.judge is not None:
            self._judge = RolloutJudge(self._episodes.judge, self._judge_record)
            self._open.push_async_callback(self._judge.close)
            self._judge.prepare(info)

    async def _play(self, iteration: int, tasks: Sequence[Task], group_size: int) -> list[list[PlayedRollout]]:
        batch = _Batch(self._episodes)
        names = [(g, k) for g in range(len(tasks)) for k in range(group_size)]
        played = await self._all(batch, (self._one(batch, f"{iteration}-{g}-{k}", tasks[g], k) for g, k in names))
        groups: list[list[PlayedRollout]] = [[] for _ in tasks]
        counted = self._judged(iteration, [r for r in played if r is not None])
        index = {r.run_id: g for (g, _), r in zip(names, played, strict=True) if r is not None}
        for rollout in counted:
            groups[index[rollout.run_id]].append(rollout)
        return groups

    async def _evaluate(self, seeds: Sequence[int], temperature: float, label: str) -> DevScore:
        batch = _Batch(self._episodes.on_dev_seeds(temperature))
        played = await self._all(
            batch, (self._played(batch, f"{label}-{seed}", Task(seed), 0) for seed in dict.fromkeys(seeds))
        )
        rollouts = [rollout for rollout, _ in (pair for pair in played if pair is not None)]
        return DevScore(
            {r.seed: sum(r.turn_rewards) for r in rollouts},
            {r.seed: frozenset(r.achievements) for r in rollouts},
            achievements_of(self._episodes.environment),
        )

    async def _all(self, batch: _Batch, rollouts: Iterable[Coroutine[Any, Any, T | None]]) -> list[T | None]:
        """A whole batch, None where a rollout failed; the first error of an operator's ends it."""
        started = time.monotonic()
        tasks = [asyncio.create_task(rollout) for rollout in rollouts]
        try:
            played = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            batch.stats.seconds = time.monotonic() - started
            self.stats = batch.stats
        batch.stats.failed = sum(p is None for p in played)
        if batch.stats.failed * 4 > len(tasks):
            (reason, times), *_ = batch.stats.failures.most_common(1)
            raise TaskAppError(
                f"{batch.stats.failed} of {len(tasks)} rollouts failed at {self._task_apps.shown}. "
                f"Most often ({times} times): {reason}"
            )
        return played

    def _judged(self, iteration: int, rollouts: list[PlayedRollout]) -> list[PlayedRollout]:
        """Those of a batch that count, and with which reward, when some could not be judged."""
        failures = [r.judge_failure for r in rollouts if r.judge_failure is not None]
        if not failures:
            return rollouts
        judge = self._episodes.judge
        assert judge is not None
        env_only = judge.on_failure == "env_only"
        what = "the batch counts with the environment's reward" if env_only else "they are left out"
        message = f"{len(failures)} of {len(rollouts)} rollouts could not be judged, {what}. First: {failures[0]}"
        numbers = {"iteration": iteration, "failed": len(failures), "rollouts": len(rollouts)}
        self._event("rl.judge.failed", message, "warning", **numbers)
        if env_only:
            return [replace(r, turn_rewards=r.env_rewards or r.turn_rewards, env_rewards=None) for r in rollouts]
        if len(failures) * 4 > len(rollouts):
            raise JudgeError(f"{len(failures)} of {len(rollouts)} rollouts could not be judged. First: {failures[0]}")
        return [r for r in rollouts if r.judge_failure is None]

    async def _one(self, batch: _Batch, name: str, task: Task, index: int) -> PlayedRollout | None:
        """Play, then judge: while a rollout is judged, the next one plays."""
        played = await self._played(batch, name, task, index)
        if played is None or self._judge is None:
            return played[0] if played else None
        rollout, outcome = played
        try:
            judged = await self._judge.judged(outcome.trace, rollout.turn_rewards)
        except PipelineError as e:
            return replace(rollout, judge_failure=str(e))
        return replace(
            rollout,
            turn_rewards=judged.turn_rewards,
            env_rewards=rollout.turn_rewards,
            outcome_score=judged.outcome_score,
            event_score=judged.event_score,
        )

    async def _played(self, batch: _Batch, name: str, task: Task, index: int) -> tuple[PlayedRollout, Outcome] | None:
        """The rollout and what the task app said of it; None when it failed.

        Every attempt has a name and a gateway URL of its own: what comes late from an earlier one is nobody's.
        """
        failed, lost, avoid = 0, 0, None
        async with batch.limit:
            while failed < ATTEMPTS and lost <= MOVES:
                run_id = f"{self._run}-{name}-{failed + lost}"
                batch.stats.retried += failed + lost > 0
                rollout_id = self._gateway.open(batch.episodes.temperature)
                url = f"{self._gateway_url}/rollouts/{rollout_id}/v1/chat/completions"
                try:
                    request = batch.episodes.request(run_id, task, url, self._seconds)
                    answer = await self._task_apps.play(request, seconds=self._seconds, avoid=avoid)
                    samples = samples_of(self._gateway.close(rollout_id))
                    outcome = read_outcome(answer, run_id)
                    if len(samples) != len(outcome.turn_rewards):
                        # a call that was retried on the way is captured twice: its turn cannot be told from the retry
                        batch.stats.mismatched += 1
                        turns = len(outcome.turn_rewards)
                        raise RolloutFailed(f"{len(samples)} calls were captured of {turns} turns")
                except RolloutFailed as e:
                    log.warning("rollout %s, seed %d: %s", run_id, task.seed, e)
                    batch.stats.failures[str(e)] += 1
                    avoid = e.url or avoid
                    if isinstance(e, TaskAppLost):
                        lost += 1
                        batch.stats.lost += 1
                    else:
                        failed += 1
                    continue
                finally:
                    self._gateway.close(rollout_id)
                rollout = PlayedRollout(
                    task=task,
                    samples=samples,
                    turn_rewards=outcome.turn_rewards,
                    achievements=outcome.achievements,
                    parse_failures=outcome.parse_failures,
                    run_id=run_id,
                    trace_id=outcome.trace_id,
                    index=index,
                    length_steps=outcome.env_steps,
                )
                batch.count(rollout)
                self._tell(outcome.not_applied)
                return rollout, outcome
        return None

    def _tell(self, not_applied: Mapping[str, str]) -> None:
        """What the task app leaves out of our requests, each once."""
        for key, reason in not_applied.items():
            if key not in self._told:
                self._told.add(key)
                message = f"{key} not applied by the task app: {reason}"
                self._event("job.not_applied", message, "warning", key=key, reason=reason)


class _Batch:
    """A batch under way."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes, self.stats = episodes, BatchStats()
        self.limit = asyncio.Semaphore(episodes.concurrency)

    def count(self, rollout: PlayedRollout) -> None:
        """Add a played rollout to the numbers."""
        self.stats.rollouts += 1
        self.stats.turns += len(rollout.samples)
        self.stats.parse_failures += rollout.parse_failures
        self.stats.truncated += rollout.truncated
        self.stats.tokens += sum(len(sample.ids) for sample in rollout.samples)
        self.stats.prompt_tokens += sum(len(sample.prompt_ids) for sample in rollout.samples)
