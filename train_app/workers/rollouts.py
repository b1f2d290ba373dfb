"""RL's rollouts: played by the task app over HTTP, sampled and captured by our gateway.

One event loop in a thread of its own serves the gateway and drives the task app; the trainer calls `play`, which
blocks until a batch is complete.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import uvicorn
from httpx_aiohttp import AiohttpTransport

from crafter_pipeline.contracts import EnvSpec, PolicySpec, RecordSpec, RolloutRequest, RolloutResponse
from crafter_pipeline.errors import TaskAppError
from crafter_pipeline.processes import listen, url_of
from train_app.specs import RlSpec
from train_app.workers.chat import ChatModel
from train_app.workers.engine import Sample
from train_app.workers.gateway import Gateway

log = logging.getLogger(__name__)
T = TypeVar("T")
ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class PlayedRollout:
    """One rollout ready for training: a sample and a reward per turn."""

    seed: int
    samples: tuple[Sample, ...]
    turn_rewards: tuple[float, ...]
    achievements: tuple[str, ...]
    parse_failures: int


class RolloutPlayer:
    """Plays batches of rollouts with the policy that the engine holds."""

    def __init__(self, spec: RlSpec, job_id: str, model: ChatModel, task_app_key: str | None) -> None:
        self._spec, self._job_id = spec, job_id
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
        self._http = httpx.AsyncClient(transport=AiohttpTransport(limits=limits), **self._client_options)

    async def _stop(self) -> None:
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
        for rollout in played:
            if rollout is not None:
                groups[rollout.seed].append(rollout)
        return list(groups.values())

    async def _one(self, iteration: int, seed: int, k: int, limit: asyncio.Semaphore) -> PlayedRollout | None:
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
                    return PlayedRollout(
                        seed,
                        tuple(samples),
                        rewards,
                        tuple(answer.metrics.details.get("achievements", ())),
                        int(answer.metrics.details.get("parse_failures", 0)),
                    )
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
            env=EnvSpec(env_name=spec.environment, seed=seed, config={"max_env_steps": spec.config.max_env_steps}),
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
            record=RecordSpec(trajectories=False, store=spec.config.trace_rollouts),
        )
        response = await self._http.post(
            "/rollout", content=request.model_dump_json(), headers={"Content-Type": "application/json"}
        )
        if response.status_code != 200:
            raise TaskAppError(f"{response.status_code}: {response.text[:300]}")
        return RolloutResponse.model_validate_json(response.content)
