"""The stack for real: `up --background`, Prefect's own commands against it, kills, `down`.

The first scenario runs on the next Prefect too, where `make next-prefect` has made an environment for it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from crafter_pipeline.processes import free_port, listen, url_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NEXT = ROOT / ".venv-prefect-next" / "bin" / "python"
CALL = "import sys; from crafter_pipeline.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Stack:
    """One that is up, with a home, a port and a state folder of its own."""

    python: Path
    api_url: str
    environment: Mapping[str, str]
    folder: Path

    def prefect(self, *words: str, cwd: Path = ROOT) -> str:
        """What `prefect <words>` prints."""
        return self._call("-m", "prefect", *words, cwd=cwd)

    def ours(self, *words: str) -> str:
        """What `crafter-pipeline <words>` prints."""
        return self._call("-c", CALL, *words, cwd=ROOT)

    def _call(self, *words: str, cwd: Path) -> str:
        command = [str(self.python), *words]
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return done.stdout

    def post(self, path: str, body: Any) -> Any:
        for _ in range(5):  # as Prefect's clients do: 503 is a database that is busy
            answer = httpx.post(self.api_url + path, json=body, timeout=60.0)
            if answer.status_code != 503:
                break
            time.sleep(1.0)
        return answer.raise_for_status().json()

    def logs(self) -> str:
        return "".join(f"\n--- {p.name}\n{p.read_text()[-1500:]}" for p in self.folder.glob("state/*.log"))

    def part(self, module: str) -> psutil.Process:
        """The child of the supervisor that runs `module`."""
        pid = json.loads((self.folder / "state" / "stack.json").read_text())["pid"]
        return next(p for p in psutil.Process(pid).children() if module in p.cmdline())

    def trigger(self, deployment: str, *words: str, cwd: Path = ROOT) -> str:
        """`prefect deployment run <its bare name>`; the run's id."""
        out = self.prefect("deployment", "run", deployment, *words, cwd=cwd)
        assert f"Creating flow run for deployment '{deployment}/{deployment}'" in out
        return out.partition("UUID: ")[2].split()[0]

    def ended(self, run_id: str) -> dict[str, Any]:
        """The run, after it ended."""
        final = {"id": {"any_": [run_id]}, "state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}
        self.wait(lambda: bool(self.runs(final)), "the run does not end")
        return self.runs(final)[0]

    def runs(self, wanted: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.post("/flow_runs/filter", {"flow_runs": wanted})
        return found

    def wait(self, ready: Callable[[], bool], complaint: str, patience_s: float = 90.0) -> None:
        deadline = time.monotonic() + patience_s
        while not ready():
            assert time.monotonic() < deadline, complaint + self.logs()
            time.sleep(0.5)


@pytest.fixture(params=["this-prefect", "next-prefect"])
def python(request) -> Path:
    """Python of an environment with a Prefect."""
    if request.param == "this-prefect":
        return Path(sys.executable)
    if not NEXT.exists():
        pytest.skip("no .venv-prefect-next: make next-prefect")
    return NEXT


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[[Path], Stack]]:
    """`start(python)`: a stack that is up; it is down at the end, and nothing of it runs."""
    made: list[Stack] = []

    def up(python: Path) -> Stack:
        api_url = f"http://127.0.0.1:{free_port()}/api"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_API_URL": api_url,
            "CRAFTER_PIPELINE_STATE": str(tmp_path / "state"),
            "CRAFTER_PIPELINE_RUNS": str(tmp_path / "runs"),
            "PYTHONPATH": str(ROOT),
        }
        stack = Stack(python, api_url, environment, tmp_path)
        made.append(stack)
        assert "Ready: prefect deployment run crafter-pipeline" in stack.ours("up", "--background")
        return stack

    yield up
    for stack in made:
        stack.ours("down")
        stack.wait(partial(_all_gone, stack), "something of it still runs", 5.0)


def _all_gone(stack: Stack) -> bool:
    return not any(_is_of(process, stack) for process in psutil.process_iter())


