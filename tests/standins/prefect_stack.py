"""A Prefect server and a worker of a test's own: another PREFECT_HOME, a free port, none of our keys."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crafter_pipeline.cli.server import prefect_server
from crafter_pipeline.processes import stop_process, tail_of, wait_until

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class PrefectStack:
    """Where it answers, and what a client of it has in its environment."""

    api_url: str
    environment: dict[str, str]

    def deploy(self) -> None:
        """Pool, keys of Secret blocks and deployments, as `crafter-pipeline up` does it."""
        command = [sys.executable, "-m", "crafter_pipeline.cli.deployments"]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def prefect_stack(folder: Path, **variables: str) -> Iterator[PrefectStack]:
    """Run both for the block, with logs in `folder`; the worker has `variables` as well. Nothing is deployed yet."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_") and not k.endswith("_API_KEY")}
    clean |= {"PREFECT_HOME": str(folder / "prefect"), "CRAFTER_PIPELINE_RUNS": str(folder / "runs")}
    server, log = prefect_server(folder / "server.log", environment=clean), folder / "worker.log"
    server.start()
    try:
        server.wait_ready(120, "/api/health")
        stack = PrefectStack(f"{server.url}/api", clean | {"PREFECT_API_URL": f"{server.url}/api"} | variables)
        words = ["worker", "start", "--pool", "crafter", "--type", "process"]
        with log.open("wb") as out:
            worker = subprocess.Popen(
                [sys.executable, "-m", "prefect", *words],
                cwd=ROOT,
                env=stack.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            wait_until(lambda: b"started!" in log.read_bytes(), 120, lambda: tail_of(log))
            yield stack
        finally:
            stop_process(worker)
    finally:
        server.stop()
