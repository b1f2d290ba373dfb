"""`status` of the published client: every command on jobs, models and files of our backend."""

from __future__ import annotations

import json

import httpx
import pytest

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def only_where_it_is(client):
    if client.version == "0.2.16":
        pytest.skip("0.2.16 has no such command")


@pytest.fixture
def status(client):
    """`status("jobs", "list")`: what `synth-ai status jobs list` prints."""

    def run(*words):
        variables = {"SYNTH_STATUS_BASE_URL": client.services.backend, "SYNTH_API_KEY": "synth-key-of-the-tests"}
        return client.cli("status", *words, **variables)

    return run


@pytest.fixture
def told(status):
    """The same as JSON."""

    def run(*words):
        said = status(*words, "--json")
        return json.loads(said[min(i for i in (said.find("{\n"), said.find("[\n"), said.find("[]")) if i >= 0) :])

    return run


def test_jobs_list(told, sft):
    """status jobs list"""
    found = {job["job_id"]: job for job in told("jobs", "list")}
    assert found[sft.job["id"]]["status"] == "succeeded" and found[sft.job["id"]]["training_type"] == "sft_offline"
    chosen = told("jobs", "list", "--status", "succeeded", "--type", "sft_offline", "--limit", 1)
    assert len(chosen) == 1 and chosen[0]["type"] == "sft"


def test_jobs_table(status, sft):
    """status jobs list, as a table"""
    line = next(line for line in status("jobs", "list").splitlines() if sft.job["id"] in line)
    assert line.split()[:3] == [sft.job["id"], "sft_offline", "succeeded"] and sft.job["fine_tuned_model"] in line


def test_jobs_get(told, sft):
    """status jobs get"""
    job = told("jobs", "get", sft.job["id"])
    assert (job["base_model"], job["model_id"]) == ("Qwen/Qwen3-4B", sft.job["fine_tuned_model"])
    assert job["config"]["learning_rate"] == 8e-6


def test_jobs_status(status, sft):
    """status jobs status"""
    assert f"{sft.job['id']}: succeeded" in status("jobs", "status", sft.job["id"])


def test_jobs_config(told, sft):
    """status jobs config"""
    answer = told("jobs", "config", sft.job["id"])
    assert answer["request"]["hyperparameters"]["per_device_batch"] == 2 and answer["config"]["batch_size"] == 4


def test_jobs_metrics(told, sft):
    """status jobs metrics"""
    points = told("jobs", "metrics", sft.job["id"])["points"]
    assert [p["step"] for p in points if p["name"] == "train.loss"] == [1, 2]


def test_jobs_timeline(told, sft):
    """status jobs timeline"""
    phases = [entry["phase"] for entry in told("jobs", "timeline", sft.job["id"])]
    assert phases == ["created", "queued", "running", "succeeded"]


def test_jobs_history(told, sft):
    """status jobs history"""
    (run,) = told("jobs", "history", sft.job["id"])
    assert (run["run_number"], run["status"]) == (1, "succeeded") and run["duration_seconds"] > 0


def test_jobs_logs(told, sft):
    """status jobs logs"""
    events = told("jobs", "logs", sft.job["id"])
    assert [events[0]["type"], events[-1]["type"]] == ["job.created", "sft.job.completed"]


def test_jobs_logs_tail(told, sft):
    """status jobs logs --tail"""
    assert [e["type"] for e in told("jobs", "logs", sft.job["id"], "--tail", 2)] == [
        "sft.completed",
        "sft.job.completed",
    ]


def test_jobs_cancel(client, status):
    """status jobs cancel"""
    job_id = _waiting_job(client)
    assert "Cancellation requested" in status("jobs", "cancel", job_id)
    assert client.services.job(job_id)["status"] == "cancelled"


def _waiting_job(client):
    headers = {"X-API-Key": "synth-key-of-the-tests"}
    with httpx.Client(base_url=client.services.backend, headers=headers) as http:
        rows = client.write_rows("waiting.jsonl").read_bytes()
        file = http.post("/api/files", data={"purpose": "fine-tune"}, files={"file": ("a.jsonl", rows)}).json()
        job = http.post("/api/learning/jobs", json={"model": "Qwen/Qwen3-0.6B", "training_file_id": file["id"]})
        return job.json()["id"]


def test_models_list(told, sft):
    """status models list"""
    models = {model["id"]: model for model in told("models", "list")}
    assert models[sft.job["fine_tuned_model"]]["base_model"] == "Qwen/Qwen3-4B"
    assert all(model["id"].startswith("rl:") for model in told("models", "list", "--type", "rl"))


def test_models_get(status, sft):
    """status models get"""
    said = status("models", "get", sft.job["fine_tuned_model"])
    assert json.loads(said[said.index("{") :])["job_id"] == sft.job["id"]


def test_files(told, sft):
    """status files list, status files get"""
    found = {file["id"]: file for file in told("files", "list")}
    file = found[sft.job["training_file_id"]]
    assert (file["filename"], file["purpose"], file["rows"]) == ("rows.jsonl", "fine-tune", 8)
    assert told("files", "get", file["id"])["sha256"] == sft.job["dataset_sha256"]


def test_runs(told, sft):
    """status runs list, status runs logs --run"""
    (run,) = told("runs", "list", sft.job["id"])
    events = told("runs", "logs", sft.job["id"], "--run", run["id"])
    assert [events[0]["type"], events[-1]["type"]] == ["job.worker.started", "sft.job.completed"]


def test_summary(status, sft):
    """status summary"""
    said = status("summary")
    for word in ("Training Jobs", sft.job["id"], "Fine-tuned Models", sft.job["fine_tuned_model"], "Training Files"):
        assert word in said


def test_a_wrong_key_is_said(client):
    """status with a wrong key: a line that says so"""
    variables = {"SYNTH_STATUS_BASE_URL": client.services.backend, "SYNTH_API_KEY": "wrong"}
    done = client.run("synth-ai", "status", "jobs", "list", **variables)
    assert done.returncode != 0 and "API key missing or invalid" in done.stdout + done.stderr