def _is_of(process: psutil.Process, stack: Stack) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("PREFECT_API_URL") == stack.api_url
    except psutil.Error:
        return False


def test_bare_names_and_schedules(start, python, tmp_path):
    """A run of a bare name is created and started, from the checkout and from elsewhere; a schedule makes runs that the
    worker executes; `doctor` agrees; the event of a regression starts `alert`."""
    stack = start(python)
    elsewhere = dict(stack.environment)
    del elsewhere["PREFECT_API_URL"]  # the profile names it, and enables plugins

    refused = 'overrides=["task_app.runtime=url"]'  # no task app is named
    run = stack.ended(stack.trigger("crafter-pipeline", "-p", refused))
    assert run["state_type"] == "FAILED" and run["start_time"] and "TASK_APP_URL" in run["state"]["message"]

    away = Stack(python, stack.api_url, elsewhere, tmp_path)
    run = stack.ended(away.trigger("alert", "-p", "model=m", "-p", "says=worse", cwd=tmp_path))
    assert run["state_type"] == "COMPLETED"

    alert = httpx.get(f"{stack.api_url}/deployments/name/alert/alert").json()["id"]
    every = {"active": True, "schedule": {"interval": 20}, "parameters": {"model": "m", "says": "on time"}}
    stack.post(f"/deployments/{alert}/schedules", [every])
    done = {"deployment_id": {"any_": [alert]}, "state": {"type": {"any_": ["COMPLETED"]}}}
    stack.wait(lambda: any(r["auto_scheduled"] for r in stack.runs(done)), "no scheduled run was executed")

    emitted = {"model": "latest:rl", "says": "0.4 fewer"}
    stack.prefect("event", "emit", "crafter.eval.regressed", "--resource-id", "m", "--payload", json.dumps(emitted))
    stack.wait(lambda: emitted in [r["parameters"] for r in stack.runs(done)], "the event started nothing")

    findings = json.loads(stack.ours("doctor", "--json"))
    assert {f["state"] for f in findings if f["name"] in ("prefect", "bare names", "schedules", "database")} == {"ok"}
    assert any("stack: process" in f["says"] for f in findings)
    assert httpx.get(stack.api_url.removesuffix("/api") + "/run-files/").status_code == 200


def test_what_is_killed_comes_back(start, tmp_path):
    """SIGKILL of the server and of the worker: both are there again, and a run triggered afterwards completes."""
    stack = start(Path(sys.executable))
    for module in ("crafter_pipeline.cli.prefect_server", "crafter_pipeline.cli.worker"):
        killed = stack.part(module)
        killed.send_signal(signal.SIGKILL)
        run = stack.ended(stack.trigger("alert", "-p", "model=m", "-p", "says=worse"))
        assert run["state_type"] == "COMPLETED"
        assert stack.part(module).pid != killed.pid
        assert f"(process {killed.pid}) ended with exit code -9; started again" in stack.logs()


def test_a_run_that_was_killed_with_its_worker_does_not_hold_up_the_next_one(start):
    """SIGKILL of flow and worker at once: the run ends as Crashed, and the next one of its deployment starts."""
    stack = start(Path(sys.executable))
    with listen("127.0.0.1", 0) as silent:
        where = ["-p", f"task_app_url={url_of(silent)}", "-p", f"backend_url={url_of(silent)}"]
        worker, run_id = stack.part("crafter_pipeline.cli.worker"), stack.trigger("submit-rl", *where)
        running = {"id": {"any_": [run_id]}, "state": {"type": {"any_": ["RUNNING"]}}}
        stack.wait(lambda: bool(stack.runs(running)), "no run starts")
        stack.wait(lambda: stack.runs(running)[0]["infrastructure_pid"] is not None, "its process is not known")
        worker.suspend()  # it must not see its run die
        for process in [*worker.children(), worker]:
            process.kill()
        run = stack.ended(run_id)
        assert run["state_type"] == "CRASHED" and "process is gone" in run["state"]["message"]
    assert stack.ended(stack.trigger("submit-rl", *where))["state_type"] == "FAILED"
