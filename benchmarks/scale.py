"""Very many seeds, for real: `python -m benchmarks.scale [--seeds 100000] [--replicas 2] [--task-runner thread|dask]`.

The flow `collect-rollouts` against a Prefect server, task apps that store every rollout, and a chat model that answers
at once (`benchmarks.chat_standin`); a rollout has one turn. Takes minutes, so it is no subject of `make bench`. At
10 %, 50 % and 100 % of the seeds it prints the memory of each process, and at the end what was counted: rollouts in the
trace databases, and the seconds until Prefect's API had every task. The flow runs a second time, from the ledger alone.

Exit code 1 when a rollout or a task is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks import workplace
from benchmarks.prefect import client_environment, server, wait_until_shown
from benchmarks.task_app import KEY, cpu_seconds, model, pid_of, task_app
from crafter_pipeline.processes import Service
from crafter_pipeline.traces.reader import count_rollouts

MARKS = (0.1, 0.5, 1.0)
"""Shares of the seeds at which memory is looked at."""
TURNS = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Play, count, print."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description="Collect very many rollouts.")
    parser.add_argument("--seeds", type=int, default=100_000)
    parser.add_argument("--replicas", type=int, default=1, help="task apps that share the seeds (default 1)")
    parser.add_argument("--concurrency", type=int, default=16, help="rollouts in flight (default 16)")
    parser.add_argument("--task-runner", choices=("thread", "dask"), default="thread")
    parser.add_argument("--client", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.client:
        play_twice(options, Path(options.client))
        return 0
    with workplace() as folder, ExitStack() as stack:
        chat = stack.enter_context(model(folder))
        apps = [stack.enter_context(task_app(folder)) for _ in range(options.replicas)]
        prefect = stack.enter_context(server(folder))
        processes = {"server": prefect, "model": chat, **{f"task app {i + 1}": app for i, app in enumerate(apps)}}
        return measured(folder, processes, apps, prefect, sys.argv[1:] if argv is None else argv)


def measured(
    folder: Path, processes: Mapping[str, Service], apps: Sequence[Service], prefect: Service, words: Sequence[str]
) -> int:
    """Run the client beside the services, and print what it tells and what they take."""
    environment = client_environment(folder, prefect) | {
        "ENVIRONMENT_API_KEY": KEY,
        "TASK_APP_URL": ",".join(app.url for app in apps),
        "BACKEND_BASE_URL": processes["model"].url,
    }
    command = [sys.executable, "-m", "benchmarks.scale", *words, "--client", str(folder)]
    complete = False
    with (folder / "client.log").open("ab") as log:
        client = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        assert client.stdout is not None
        for line in client.stdout:
            told = json.loads(line)
            told["cpu_s"] = {name: round(cpu_seconds(service), 1) for name, service in processes.items()}
            told["mb"] = {name: megabytes(pid_of(service)) for name, service in processes.items()}
            told["mb"]["client"] = megabytes(client.pid)
            if "episodes" in told:
                told["ledger"] = sum(count_rollouts(db) for db in (folder / "traces").glob("*.db"))
                told["trace_mb"] = round(sum(f.stat().st_size for f in (folder / "traces").iterdir()) / 2**20)
                complete = told["ledger"] == told["episodes"] == told["seeds"]
            print(json.dumps(told), flush=True)
    if client.wait() != 0 or not complete:
        print((folder / "client.log").read_text()[-3000:], file=sys.stderr)
        return 1
    return 0


def megabytes(pid: int) -> int:
    """Resident memory of a process and its children."""
    process = psutil.Process(pid)
    return round(sum(p.memory_info().rss for p in (process, *process.children(recursive=True))) / 2**20)


# --------------------------------------------------------------------------- the client


class Marks:
    """Hears the progress, and prints a line whenever a share of MARKS is reached."""

    def __init__(self, seeds: int) -> None:
        self._lock, self._done = threading.Lock(), 0
        self._left = [round(share * seeds) for share in MARKS]
        self._started = time.perf_counter()

    def advance(self, count: int = 1) -> None:
        with self._lock:
            self._done += count
            if not self._left or self._done < self._left[0]:
                return
            reached = self._left.pop(0)
        minutes = (time.perf_counter() - self._started) / 60
        print(json.dumps({"played": reached, "minutes": round(minutes, 2)}), flush=True)

    def expect(self, total: int, unit: str) -> None: ...

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None: ...

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


def play_twice(options: argparse.Namespace, folder: Path) -> None:
    """Collect, then again from the ledger; both tell a line."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    from crafter_pipeline.config import CollectConfig, PolicyConfig, SeedRange
    from crafter_pipeline.episodes import shards
    from crafter_pipeline.progress import report_to
    from flows.collect_rollouts import collect_rollouts
    from tasks.episodes import dask_shards

    config = CollectConfig(
        model="stand-in",
        seeds=SeedRange(start=0, count=options.seeds),
        max_env_steps=10,
        max_turns=TURNS,
        concurrency=options.concurrency,
        task_runner=options.task_runner,
        policy=PolicyConfig(observation="compact", use_tools=True, max_actions_per_turn=3),
    )
    every = config.seeds.seeds
    tasks = len(
        shards(every, None) if options.task_runner == "thread" else dask_shards(every, None, config.concurrency)
    )
    for again in (False, True):
        cpu, started = time.process_time(), time.perf_counter()
        with report_to(Marks(options.seeds)):
            state = collect_rollouts(config, return_state=True)
        ended = time.perf_counter()
        collected = state.result()
        for worker in (EventsWorker, APILogWorker):
            worker.drain_all(timeout=120.0)
        shown_s = wait_until_shown(str(state.state_details.flow_run_id), tasks, ended)
        told = {
            "again": again,
            "seeds": options.seeds,
            "episodes": collected.episodes,
            "tasks": tasks,
            "shown_after_s": round(shown_s, 1),
            "minutes": round((ended - started) / 60, 2),
            "client_cpu_ms_per_seed": round(1000 * (time.process_time() - cpu) / options.seeds, 2),
            "load": os.getloadavg()[0],
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.exit(main())
