"""RL's rollouts: played by the task app over HTTP, sampled and captured by our gateway.

One event loop in a thread of its own serves the gateway and drives the task app; the trainer calls `play`, which
blocks until a batch is complete.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import uvicorn
from httpx_aiohttp import AiohttpTransport

from crafter_pipeline.contracts import EnvSpec, PolicySpec, RecordSpec, RolloutRequest, RolloutResponse
from crafter_pipeline.errors import JudgeError, PipelineError, TaskAppError
from crafter_pipeline.processes import listen, url_of
from train_app.specs import RlSpec
from train_app.workers.chat import ChatModel
from train_app.workers.engine import Sample
from train_app.workers.gateway import Gateway
from train_app.workers.judging import RolloutJudge

log = logging.getLogger(__name__)
T = TypeVar("T")
ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class PlayedRollout:
    """One rollout ready for training: a sample and a reward per turn."""

    seed: int
    samples: tuple[Sample, ...]
    turn_rewards: tuple[float, ...]
    """What advantages see: the environment's, or blended with a judge's."""
    achievements: tuple[str, ...]
    parse_failures: int
    env_rewards: tuple[float, ...] | None = None
    """The environment's alone, where a judge's are blended in."""
    judge_failure: str | None = None
    """Why the judge could not score it."""


class RolloutPlayer:
    """Plays batches of rollouts with the policy that the engine holds, and has them judged where the spec says so.

    Args:
        spec: The job.
        job_id: Names the rollouts.
        model: The policy.
        task_app_key: What the task app asks for.
        folder: The job's, for the judge's calls.
        event: Called as `event(type, message, level, **data)` with what the job's owner should know.
        task_app: For tests: how the task app is reached.

    Raises:
        PipelineError: there is a judge, and it has no rubric that it can score.
    """

    def __init__(
        self,
        spec: RlSpec,
        job_id: str,
        model: ChatModel,
        task_app_key: str | None,
        *,
        folder: Path,
        event: Callable[..., None],
        task_app: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._spec, self._job_id, self._event = spec, job_id, event
        self._task_app, self._judge_record = task_app, folder / "judge.sqlite"
        self._judge: RolloutJudge | None = None
        self._gateway = Gateway(model, temperature=spec.config.temperature)
        headers = {"X-API-Key": task_app_key} if task_app_key else {}
        self._client_options: dict[str, Any] = dict(base_url=spec.task_app_url, headers=headers, timeout=900.0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollouts", daemon=True)
        self._thread.start()
        self._call(self._start())

    def play(self, iteration: int, seeds: Sequence[int], group_size: int) -> list[list[PlayedRollout]]:
        """[len(seeds)][≤ group_size] rollouts. A rollout that fails twice is left out of its group.

        Raises:
            TaskAppError: more than a quarter of the batch failed.
            JudgeError: more than a quarter of the batch could not be judged, and such rollouts are left out.
        """
        return self._call(self._play(iteration, seeds, group_size))

    def close(self) -> None:
        """Stop the gateway and the loop."""
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)

    # ------------------------------------------------------------------ in the loop

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        sock = listen("127.0.0.1", 0)
        self._gateway.base_url = url_of(sock)
        config = uvicorn.Config(self._gateway.app(), log_level="warning", access_log=False, lifespan="off")
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[sock]))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        transport = self._task_app or AiohttpTransport(limits=limits)
        self._http = httpx.AsyncClient(transport=transport, **self._client_options)
        if self._spec.config.judge is not None:
            self._judge = RolloutJudge(self._spec.config.judge, self._judge_record)
            try:
                await self._judge.prepare(self._http)
            except PipelineError:
                await self._stop()
                raise

    async def _stop(self) -> None:
        if self._judge is not None:
            await self._judge.close()
        await self._http.aclose()
        self._server.should_exit = True
        await self._serving

    async def _play(self, iteration: int, seeds: Sequence[int], group_size: int) -> list[list[PlayedRollout]]:
        limit = asyncio.Semaphore(self._spec.config.concurrency)
        keys = [(seed, k) for seed in seeds for k in range(group_size)]
        played = await asyncio.gather(*(self._one(iteration, seed, k, limit) for seed, k in keys))
        failed = sum(p is None for p in played)
        if failed * 4 > len(keys):
            raise TaskAppError(
                f"{failed} of {len(keys)} rollouts failed at {self._spec.task_app_url}; see the worker's log above."
            )
        groups: dict[int, list[PlayedRollout]] = {seed: [] for seed in seeds}
        for rollout in self._judged(iteration, [p for p in played if p is not None]):
            groups[rollout.seed].append(rollout)
        return list(groups.values())

    def _judged(self, iteration: int, rollouts: list[PlayedRollout]) -> list[PlayedRollout]:
        """Those of a batch that count, and with which reward, when some could not be judged."""
        failures = [r.judge_failure for r in rollouts if r.judge_failure is not None]
        if not failures:
            return rollouts
        judge = self._spec.config.judge
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

    async def _one(self, iteration: int, seed: int, k: int, limit: asyncio.Semaphore) -> PlayedRollout | None:
        """Play, then judge: while a rollout is judged, the next one plays."""
        played = await self._played(iteration, seed, k, limit)
        if played is None or self._judge is None:
            return played[0] if played else None
        rollout, trace = played
        try:
            rewards = await self._judge.rewards(trace, rollout.turn_rewards)
        except PipelineError as e:
            return replace(rollout, judge_failure=str(e))
        return replace(rollout, turn_rewards=rewards, env_rewards=rollout.turn_rewards)

    async def _played(
        self, iteration: int, seed: int, k: int, limit: asyncio.Semaphore
    ) -> tuple[PlayedRollout, dict[str, Any] | None] | None:
        """The rollout and its trace; None when it failed."""
        async with limit:
            for attempt in range(ATTEMPTS):
                rollout_id, url = self._gateway.open()
                try:
                    answer = await self._request(f"{self._job_id}-{iteration}-{seed}-{k}-{attempt}", seed, url)
                except (httpx.HTTPError, TaskAppError) as e:
                    log.warning("rollout seed %d failed (attempt %d): %r", seed, attempt + 1, e)
                    continue
                finally:
                    samples = self._gateway.close(rollout_id)
                rewards = tuple(float(r) for r in answer.metrics.details["turn_rewards"])
                if len(rewards) == len(samples):
                    rollout = PlayedRollout(
                        seed,
                        tuple(samples),
                        rewards,
                        tuple(answer.metrics.details.get("achievements", ())),
                        int(answer.metrics.details.get("parse_failures", 0)),
                    )
                    return rollout, answer.trace
                # a call that was retried on the way is captured twice: its turn cannot be told from the retry
                log.warning(
                    "rollout seed %d: %d calls captured for %d turns; left out", seed, len(samples), len(rewards)
                )
        return None

    async def _request(self, run_id: str, seed: int, url: str) -> RolloutResponse:
        spec = self._spec
        request = RolloutRequest(
            run_id=run_id,
            mode="rl",
            env=EnvSpec(
                env_name=spec.environment,
                seed=seed,
                config={**spec.config.env_config, "max_env_steps": spec.config.max_env_steps},
            ),
            policy=PolicySpec(
                config={
                    **spec.policy,
                    "model": "policy",
                    "inference_url": url,
                    "temperature": spec.config.temperature,
                    "top_p": 1.0,
                    "max_llm_calls": spec.max_turns or spec.config.max_env_steps,
                    **({"step_rewards": spec.config.step_rewards} if spec.config.step_rewards else {}),
                }
            ),
            record=RecordSpec(
                trajectories=False,
                store=spec.config.trace_rollouts,
                return_trace=self._judge is not None,
                trace_format="compact" if self._judge is None else "structured",
            ),
        )
        response = await self._http.post(
            "/rollout", content=request.model_dump_json(), headers={"Content-Type": "application/json"}
        )
        if response.status_code != 200:
            raise TaskAppError(f"{response.status_code}: {response.text[:300]}")
        return RolloutResponse.model_validate_json(response.content)
