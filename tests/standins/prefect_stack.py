"""A Prefect server and a worker of a test's own: another PREFECT_HOME, a free port, none of our keys."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from crafter_pipeline.cli.server import prefect_server, python_path
from crafter_pipeline.errors import PipelineError
from crafter_pipeline.processes import Service, wait_until

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240.0
"""Longest wait for anything."""
NOT_YET = (OSError, StopIteration, ValueError, httpx.HTTPError, sqlite3.OperationalError, PipelineError)
"""What looking raises while there is nothing to see."""


class PrefectStack:
    """Where it answers (`api_url`), what a client of it has in its `environment`, and what it is asked."""

    def __init__(self, folder: Path, *, scheduled: bool, variables: dict[str, str]) -> None:
        """With logs in `folder`; the server runs from now on."""
        own = {"PREFECT_HOME": str(folder / "prefect"), "CRAFTER_PIPELINE_RUNS": str(folder / "runs")}
        self.folder, self.environment = folder, {**os.environ, "PYTHONPATH": python_path()} | own | variables
        self.server = prefect_server(folder / "server.log", scheduled=scheduled, environment=self.environment)
        self.server.start()
        self.api_url = f"{self.server.url}/api"
        self.environment["PREFECT_API_URL"] = self.api_url
        self.worker = self._worker()

    def _worker(self) -> Service:
        module, log = "crafter_pipeline.cli.worker", self.folder / "worker.log"
        return Service(
            "worker", module, ["crafter", "test"], host=None, log=log, environment=self.environment, folder=ROOT
        )

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, *, scheduled: bool = False, **variables: str) -> Iterator[Self]:
        """Run both for the block, with the pool `crafter`; nothing is deployed yet.

        Args:
            scheduled: Whether the server makes the runs of schedules.
            variables: What server, worker and clients have in their environment as well.
        """
        with pytest.MonkeyPatch.context() as patch:
            for name in [n for n in os.environ if n.startswith("PREFECT_") or n.endswith("_API_KEY")]:
                patch.delenv(name)
            stack = cls(folder, scheduled=scheduled, variables=variables)
            try:
                stack.server.wait_ready(120, "/api/health")
                stack.worker.start()
                log = stack.worker.log
                stack.worker.wait_ready(120, ready=lambda: b"started!" in log.read_bytes())
                yield stack
            finally:
                stack.worker.stop()
                stack.server.stop()

    def replace_worker(self) -> None:
        """Kill it, and whatever it leaves behind stays; start another."""
        assert self.worker.process is not None
        os.kill(self.worker.process.pid, signal.SIGKILL)
        self.worker.process.wait()
        self.worker = self._worker()
        self.worker.start()

    def prefect(self, *words: str) -> str:
        """What `prefect <words>` prints, in the checkout."""
        return self._python("-m", "prefect", *words)

    def deploy(self) -> None:
        """Pool, keys of Secret blocks and deployments, as `crafter-pipeline up` does it."""
        self._python("-m", "crafter_pipeline.cli.deployments")

    def _python(self, *words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """What it answers; AssertionError with its words when that is a refusal."""
        for _ in range(30):  # as Prefect's clients do: 503 is a database that is busy
            answer = httpx.request(method, self.api_url + path, json=body, timeout=30.0)
            if answer.status_code != 503:
                break
            time.sleep(1.0)
        assert answer.is_success, f"{answer.status_code} {answer.text}"
        return answer.json()

    def start(self, name: str, **parameters: Any) -> str:
        """Ask for a run of a deployment; its id."""
        deployment = self.get(f"/deployments/name/{name}/{name}")["id"]
        return str(self.post(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"])

    def state(self, flow_run: str) -> dict[str, Any]:
        """{type, name, message} of a flow run."""
        return dict(self.get(f"/flow_runs/{flow_run}")["state"])

    def await_state(self, flow_run: str, *types: str) -> dict[str, Any]:
        until(lambda: self.state(flow_run)["type"] in types, f"{types}")
        return self.state(flow_run)


def until(true: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Wait for it, through errors that are NOT_YET; ServiceError that names `what` after so many seconds."""

    def seen() -> bool:
        try:
            return bool(true())
        except NOT_YET:
            return False

    wait_until(seen, seconds, lambda: f"waited {seconds:.0f} s for {what}")
