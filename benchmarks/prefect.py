"""What Prefect costs a seed that has a task of its own, and how soon its page shows every one of them.

A client process maps seeds over `tasks.episodes.play_all` in a flow, as `collect-rollouts` does, against a Prefect
server with a home of its own. Names, states and logs of tasks go to its API as they do in every run, and a tag, as
`crafter-pipeline run` gives one; the flow's result is stored. The task app is an object in the client that answers at
once, so a task's body is next to nothing: the request is built and the answer read.

`prefect.ms_per_seed` is the client's CPU for the flow, until its last event and log line is sent, per seed; a small
flow before it has warmed everything up. `prefect.visible_1000_s` is the time from the last seed's end until the API
counts every task run as completed; a task run that is never counted is an error, not a number.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks import workplace
from benchmarks.metrics import Metric
from crafter_pipeline.cli.server import prefect_server, prefect_variables, python_path
from crafter_pipeline.processes import Service

METRICS = (
    Metric("prefect.ms_per_seed", "CPU of the client for a seed with a task of its own", "ms", at_most=8.0),
    Metric("prefect.visible_1000_s", "from the end of 1,000 tasks until all are shown", "s", at_most=20.0),
)
SEEDS = 1000
AT_ONCE = 16
WARM_UP = 20
PATIENCE_SECONDS = 180.0
"""A task run that is not counted by then is lost."""


def measure(quick: bool) -> dict[str, float | None]:
    """All metrics, medians of the rounds."""
    seeds, rounds = (100, 1) if quick else (SEEDS, 3)
    with workplace() as folder, server(folder) as running:
        told = [mapped(folder, running, seeds) for _ in range(rounds)]
    return {
        "prefect.ms_per_seed": statistics.median(1000.0 * t["cpu_s"] / seeds for t in told),
        "prefect.visible_1000_s": statistics.median(t["visible_s"] for t in told),
    }


@contextmanager
def server(folder: Path) -> Iterator[Service]:
    """A Prefect server as `up` starts it, with its home in `folder`."""
    home = {"PREFECT_HOME": str(folder / "prefect")}
    service = prefect_server(folder / "prefect-server.log", scheduled=True, environment=home)
    service.start()
    try:
        service.wait_ready(180.0, "/api/health")
        yield service
    finally:
        service.stop()


def client_environment(folder: Path, running: Service) -> dict[str, str]:
    """Of a process whose flows go to `running`."""
    ours = {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": f"{running.url}/api"}
    return os.environ | prefect_variables() | ours | {"PYTHONPATH": python_path()}


def mapped(folder: Path, running: Service, seeds: int) -> dict[str, float]:
    """{"cpu_s", "play_s", "visible_s"} of one flow, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.prefect", "--seeds", str(seeds)]
    with (folder / "client.log").open("ab") as log:
        done = subprocess.run(
            command, env=client_environment(folder, running), stdout=subprocess.PIPE, stderr=log, check=True
        )
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


# --------------------------------------------------------------------------- the client


def map_seeds(seeds: int) -> dict[str, float]:
    """Map so many seeds in this process, whose settings name a Prefect server; see the module's text."""
    from prefect import tags
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.runtime import flow_run

    from crafter_pipeline import connections
    from crafter_pipeline.config import CollectConfig
    from crafter_pipeline.contracts import RolloutMetrics, RolloutRequest, RolloutResponse
    from crafter_pipeline.episodes import EpisodeSpec
    from flows.decorator import flow
    from tasks.episodes import play_all

    class Instant:
        """A task app that has no game."""

        def rollout(self, request: RolloutRequest) -> RolloutResponse:
            details = {"achievements": ["collect_wood"], "env_steps": 1, "stop_reason": "env_limit"}
            metrics = RolloutMetrics(episode_returns=[1.0], mean_return=1.0, num_steps=1, details=details)
            return RolloutResponse(run_id=request.run_id, trajectories=[], metrics=metrics)

    @flow(name="benchmark")
    def play(count: int) -> tuple[str, float, float]:
        """Id of the run, when it began to play, and when all had been played."""
        spec = EpisodeSpec.to_collect(CollectConfig(), "http://127.0.0.1:9", "http://127.0.0.1:9")
        started = time.perf_counter()
        results, _ = play_all(range(count), spec, concurrency=AT_ONCE, shard_size=1)
        assert len(results) == count
        return str(flow_run.id), started, time.perf_counter()

    instant = Instant()
    connections.task_app = lambda url: instant  # type: ignore[assignment,return-value]
    with tags("benchmark"):
        play(WARM_UP)
        cpu = time.process_time()
        run_id, started, ended = play(seeds)
    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=PATIENCE_SECONDS)
    cpu_s = time.process_time() - cpu
    return {"cpu_s": cpu_s, "play_s": ended - started, "visible_s": wait_until_shown(run_id, seeds, ended)}


def wait_until_shown(run_id: str, tasks: int, since: float) -> float:
    """Seconds since `since` (of `time.perf_counter`) until the API counts so many completed task runs of a flow run.
    RuntimeError when it does not."""
    while (found := completed(run_id)) < tasks:
        if time.perf_counter() - since > PATIENCE_SECONDS:
            raise RuntimeError(f"Prefect lost {tasks - found} of {tasks} task runs.")
        time.sleep(0.2)
    return time.perf_counter() - since


def completed(run_id: str) -> int:
    """Completed tasks of a flow run that played seeds, as the API of this process's server counts them."""
    tasks = {"name": {"like_": "seed"}, "state": {"type": {"any_": ["COMPLETED"]}}}
    asked = {"flow_runs": {"id": {"any_": [run_id]}}, "task_runs": tasks}
    answer = httpx.post(f"{os.environ['PREFECT_API_URL']}/task_runs/count", json=asked, timeout=60.0)
    return int(answer.raise_for_status().json())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, required=True)
    print(json.dumps(map_seeds(parser.parse_args().seeds)))
