"""The task app under load: rollouts a second, their CPU, what latency costs, memory, and the size of answers.

The server, the model's stand-in and the bare loop are processes of their own, so the CPU of each is its own; this
process drives them. Every rollout is stored and plays `TURNS` turns of three actions, in a new world unless said
otherwise.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson
import psutil
from httpx_aiohttp import AiohttpTransport

from benchmarks import workplace
from benchmarks.metrics import Metric
from crafter_pipeline.processes import Service

METRICS = (
    Metric("task_app.rollouts_per_s_32", "rollouts a second, 32 at once, instant model", "/s", at_least=40),
    Metric("task_app.cpu_ms_per_rollout", "CPU of the server for one of them", "ms", at_most=20),
    Metric("task_app.cpu_ratio_vs_bare_loop", "the same, against bare calls to the model", "×", at_most=2.0),
    Metric("task_app.cpu_ratio_known_worlds", "that ratio where eight rollouts share a world", "×", at_most=2.0),
    Metric("task_app.two_process_efficiency", "rollouts per CPU second, two servers against one", at_least=0.9),
    Metric("task_app.latency_limit_share_32", "share of the possible rate, 32 at once, 200 ms a call", at_least=0.9),
    Metric("task_app.latency_limit_share_256", "share of the possible rate, 256 at once, 2 s a call", at_least=0.9),
    Metric("task_app.live_2000_mb", "memory of one of 2,000 live rollouts", "MB", at_most=1.0),
    Metric("task_app.livez_p99_ms", "p99 of /livez meanwhile", "ms", at_most=100.0),
    Metric("task_app.answer_kb", "answer of a rollout with its compact trace", "KB", at_most=20.0),
)
TURNS = 10
ACTIONS_PER_TURN = 3
GROUP = 8
"""Rollouts of one world, where worlds are shared."""
KEY = "benchmark"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Work:
    """Rollouts to be played, so many at once until all are done."""

    rollouts: int
    concurrent: int
    turns: int = TURNS
    latency_ms: int = 0
    """Of the model."""
    per_world: int = 1
    """Rollouts that share a world."""
    trace_format: str | None = None
    """Asked for with the answer."""


@dataclass(frozen=True, slots=True)
class Load:
    """Rollouts that were played."""

    rollouts: int
    wall_s: float
    answer_kb: float
    """Mean of the answers."""

    @property
    def per_s(self) -> float:
        """Rollouts per second."""
        return self.rollouts / self.wall_s


def measure(quick: bool) -> dict[str, float | None]:
    """All metrics."""
    rollouts, rounds, live = (64, 1, 200) if quick else (480, 5, 2000)
    with workplace() as folder, model(folder) as chat:
        results = throughput(folder, chat, rollouts, rounds)
        with task_app(folder) as server:
            play([server], chat, Work(64, 32))  # connections are open, code is warm
            waves = 1 if quick else 5
            results["task_app.latency_limit_share_32"] = latency_share(server, chat, 32, 200, 32 * waves)
            results["task_app.latency_limit_share_256"] = latency_share(server, chat, 256, 2000, 256)
        return results | many_live(folder, chat, live, 1000 if quick else 10_000)


# --------------------------------------------------------------------------- what is measured


def throughput(folder: Path, chat: Service, rollouts: int, rounds: int) -> dict[str, float | None]:
    """Rate, CPU, the ratios, and answers: one server, the bare loop and two servers by turns; medians of the rounds."""
    rates, cpu_ms, ratios, known, efficiencies = [], [], [], [], []
    with task_app(folder) as one, task_app(folder) as two:
        play([one, two], chat, Work(128, 32))  # connections are open, code is warm
        answer = play([one], chat, Work(4, 4, trace_format="compact"))
        for _ in range(rounds):
            before = cpu_seconds(one)
            alone = play([one], chat, Work(rollouts, 32))
            alone_s = cpu_seconds(one) - before
            bare_s = bare_loop(chat, TURNS * rollouts, 32)
            before = cpu_seconds(one)
            play([one], chat, Work(rollouts, 32, per_world=GROUP))
            known.append((cpu_seconds(one) - before) / bare_s)
            before = cpu_seconds(one, two)
            play([one, two], chat, Work(rollouts, 32))
            rates.append(alone.per_s)
            cpu_ms.append(1000.0 * alone_s / rollouts)
            ratios.append(alone_s / bare_s)
            efficiencies.append(alone_s / (cpu_seconds(one, two) - before))
    return {
        "task_app.rollouts_per_s_32": statistics.median(rates),
        "task_app.cpu_ms_per_rollout": statistics.median(cpu_ms),
        "task_app.cpu_ratio_vs_bare_loop": statistics.median(ratios),
        "task_app.cpu_ratio_known_worlds": statistics.median(known),
        "task_app.two_process_efficiency": statistics.median(efficiencies),
        "task_app.answer_kb": answer.answer_kb,
    }


def latency_share(server: Service, chat: Service, concurrent: int, latency_ms: int, rollouts: int) -> float:
    """Rate reached, of the rate at which nothing but the model's latency takes time."""
    limit = concurrent / (TURNS * latency_ms / 1000.0)
    return play([server], chat, Work(rollouts, concurrent, latency_ms=latency_ms)).per_s / limit


