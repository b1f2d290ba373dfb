"""What storing a turn costs, in time and on the disk.

The players are in this process, as the task app's are: coroutines of one event loop that hand in rollouts of ten turns
with their answers and wait until these are committed. What they hand in was played before, by the scripted expert in
the default observation, so that storing alone is timed. The system prompt is the environment's own, cut to 1.2 KB.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from benchmarks import workplace
from benchmarks.expert_chat import ExpertChat
from benchmarks.metrics import Metric
from crafter_pipeline.contracts import Rollout, RolloutRequest
from crafter_pipeline.traces.store import TraceStore
from task_app.environments import environment_of
from task_app.plan import plan_rollout
from task_app.rollout import answer_of, play

METRICS = (
    Metric("traces.turns_per_s", "turns stored a second by 32 players", "/s", at_least=2000),
    Metric(
        "traces.write_lag_p99_ms", "99th percentile from handing in to committed, at 2,000 turns/s", "ms", at_most=1000
    ),
    Metric("traces.kb_per_turn", "size of the database per turn, at a system prompt of 1.2 KB", "KB", at_most=6.0),
)
PLAYERS = 32
TURNS = 10
"""Of a rollout."""
SUSTAINED_TURNS_PER_S = 2000
SYSTEM_PROMPT_BYTES = int(1.2 * 1024)

Hand = tuple[Rollout, bytes]
"""A rollout and the answer that was given for it."""


def measure(quick: bool) -> dict[str, float | None]:
    """All metrics."""
    hands = [asyncio.run(played(seed=seed)) for seed in range(4 if quick else 32)]
    count, rounds, seconds = (64, 1, 0.2) if quick else (1000, 5, 10.0)
    with workplace() as folder:
        files = [folder / f"{i}.db" for i in range(rounds)]
        rates = [asyncio.run(store_many(file, hands, count)) for file in files]
        kb_per_turn = files[0].stat().st_size / 1024 / (count * TURNS)
        lags_ms = sorted(asyncio.run(store_steadily(folder / "steady.db", hands, seconds)))
    return {
        "traces.turns_per_s": max(rates),
        "traces.write_lag_p99_ms": lags_ms[int(0.99 * len(lags_ms))],
        "traces.kb_per_turn": kb_per_turn,
    }


async def store_many(file: Path, hands: list[Hand], count: int) -> float:
    """Turns per second, when each player hands in its next rollout as soon as the last one is committed."""
    copies = iter(_copies(hands, count))
    with TraceStore(file) as store:

        async def player() -> None:
            for rollout, answer in copies:
                await asyncio.wrap_future(store.submit(rollout, answer, "0123456789abcdef"))

        started = time.perf_counter()
        await asyncio.gather(*(player() for _ in range(PLAYERS)))
        return count * TURNS / (time.perf_counter() - started)


async def store_steadily(file: Path, hands: list[Hand], seconds: float) -> list[float]:
    """Milliseconds from each rollout's moment to its commit. The moments are set beforehand, so that whoever is late
    has waited longer."""
    count = int(seconds * SUSTAINED_TURNS_PER_S / TURNS)
    lags_ms: list[float] = []
    with TraceStore(file) as store:
        started = time.perf_counter() + 0.1

        async def player(number: int, rollout: Rollout, answer: bytes) -> None:
            moment = started + number * TURNS / SUSTAINED_TURNS_PER_S
            await asyncio.sleep(moment - time.perf_counter())
            await asyncio.wrap_future(store.submit(rollout, answer, "0123456789abcdef"))
            lags_ms.append(1000 * (time.perf_counter() - moment))

        await asyncio.gather(*(player(i, *hand) for i, hand in enumerate(_copies(hands, count))))
    return lags_ms


def _copies(hands: list[Hand], count: int) -> list[Hand]:
    """As many rollouts as asked for, each under a name of its own."""
    names = ((i, *hands[i % len(hands)]) for i in range(count))
    return [(replace(rollout, run_id=f"{rollout.run_id}-{i}"), answer) for i, rollout, answer in names]


async def played(turns: int = TURNS, seed: int = 0, prompt_bytes: int | None = SYSTEM_PROMPT_BYTES) -> Hand:
    """What the expert plays on one world. `prompt_bytes` cuts the system prompt; None leaves it whole."""
    environment = environment_of("grpo-crafter")
    plan = plan_rollout(_request(seed, turns), environment)
    system_prompt = environment.system_prompt(plan.policy, plan.setup)[:prompt_bytes]
    plan = plan_rollout(_request(seed, turns, system_prompt), environment)
    expert = ExpertChat(prompt_tokens=700, completion_tokens=30, latency_ms=123.456)
    result = await play(plan, expert)  # type: ignore[arg-type]
    return result.rollout, answer_of(plan, result)


def _request(seed: int, turns: int, system_prompt: str | None = None) -> RolloutRequest:
    config = {"model": "crafter-expert", "inference_url": "http://model.test/v1", "max_llm_calls": turns}
    body = {
        "run_id": f"benchmark-{seed}",
        "env": {"seed": seed},
        "policy": {"config": config | {"system_prompt": system_prompt}},
    }
    return RolloutRequest.model_validate(body)
