"""A run that is killed, wherever that happens, goes on from there: counted in seeds played, training steps and calls.

With a Prefect server and a worker of the test's own, as `up` would start them.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from crafter_pipeline.cli.server import prefect_server
from crafter_pipeline.config import PipelineConfig
from crafter_pipeline.errors import PipelineError
from crafter_pipeline.processes import Service
from crafter_pipeline.report import read_report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT_STEPS = 2
CONFIG = PipelineConfig.model_validate(
    {
        "name": "resume",
        "collect": {"seeds": {"start": 0, "count": 30}, "max_env_steps": 60, "concurrency": 2},
        "filter": {"models": ["crafter-expert"], "export": {"tokenizer": "crafter-tiny"}},
        "sft": {"max_steps": 16, "save_steps": CHECKPOINT_STEPS},
        "rl": {"iterations": 4, "groups_per_iteration": 2, "group_size": 2, "max_env_steps": 10},
        "evaluate": {"seeds": {"start": 1_000_000, "count": 6}, "max_env_steps": 10, "bootstrap": 100},
    }
)
LONG = CONFIG.model_copy(update={"rl": CONFIG.rl.model_copy(update={"iterations": 200})})
"""Does not end by itself while a test looks."""
SECONDS = 240.0
"""Longest wait for anything."""


class Stack:
    """A Prefect server, a worker and the deployment `crafter-pipeline`, all of a test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.variables = {
            "PREFECT_HOME": str(folder / "prefect"),
            "CRAFTER_PIPELINE_RUNS": str(self.runs),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PYTHONPATH": str(ROOT),
        }
        self.server = prefect_server(folder / "server.log", scheduled=True, environment=self.variables)
        self.server.start()
        self.variables |= {"PREFECT_API_URL": f"{self.server.url}/api"}
        self.worker = self._worker()

    def _worker(self) -> Service:
        log = self.folder / "worker.log"
        return Service(
            "worker", "crafter_pipeline.cli.worker", ["crafter", "test"], host=None, log=log, environment=self.variables
        )

    def open(self) -> None:
        """Wait for the server, deploy, start the worker."""
        self.server.wait_ready(120.0, "/api/health")
        self.worker.start()
        pool = f"{self.server.url}/api/work_pools/crafter"
        until(lambda: httpx.get(pool).status_code == 200, "the pool")
        self.prefect("--no-prompt", "deploy", "--name", "crafter-pipeline")

    def close(self) -> None:
        for child in (self.worker, self.server):
            child.stop(5.0)

    def replace_worker(self) -> None:
        """Kill it, and whatever it leaves behind stays; start another."""
        os.kill(self.worker.process.pid, signal.SIGKILL)
        self.worker.process.wait()
        self.worker = self._worker()
        self.worker.start()

    def prefect(self, *words: str) -> str:
        """Run `prefect …` in the checkout."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *words],
            env={**os.environ, **self.variables}, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def begin(self, config: PipelineConfig = CONFIG, **parameters: Any) -> str:
        """Ask for a run; its id."""
        name = f"{self.server.url}/api/deployments/name/crafter-pipeline/crafter-pipeline"
        deployment = httpx.get(name).json()["id"]
        body = {"parameters": {"config": config.model_dump(mode="json"), **parameters}, "state": {"type": "SCHEDULED"}}
        create = f"{self.server.url}/api/deployments/{deployment}/create_flow_run"
        while (answer := httpx.post(create, json=body, timeout=30.0)).status_code == 503:  # its database is busy
            time.sleep(1.0)
        assert answer.status_code < 300, answer.text
        return str(answer.json()["id"])

    def state(self, flow_run: str) -> dict[str, Any]:
        """{type, name, message} of a flow run."""
        return dict(httpx.get(f"{self.server.url}/api/flow_runs/{flow_run}", timeout=30.0).json()["state"])

    def await_state(self, flow_run: str, *types: str) -> dict[str, Any]:
        until(lambda: self.state(flow_run)["type"] in types, f"{types}")
        return self.state(flow_run)

    def subflows(self, flow_run: str) -> Counter[str]:
        """State -> number of subflow runs."""
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run]}}, "limit": 200}
        found = httpx.post(f"{self.server.url}/api/flow_runs/filter", json=body, timeout=30.0).json()
        return Counter(run["state"]["type"] for run in found)

    # ------------------------------------------------------------------ the run

    @property
    def run(self) -> Path:
        return next(p for p in self.runs.iterdir() if p.name.startswith("resume-"))

    def flow_process(self) -> psutil.Process:
        return psutil.Process(int((self.run / ".lock").read_text()))

    def await_stage(self, before: str) -> None:
        """Until the stage after `before` has begun."""
        until(lambda: self.runs.exists() and (self.run / "stages" / f"{before}.json").exists(), before)

    def episodes(self) -> dict[str, str]:
        """run_id -> when it was stored, of every episode in the run's trace databases; each is there once."""
        found: list[tuple[str, str]] = []
        for path in (self.run / "traces").glob("*.db") if self.runs.exists() else ():
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
                found += db.execute("SELECT session_id, created_at FROM session_traces").fetchall()
        assert len(found) == len(dict(found)), "an episode was stored twice"
        return dict(found)

    def jobs(self, data: Path | None = None) -> list[dict[str, Any]]:
        """The backend's jobs, oldest first, with `steps`: (step, attempt) of each training step it told."""
        with sqlite3.connect(f"file:{(data or self.run / 'backend') / 'jobs.db'}?mode=ro", uri=True) as db:
            db.row_factory = sqlite3.Row
            jobs = [dict(row) for row in db.execute("SELECT * FROM jobs ORDER BY created_at")]
            for job in jobs:
                told = "SELECT DISTINCT step, attempt FROM metrics WHERE job_id = ? AND phase = 'train' ORDER BY step"
                job["steps"] = [tuple(row) for row in db.execute(told, (job["id"],))]
        return jobs


