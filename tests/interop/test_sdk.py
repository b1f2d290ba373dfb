"""The classes of the published client's SDK against our services."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.interop, pytest.mark.timeout(400)]

SCRIPT = Path(__file__).parent / "sdk_session.py"


@pytest.fixture(scope="module")
def session(client):
    """`session("task_app", …)`: {call: answer or error} of a session in the client's own process."""

    def run(name, *arguments):
        done = client.run(
            *("python", SCRIPT, name, *arguments),
            BACKEND=client.services.backend,
            TASK_APP=client.services.task_app,
            SYNTH_API_KEY="synth-key-of-the-tests",
            ENVIRONMENT_API_KEY="environment-key-of-the-tests",
        )
        assert "TOLD" in done.stdout, done.stderr[-2000:]
        return Told(json.loads(done.stdout.rpartition("TOLD")[2]))

    return run


class Told(dict):
    """What each call gave back; an error is one of the test as well."""

    def __getitem__(self, name):
        found = self.get(name) or self.get("session")
        assert found is not None and "answer" in found, f"{name}: {found}"
        return found["answer"]

    def error(self, name):
        return self.get(name)["error"]


@pytest.fixture(scope="module")
def task_app(session):
    return session("task_app")


def test_task_app_client_reads_the_app(task_app):
    """TaskAppClient: health, info, task_info"""
    assert task_app["health"]["healthy"] is True and task_app["health"]["status"] == "healthy"
    assert task_app["info"]["service"]["task"]["id"] == "crafter_classic"
    assert isinstance(task_app["info"]["dataset"], dict) and isinstance(task_app["info"]["limits"], dict)
    assert task_app["task_info"]["task"]["id"] == "crafter_classic"
    assert [task["dataset"]["seed"] for task in task_app["task_info of seeds"]] == [1, 2]
    assert task_app["task_app_health"] == {"ok": True, "status": 200}


def test_task_app_client_plays_an_episode_to_train_on(task_app):
    """TaskAppClient: rollout in rl mode, by its own check of what a trainer needs"""
    answer = task_app["rl rollout"]
    assert task_app["rl complaints"] == []
    assert (
        answer["trace_correlation_id"] == "trace_abc"
        and "?cid=trace_abc" in answer["pipeline_metadata"]["inference_url"]
    )
    (trajectory,) = answer["trajectories"]
    assert trajectory["length"] == 3 == len(trajectory["steps"]) == answer["metrics"]["num_steps"]
    assert all("cid=trace_abc" in step["info"]["meta"]["inference_url"] for step in trajectory["steps"])
    assert len(answer["trace"]["session_time_steps"]) == 3


def test_task_app_client_plays_an_episode_to_judge(task_app):
    """TaskAppClient: rollout in eval mode"""
    answer = task_app["eval rollout"]
    assert answer["metrics"]["num_episodes"] == 1 and answer["metrics"]["mean_return"] == 0.0
    assert len(answer["trace"]["event_history"]) == 6 and len(answer["trace"]["markov_blanket_message_history"]) == 9


def test_a_rollout_to_train_on_needs_its_correlation_id(task_app):
    """TaskAppClient: rollout in rl mode without a correlation id is refused, not answered with a bare 500"""
    assert "422" in task_app.error("rl rollout without cid") or "400" in task_app.error("rl rollout without cid")


@pytest.fixture(scope="module")
def fine_tuning(session, client):
    return session("fine_tuning", client.write_rows("sdk.jsonl"))


def test_ft_client(fine_tuning):
    """FtClient: upload, create, start"""
    assert fine_tuning["FtClient.upload_training_file"].startswith("file_")
    job = fine_tuning["FtClient.create_sft_job"]
    assert (job["status"], job["model"]) == ("queued", "Qwen/Qwen3-0.6B")
    assert fine_tuning["FtClient.start_job"]["started"] is True


def test_job_handle(fine_tuning):
    """JobHandle.poll_until_terminal"""
    job_id = fine_tuning["FtClient.create_sft_job"]["job_id"]
    assert fine_tuning["JobHandle.poll_until_terminal"] == {
        "status": "succeeded",
        "job_id": job_id,
        "fine_tuned_model": f"fft:Qwen/Qwen3-0.6B:{job_id}",
    }
    saw = fine_tuning["JobHandle saw"]
    types = [event["type"] for event in saw["events"]]
    assert "job.created" in types and "sft.completed" in types
    steps = {point["step"] for point in saw["points"] if point["name"] == "train.loss"}
    assert steps and min(steps) >= 1, "steps are counted from 1: it drops those at 0"


