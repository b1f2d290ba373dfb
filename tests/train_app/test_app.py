"""The service's routes: uploads, jobs, both prefixes, keys, models. The app is real."""

import json
import time

import httpx
import pytest

from train_app.jobs import Model

ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "noop"}]}


def send_file(client, text, **kwargs):
    return client.post("/api/files", data={"purpose": "fine-tune"}, files={"file": ("d.jsonl", text)}, **kwargs)


def add_trained(client, job_id, base="crafter-tiny", kind="sft", prefix="fft"):
    model = Model(f"{prefix}:{base}:{job_id}", base, job_id, kind, f"/m/{job_id}", base, "sha", time.time(), {})
    client.app.state.store.add_model(model)
    return model


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("not json", "not valid JSON"),
        ("[]", "non-empty list `messages`"),
        ('{"messages": []}', "non-empty list `messages`"),
        ('{"messages": ["x"]}', "messages[0] is not an object"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "role 'robot'"),
        ('{"messages": [{"role": "user", "content": null}]}', "content must be"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "must be the assistant's"),
        ('{"messages": [{"role": "assistant", "content": ""}]}', "is empty"),
        ('{"prompt": "x", "completion": "y"}', "or lists `prompt` and `completion`"),
        ('{"prompt": [{"role": "user", "content": "x"}], "completion": "y"}', "must be the assistant's"),
        ('{"prompt": [{"role": "user", "content": "x"}], "completion": []}', "must be the assistant's"),
    ],
)
def test_an_upload_that_cannot_be_trained_on_is_refused_with_its_line(make_service, line, complaint):
    with make_service() as client:
        answer = send_file(client, json.dumps(ROW) + "\n" + line + "\n")
        assert answer.status_code == 400
        message = answer.json()["detail"]["error"]["message"]
        assert "line 2" in message and complaint in message
        assert client.get("/api/files").json()["data"] == []


def test_prompts_and_completions_are_taken_too(make_service):
    with make_service() as client:
        row = {"prompt": ROW["messages"][:-1], "completion": ROW["messages"][-1:]}
        answer = send_file(client, json.dumps(row) + "\n")
        assert answer.status_code == 200 and answer.json()["rows"] == 1


@pytest.mark.parametrize("body", ["[NaN]", '"\\ud800"', "[1,2"])
def test_a_body_that_is_no_object_is_422_whatever_it_holds(make_service, body):
    with make_service() as client:
        answer = client.post("/api/learning/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"][0] == "body"


def test_an_empty_upload_is_refused(make_service):
    with make_service() as client:
        assert send_file(client, "\n\n").status_code == 400


def test_an_upload_is_ready_under_every_path(make_service, upload):
    tools = {"messages": [ROW["messages"][0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}
    with make_service() as client:
        file_id = upload(client, ROW, tools)
        for path in ("/api/files", "/api/v1/files", "/api/learning/files", "/api/v1/learning/files"):
            file = client.get(f"{path}/{file_id}").json()
            assert (file["id"], file["status"], file["rows"]) == (file_id, "ready", 2)
            assert client.get(path).json()["files"] == client.get(path).json()["data"]


def test_a_job_reads_the_same_under_every_path(make_service, create_sft, wait_for):
    with make_service() as client:
        job = wait_for(client, create_sft(client))
        for prefix in ("/api", "/api/v1"):
            for family in ("learning", "rl", "orchestration", "sft"):
                at = f"{prefix}/{family}/jobs/{job['id']}"
                assert client.get(at).json() == job
                assert client.get(at + "/status").json()["status"] == "succeeded"
                events = client.get(at + "/events").json()["events"]
                assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
                points = client.get(at + "/metrics").json()["points"]
                assert {"name", "step", "value", "phase", "created_at"} <= points[0].keys() and points[0]["step"] == 1
                timeline = client.get(at + "/timeline").json()
                assert timeline["events"] == timeline["timeline"]
                assert [t["phase"] for t in timeline["events"]][-1] == "succeeded"
        listed = client.get("/api/v1/learning/jobs").json()
        assert listed["data"] == listed["jobs"] == [job]
        assert client.get("/api/rl/jobs").json()["jobs"] == []
        assert client.get(f"/api/jobs/{job['id']}/runs").json()["runs"][0]["status"] == "succeeded"


def test_events_and_metrics_are_paged(make_service, create_sft, wait_for):
    with make_service() as client:
        at = f"/api/learning/jobs/{wait_for(client, create_sft(client))['id']}"
        assert [e["seq"] for e in client.get(at + "/events?since_seq=1&limit=2").json()["events"]] == [2, 3]
        assert {p["step"] for p in client.get(at + "/metrics?after_step=1").json()["points"]} == {2}
        assert {p["name"] for p in client.get(at + "/metrics?name=train.loss").json()["points"]} == {"train.loss"}


def test_events_stream_until_the_job_has_ended(make_service, create_sft):
    with make_service() as client:
        job_id = create_sft(client)
        answer = client.get(f"/api/learning/jobs/{job_id}/events", headers={"Accept": "text/event-stream"})
        lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
        assert json.loads(lines[0].removeprefix("data: "))["type"] == "job.created"
        assert json.loads(lines[-1].removeprefix("data: "))["type"] == "sft.job.completed"


def test_an_equal_idempotency_key_makes_one_job(make_service, upload):
    with make_service() as client:
        payload = {"model": "crafter-tiny", "training_file_id": upload(client)}
        headers = {"Idempotency-Key": "k"}
        ids = {client.post("/api/learning/jobs", json=payload, headers=headers).json()["id"] for _ in range(3)}
        assert len(ids) == 1
        job_id = ids.pop()
        assert [e.type for e in client.app.state.store.events(job_id)] == ["job.created"]
        assert client.post(f"/api/learning/jobs/{job_id}/cancel").json()["status"] == "cancelled"
        assert client.post("/api/learning/jobs", json=payload, headers=headers).json()["id"] != job_id


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": ""}, "model"),
        ({"training_file_id": "file_0"}, "training_file_id"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"model": "crafter-expert"}, "script without weights"),
        ({"model": "ft:job_0000000000000000"}, "no trained model"),
    ],
)
def test_a_job_that_cannot_be_trained_is_refused_with_its_key(make_service, upload, change, complaint):
    with make_service() as client:
        payload = {"model": "crafter-tiny", "training_file_id": upload(client), **change}
        answer = client.post("/api/learning/jobs", json=payload)
        assert answer.status_code == 400 and complaint in answer.json()["detail"]["error"]["message"]


