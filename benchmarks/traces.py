"""What storing a turn costs, in time and on the disk.

One thread stores rollouts of ten turns, with their answers, as the task app's writer does; each is a transaction.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import replace
from pathlib import Path

import httpx

from benchmarks import workplace
from benchmarks.chat_standin import ACTIONS, completion
from benchmarks.metrics import Metric
from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.contracts import Rollout, RolloutRequest
from crafter_pipeline.settings import Settings
from crafter_pipeline.traces.store import TraceStore
from task_app.environments import environment_of
from task_app.rollout import answer_of, plan_rollout, play

METRICS = (
    Metric("traces.turns_per_s", "turns stored a second, one transaction per rollout of 10", "/s"),
    Metric("traces.kb_per_turn", "size of the database per turn", "KB"),
)


def measure(quick: bool) -> dict[str, float | None]:
    """All metrics."""
    rollout, answer = asyncio.run(played())
    count, rounds = (50, 1) if quick else (500, 5)
    with workplace() as folder:
        files = [folder / f"{i}.db" for i in range(rounds)]
        rates = [store_many(file, rollout, answer, count) for file in files]
        kb_per_turn = files[0].stat().st_size / 1024 / (count * len(rollout.turns))
    return {"traces.turns_per_s": max(rates), "traces.kb_per_turn": kb_per_turn}


def store_many(file: Path, rollout: Rollout, answer: bytes, count: int) -> float:
    """Turns per second."""
    rollouts = [replace(rollout, run_id=f"{rollout.run_id}-{i}") for i in range(count)]
    with TraceStore(file) as store:
        started = time.perf_counter()
        for each in rollouts:
            assert store.add(each, answer, "0123456789abcdef")
        return count * len(rollout.turns) / (time.perf_counter() - started)


async def played(turns: int = 10) -> tuple[Rollout, bytes]:
    """A rollout and its answer."""
    bodies = itertools.cycle([completion(actions).partition(b"\r\n\r\n")[2] for actions in ACTIONS])
    config = {"model": "stand-in", "inference_url": "http://model.test/v1", "max_llm_calls": turns}
    request = RolloutRequest.model_validate({"run_id": "benchmark", "env": {"seed": 1}, "policy": {"config": config}})
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=next(bodies)))
    async with ChatClient(Settings(_env_file=None), transport=transport) as chat:  # type: ignore[call-arg]
        plan = plan_rollout(request, environment_of("grpo-crafter"))
        result = await play(plan, chat)
        return result.rollout, answer_of(plan, result)
