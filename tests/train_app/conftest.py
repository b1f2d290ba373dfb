"""The training service with stand-ins for its workers and its inference child."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from train_app.app import make_app

STANDINS = Path(__file__).parents[1] / "standins"
ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "noop"}]}


@pytest.fixture
def make_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`with make_service(mode) as client`: the app, started; its workers behave as `mode` says."""
    monkeypatch.setenv("PYTHONPATH", str(STANDINS))

    @contextmanager
    def service(mode: str = "succeed", **options: Any) -> Iterator[TestClient]:
        def command(job: Any, data_dir: Path) -> list[str]:
            return [
                sys.executable,
                str(STANDINS / "fake_worker.py"),
                mode,
                "--data-dir",
                str(data_dir),
                "--job",
                job.id,
                "--attempt",
                str(job.attempts),
            ]

        defaults = dict(api_key=None, worker_command=command, inference_module="fake_inference", poll_seconds=0.05)
        app = make_app(tmp_path / "data", **{**defaults, **options})
        with TestClient(app) as client:
            yield client

    return service


@pytest.fixture
def upload() -> Callable[..., str]:
    """Upload rows (default: one good row); returns the file's id."""

    def send(client: Any, *rows: Any) -> str:
        text = "\n".join(json.dumps(r) for r in rows or (ROW,))
        answer = client.post("/api/files", data={"purpose": "fine-tune"}, files={"file": ("d.jsonl", text)})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    return send


@pytest.fixture
def create_sft(upload: Callable[..., str]) -> Callable[..., str]:
    """A fine-tuning job, started unless told otherwise; returns its id."""

    def create(client: Any, *, model: str = "crafter-tiny", start: bool = True, **hyperparameters: Any) -> str:
        payload = {"model": model, "training_file_id": upload(client), "hyperparameters": hyperparameters}
        answer = client.post("/api/learning/jobs", json=payload)
        assert answer.status_code == 201, answer.text
        job_id = str(answer.json()["job_id"])
        if start:
            assert client.post(f"/api/learning/jobs/{job_id}/start", json={}).status_code == 200
        return job_id

    return create


@pytest.fixture
def wait_for() -> Callable[..., dict[str, Any]]:
    """Poll a job until it has one of the states."""

    def wait(client: Any, job_id: str, *states: str, seconds: float = 15.0) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            job: dict[str, Any] = client.get(f"/api/learning/jobs/{job_id}").json()
            if job["status"] in (states or ("succeeded", "failed", "cancelled")):
                return job
            assert time.monotonic() < deadline, job
            time.sleep(0.03)

    return wait
