"""A run that is killed, wherever that happens, goes on from there: counted in seeds played, training steps and calls.

With a Prefect server and a worker of the test's own.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from crafter_pipeline.config import PipelineConfig
from crafter_pipeline.processes import Service
from crafter_pipeline.report import read_report
from tests.standins.prefect_stack import PrefectStack, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

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


class Stack(PrefectStack):
    """With the deployment `crafter-pipeline`, and a look at what its run has done."""

    def begin(self, config: PipelineConfig = CONFIG) -> str:
        """Ask for a run; its id."""
        return self.start("crafter-pipeline", config=config.model_dump(mode="json"))

    def subflows(self, flow_run: str) -> Counter[str]:
        """State -> number of subflow runs."""
        body = {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run]}}, "limit": 200}
        return Counter(run["state"]["type"] for run in self.post("/flow_runs/filter", body))

    @property
    def run(self) -> Path:
        return next((self.folder / "runs").glob("resume-*"))

    def flow_process(self) -> psutil.Process:
        return psutil.Process(int((self.run / ".lock").read_text()))

    def episodes(self) -> dict[str, str]:
        """run_id -> when it was stored, of every episode in the run's trace databases; each is there once."""
        found: list[tuple[str, str]] = []
        for path in (self.run / "traces").glob("*.db"):
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


@pytest.fixture
def stack(tmp_path) -> Iterator[Stack]:
    with Stack.opened(tmp_path, scheduled=True) as stack:
        stack.prefect("--no-prompt", "deploy", "--name", "crafter-pipeline")
        yield stack


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