def test_hardware_that_is_not_here_is_recorded_not_refused(make_service, upload, monkeypatch):
    monkeypatch.setattr("train_app.specs.has_gpu", lambda: False)
    payload = {"model": "crafter-tiny", "metadata": {"effective_config": {"compute": {"gpu_type": "H100"}}}}
    with make_service() as client:
        job = client.post("/api/learning/jobs", json={**payload, "training_file_id": upload(client)}).json()
        assert job["not_applied"] == {"compute.gpu_type": "no NVIDIA GPU on this machine"}
        events = client.get(f"/api/learning/jobs/{job['id']}/events").json()["events"]
        assert events[1]["message"] == "compute.gpu_type not applied: no NVIDIA GPU on this machine"
        assert client.get(f"/api/learning/jobs/{job['id']}/config").json()["not_applied"] == job["not_applied"]


def test_a_stand_in_is_said_and_the_recipes_base_is_kept(make_service, create_sft, wait_for):
    with make_service(aliases={"Qwen/Qwen3-0.6B": "crafter-tiny"}) as client:
        job = wait_for(client, create_sft(client, model="Qwen/Qwen3-0.6B"))
        assert job["stand_in"] == "crafter-tiny"
        assert job["fine_tuned_model"] == f"fft:Qwen/Qwen3-0.6B:{job['id']}"
        events = client.get(f"/api/learning/jobs/{job['id']}/events").json()["events"]
        assert "crafter-tiny stands in for Qwen/Qwen3-0.6B" in events[1]["message"]
        assert client.get(f"/api/learning/models/{job['fine_tuned_model']}").json()["stand_in"] == "crafter-tiny"


def test_rl_starts_at_once_from_a_trained_model(make_service, create_sft, wait_for):
    with make_service() as client:
        sft = wait_for(client, create_sft(client))
        payload = {
            "job_type": "rl",
            "data": {"endpoint_base_url": "http://t", "model": f"ft:{sft['id']}", "config": {"rollout": {}}},
        }
        job_id = client.post("/api/rl/jobs", json=payload).json()["job_id"]
        job = wait_for(client, job_id)
        assert job["fine_tuned_model"] == f"rl:crafter-tiny:{job_id}"
        assert job["model"] == sft["fine_tuned_model"], "the source is pinned to the full id"
        models = client.get("/api/learning/models/rl").json()
        assert [m["id"] for m in models["data"]] == [job["fine_tuned_model"]]
        assert len(client.get("/api/models").json()["models"]) == 2


def test_without_the_key_nothing_is_told(make_service):
    with make_service(api_key="secret-key-1") as client:
        assert client.get("/livez").status_code == client.get("/health").status_code == 200
        for path in ("/api/learning/jobs", "/api/v1/files", "/v1/models", "/api/inference/v1/models"):
            for headers in ({}, {"X-API-Key": "secret-key-2"}, {"Authorization": "Basic secret-key-1"}):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and "secret" not in answer.text
            for headers in ({"Authorization": "Bearer secret-key-1"}, {"X-API-Key": "secret-key-1"}):
                assert client.get(path, headers=headers).status_code == 200
        assert client.post("/v1/chat/completions", json={"model": "crafter-random"}).status_code == 401


def test_unknown_ids_are_404(make_service):
    with make_service() as client:
        for path in ("learning/jobs/job_0", "learning/jobs/job_0/events", "files/file_0", "learning/models/x"):
            assert client.get(f"/api/{path}").status_code == 404, path


def test_a_task_app_is_verified_with_our_key(make_service):
    def task_app(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200 if request.headers.get("x-api-key") == "env" else 401)

    options = dict(task_app_transport=httpx.MockTransport(task_app))
    for key, ok in (("env", True), ("wrong", False)):
        with make_service(task_app_key=key, **options) as client:
            answer = client.post("/api/rl/verify_task_app", json={"endpoint_base_url": "http://task:8001"})
            assert answer.status_code == 200 and answer.json()["any_ok"] is ok
            assert answer.json()["candidates_first15"] == []


def test_a_task_app_that_is_not_there_is_not_ok(make_service):
    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with make_service(task_app_transport=httpx.MockTransport(nobody)) as client:
        answer = client.post("/api/rl/verify_task_app", json={"endpoint_base_url": "http://task:8001"}).json()
        assert answer["any_ok"] is False and "ConnectError" in answer["attempts"][0]["error"]
        assert client.post("/api/rl/verify_task_app", json={}).status_code == 400