def test_event_stream(fine_tuning):
    """stream_events (server-sent events)"""
    types = [event["type"] for event in fine_tuning["streamed"]]
    assert types[0] == "job.created" and "sft.job.completed" in types


def test_learning_client(fine_tuning):
    """LearningClient: upload, create, start, poll, metrics, timeline, models"""
    done = fine_tuning["LearningClient.poll_until_terminal"]
    assert done["status"] == "succeeded" and done["job_id"] == fine_tuning["LearningClient.create_job"]["job_id"]
    assert [point["step"] for point in fine_tuning["LearningClient.get_metrics"]] == [2]
    phases = [entry["phase"] for entry in fine_tuning["LearningClient.get_timeline"]]
    assert phases[0] == "created" and phases[-1] == "succeeded"
    models = {model["id"]: model for model in fine_tuning["LearningClient.list_fine_tuned_models"]}
    assert models[done["fine_tuned_model"]] | {"created_at": ""} == {
        "id": done["fine_tuned_model"],
        "base_model": "Qwen/Qwen3-0.6B",
        "created_at": "",
        "job_id": done["job_id"],
        "status": "ready",
    }


def test_health_and_prices(fine_tuning):
    """LearningClient: backend_health, pricing_preflight, balance_autumn_normalized"""
    assert fine_tuning["backend_health"]["ok"] and fine_tuning["backend_health"]["raw"]["healthy"]
    assert fine_tuning["pricing_preflight"]["estimated_cost"] == 0.0
    assert fine_tuning["balance"]["unlimited"] is True


@pytest.fixture(scope="module")
def reinforcement(session, client, sft):
    """After the model has been loaded: its client waits 30 s for an answer, and the first one may take longer here."""
    model = sft.job["fine_tuned_model"]
    asked = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    headers = {"X-API-Key": "synth-key-of-the-tests"}
    url = f"{client.services.backend}/api/inference/v1/chat/completions"
    httpx.post(url, json=asked, headers=headers, timeout=180).raise_for_status()
    return session("reinforcement", model)


def test_rl_client(reinforcement):
    """RlClient: create, start, poll_until_terminal with its own limits of silence"""
    job_id = reinforcement["RlClient.create_job"]["job_id"]
    assert reinforcement["RlClient.start_job_if_supported"]["job_id"] == job_id
    assert reinforcement["RlClient.poll_until_terminal"] == {"status": "succeeded", "job_id": job_id}
    saw = reinforcement["RlClient saw"]
    assert {"job.created", "rl.job.completed"} <= {event["type"] for event in saw["events"]}
    assert any((point["name"], point["step"]) == ("rl.reward", 1) for point in saw["points"])


def test_hosted_trainers_are_not_here(reinforcement):
    """RlClient.resolve_trainer_start_url: hosted trainers, a clear 404"""
    assert "404" in reinforcement.error("RlClient.resolve_trainer_start_url")


def test_inference_client(reinforcement, sft):
    """InferenceClient.create_chat_completion"""
    answer = reinforcement["InferenceClient"]
    assert answer["model"] == sft.job["fine_tuned_model"] and answer["choices"][0]["message"]["role"] == "assistant"


def test_jobs_client(session, client):
    """JobsClient: files, sft, rl, models"""
    told = session("jobs_client", client.write_rows("jobs.jsonl"))
    if client.version == "0.2.16":
        assert "No module named 'synth_ai.http'" in told.error("session"), "it cannot be imported there"
        return
    job_id = told["create"]["id"]
    assert told["create again"]["id"] == job_id == told["cancelled"]["id"]
    assert (told["file"]["status"], told["cancelled"]["status"]) == ("ready", "cancelled")
    for name in ("jobs", "jobs of file"):
        assert [job["id"] for job in told[name]["data"]] == [job_id]
    assert told["file"]["id"] in [file["id"] for file in told["files"]["data"]]
    assert told["events"]["events"][0]["type"] == "job.created"
    assert told["checkpoints"]["data"] == told["metrics"]["points"] == []
    assert {"id", "base_model"} <= told["models"]["data"][0].keys() if told["models"]["data"] else True