def many_live(folder: Path, chat: Service, rollouts: int, latency_ms: int) -> dict[str, float | None]:
    """Memory per rollout, and the answers of /livez, while so many rollouts, sent at once, wait for a slow model."""
    with task_app(folder) as server:
        play([server], chat, Work(64, 32))
        process = psutil.Process(pid_of(server))
        before = process.memory_info().rss
        peak, ended = before, False

        async def watch() -> None:
            nonlocal peak
            while not ended:
                peak = max(peak, process.memory_info().rss)
                await asyncio.sleep(0.1)

        async def play_and_watch() -> None:
            nonlocal ended
            watcher = asyncio.create_task(watch())
            await play_async([server], chat, Work(rollouts, rollouts, turns=2, latency_ms=latency_ms))
            ended = True
            await watcher

        command = [sys.executable, "-m", "benchmarks.probe", f"{server.url}/livez"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as probe:
            time.sleep(1.0)  # it is asking
            asyncio.run(play_and_watch())
            times = sorted(json.loads(probe.communicate()[0]))
    return {
        "task_app.live_2000_mb": (peak - before) / rollouts / 2**20,
        "task_app.livez_p99_ms": times[int(0.99 * len(times))],
    }


# --------------------------------------------------------------------------- the processes


def model(folder: Path) -> Service:
    """The stand-in of the chat model."""
    return Service("chat stand-in", "benchmarks.chat_standin", [], log=folder / "chat.log")


def task_app(folder: Path) -> Service:
    """A task app; all of one folder share their traces."""
    environment = {"ENVIRONMENT_API_KEY": KEY, "INFERENCE_API_KEYS": "", "INFERENCE_MAX_CONCURRENT": "2048"}
    arguments = ["--trace", str(folder / "traces")]
    return Service("task app", "task_app", arguments, log=folder / "task_app.log", environment=environment)


def pid_of(service: Service) -> int:
    """Of a service that runs."""
    assert service.process is not None
    return service.process.pid


def cpu_seconds(*services: Service) -> float:
    """User and system time of the processes, so far."""
    times = [psutil.Process(pid_of(service)).cpu_times() for service in services]
    return sum(t.user + t.system for t in times)


def bare_loop(chat: Service, calls: int, concurrent: int) -> float:
    """CPU seconds of so many calls, by `benchmarks.bare_loop`."""
    command = [sys.executable, "-m", "benchmarks.bare_loop", chat.url, str(calls), str(concurrent)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["cpu_s"])


# --------------------------------------------------------------------------- the load


def play(servers: Sequence[Service], chat: Service, work: Work) -> Load:
    """Play it, the servers taking turns."""
    return asyncio.run(play_async(servers, chat, work))


async def play_async(servers: Sequence[Service], chat: Service, work: Work) -> Load:
    """`play`, beside other things."""
    url = f"{chat.url}/wait/{work.latency_ms}/v1" if work.latency_ms else f"{chat.url}/v1"
    left = iter(range(work.rollouts))
    sizes: list[int] = []
    transport = AiohttpTransport(limits=httpx.Limits(max_connections=0))
    headers = {"x-api-key": KEY, "content-type": "application/json"}
    async with httpx.AsyncClient(transport=transport, timeout=600.0, trust_env=False, headers=headers) as client:

        async def player(server: Service) -> None:
            for _ in left:
                body = _request(next(_numbers), url, work)
                response = await client.post(f"{server.url}/rollout", content=body)
                if response.status_code != 200:
                    raise RuntimeError(f"HTTP {response.status_code}: {response.text[:500]}")
                answer = orjson.loads(response.content)
                ended = answer["metrics"]["details"]["stop_reason"]
                assert answer["metrics"]["num_steps"] == work.turns or ended == "death", (answer["metrics"], ended)
                sizes.append(len(response.content))

        started = time.perf_counter()
        await asyncio.gather(*(player(servers[i % len(servers)]) for i in range(work.concurrent)))
        return Load(work.rollouts, time.perf_counter() - started, statistics.mean(sizes) / 1024)


def _request(number: int, url: str, work: Work) -> bytes:
    config = {"model": "stand-in", "inference_url": url, "observation": "compact", "use_tools": True}
    record = {} if work.trace_format is None else {"return_trace": True, "trace_format": work.trace_format}
    steps = ACTIONS_PER_TURN * work.turns
    return orjson.dumps(
        {
            "run_id": f"benchmark-{number}",
            "env": {"env_name": "crafter", "seed": number // work.per_world, "config": {"max_env_steps": steps}},
            "policy": {"policy_name": "benchmark", "config": {**config, "max_llm_calls": work.turns}},
            "record": record,
        }
    )