def until(true: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except (OSError, StopIteration, httpx.HTTPError, sqlite3.OperationalError, ValueError, PipelineError):
            pass
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)


@pytest.fixture
def stack(tmp_path) -> Iterator[Stack]:
    stack = Stack(tmp_path)
    try:
        stack.open()
        yield stack
    finally:
        stack.close()


def test_a_run_killed_three_times_plays_and_trains_only_what_is_missing(stack):
    first = stack.begin()
    until(lambda: len(stack.episodes()) > 5, "the first episodes")
    family = stack.flow_process().children(recursive=True)
    stack.replace_worker()  # the run's next line on the console is its last
    assert stack.await_state(first, "CRASHED", "COMPLETED")["type"] == "CRASHED"
    assert not psutil.wait_procs(family, timeout=30.0)[1], "its services ended with it"
    played = stack.episodes()
    assert 5 < len(played) < CONFIG.collect.seeds.count, "in the middle"

    run = stack.begin()  # a fresh run of the same config
    until(lambda: any(step > 3 for job in stack.jobs() for step, _ in job["steps"]), "training steps")
    kill(stack.flow_process())
    stack.await_state(run, "CRASHED")
    until(lambda: read_report(stack.run).status == "partial", "the report of a run that could not write it")
    until(lambda: not stack.subflows(run)["RUNNING"], "the end of its subflows")
    (before,) = stack.jobs()
    assert played.items() <= stack.episodes().items(), "what was stored has not been played again"

    stack.prefect("flow-run", "retry", run)  # the same run once more
    until(lambda: len(stack.jobs()) > 1 and stack.jobs()[1]["steps"], "iterations of RL")
    stack.server.process.kill()
    stack.server.process.wait()
    time.sleep(10)
    stack.server.start()  # and nobody does anything
    state = stack.await_state(run, "COMPLETED", "FAILED")
    assert state["type"] == "COMPLETED", state
    report = read_report(stack.run)
    assert report.status == "succeeded"
    assert state["message"].startswith("succeeded in "), state["message"]

    evaluated = sum(len(e.seeds) for e in report.evaluations)
    assert len(stack.episodes()) == CONFIG.collect.seeds.count + evaluated, "every seed once"
    sft, rl = stack.jobs()
    assert (sft["attempts"], rl["attempts"]) == (2, 1), "one job each, gone on with"
    assert [step for step, _ in sft["steps"]] == list(range(1, CONFIG.sft.max_steps + 1))
    redone = len(before["steps"]) - sum(attempt == 1 for _, attempt in sft["steps"])
    assert redone <= CHECKPOINT_STEPS, f"{redone} training steps were done twice"
    assert len(rl["steps"]) == CONFIG.rl.iterations


def test_a_cancelled_run_stops_everything_within_ten_seconds_and_goes_on_later(stack):
    run = stack.begin(LONG)
    until(lambda: len(stack.jobs()) > 1 and len(stack.jobs()[1]["steps"]) > 1, "iterations of RL")
    children = stack.flow_process().children(recursive=True)
    assert {"task_app", "train_app"} <= {word for child in children for word in child.cmdline()}
    stack.prefect("flow-run", "cancel", run)
    started = time.monotonic()
    assert not psutil.wait_procs(children, timeout=60.0)[1]
    print(f"all gone {time.monotonic() - started:.1f} s after `prefect flow-run cancel` was back")
    assert time.monotonic() - started < 10.0
    assert stack.await_state(run, "CANCELLED", "CRASHED")["type"] == "CANCELLED"
    print(f"cancelled after {time.monotonic() - started:.1f} s")
    assert not stack.subflows(run)["RUNNING"]
    report = read_report(stack.run)
    assert report.status == "partial" and "Stopped from outside" in report.warnings[0]

    done = len(stack.jobs()[1]["steps"])
    stack.begin(LONG)
    until(lambda: len(stack.jobs()[1]["steps"]) > done + 1, "the job going on")
    job = stack.jobs()[1]
    assert (len(stack.jobs()), job["attempts"]) == (2, 2)
    assert [step for step, attempt in job["steps"] if attempt == 1] == list(range(1, done + 1)), "none is done twice"


def test_a_job_on_a_backend_of_others_is_cancelled_with_its_run(stack):
    data = stack.folder / "backend"
    with Service("backend", "train_app", ["--data", str(data)], log=stack.folder / "backend.log") as backend:
        changes = {"backend": {"runtime": "url", "url": backend.url}, "sft": {"max_steps": 100_000}}
        run = stack.begin(PipelineConfig.model_validate({**CONFIG.model_dump(mode="json"), **changes}))
        until(lambda: any(job["steps"] for job in stack.jobs(data)), "training steps")
        stack.prefect("flow-run", "cancel", run)
        until(lambda: stack.jobs(data)[0]["status"] == "cancelled", "the job's end", seconds=10.0)


def kill(process: psutil.Process) -> None:
    """SIGKILL, and wait until neither it nor a child of its is there."""
    family = [*process.children(recursive=True), process]
    process.kill()
    alive = psutil.wait_procs(family, timeout=20.0)[1]
    assert not alive, f"outlived the flow: {alive}"
