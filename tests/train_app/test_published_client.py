"""The published `synth-ai` client against our service. Needs it in a virtual environment of its own: `make interop`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from crafter_pipeline.processes import Service

pytestmark = pytest.mark.interop

SCRIPT = """
import asyncio, json, sys
from synth_ai.jobs.client import JobsClient

async def main(url):
    row = {"messages": [{"role": "user", "content": "tree"}, {"role": "assistant", "content": "do"}]}
    async with JobsClient(url, "key") as client:
        file = await client.files.upload(
            filename="a.jsonl", content=(json.dumps(row) + chr(10)).encode(), purpose="fine-tune",
            content_type="application/jsonl",
        )
        wanted = dict(training_file=file["id"], model="Qwen/Qwen3-0.6B", hyperparameters={"n_epochs": 1})
        job = await client.sft.create(**wanted, idempotency_key="a")
        again = await client.sft.create(**wanted, idempotency_key="a")
        told = {
            "file": await client.files.retrieve(file["id"]),
            "files": await client.files.list(purpose="fine-tune"),
            "jobs_of_file": await client.files.list_jobs(file["id"]),
            "same": again["id"] == job["id"],
            "jobs": await client.sft.list(created_after=1, status="queued", file_id=file["id"]),
            "checkpoints": await client.sft.checkpoints(job["id"]),
            "events": await client.sft.list_events(job["id"]),
            "metrics": await client.rl.metrics(job["id"]),
            "cancelled": await client.sft.cancel(job["id"]),
            "models": await client.models.list(),
        }
    print("TOLD" + json.dumps(told))

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def published() -> Path:
    folder = os.environ.get("SYNTH_AI_VENV")
    if not folder:
        pytest.skip("SYNTH_AI_VENV names no virtual environment with synth-ai")
    return Path(folder).resolve() / "bin"


@pytest.fixture
def backend(tmp_path):
    arguments = ["--data", str(tmp_path / "data"), "--alias", "Qwen/Qwen3-0.6B=crafter-tiny"]
    environment = {"SYNTH_API_KEY": "key"}
    with Service("backend", "train_app", arguments, log=tmp_path / "log", environment=environment) as service:
        yield service.url


def test_its_jobs_client_understands_every_answer(published, backend):
    run = subprocess.run([published / "python", "-c", SCRIPT, backend], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout.rpartition("TOLD")[2])
    assert told["file"]["status"] == "ready" and told["same"]
    job_id = told["cancelled"]["id"]
    assert told["cancelled"]["status"] == "cancelled"
    for name in ("jobs", "jobs_of_file"):
        assert [job["id"] for job in told[name]["data"]] == [job_id]
    assert told["events"]["events"][0]["type"] == "job.created"
    assert told["checkpoints"]["data"] == told["metrics"]["points"] == told["models"]["data"] == []


@pytest.mark.parametrize("command", [["jobs", "list"], ["models", "list"], ["files", "list"]])
def test_its_status_commands_succeed(published, backend, command):
    environment = {**os.environ, "SYNTH_API_KEY": "key"}
    run = subprocess.run(
        [published / "synth-ai", "status", *command, "--base-url", backend],
        **dict(capture_output=True, text=True, timeout=120, env=environment),
    )
    assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr[-2000:]
