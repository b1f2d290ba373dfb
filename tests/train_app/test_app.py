"""The service's routes: uploads, jobs, both prefixes, keys, models. The app is real."""

import json
import time

import httpx
import pytest

from crafter_pipeline.tokens import TINY_CONTEXT
from train_app.jobs import Model

ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "noop"}]}

CALLS = [{"id": "1", "type": "function", "function": {"name": "act", "arguments": "{}"}}]


def send_file(client, text, **kwargs):
    return client.post("/api/files", data={"purpose": "fine-tune"}, files={"file": ("d.jsonl", text)}, **kwargs)


def add_trained(client, job_id, base="crafter-tiny", kind="sft", prefix="fft"):
    model = Model(f"{prefix}:{base}:{job_id}", base, job_id, kind, f"/m/{job_id}", base, "sha", time.time(), {})
    client.app.state.store.add_model(model)
    return model


def test_bad_lines_are_told_with_their_numbers_and_nothing_is_kept(make_service):
    with make_service() as client:
        rows = [json.dumps(ROW), "x", json.dumps(ROW), "[]"]
        answer = send_file(client, "\n".join(rows))
        error = answer.json()["detail"]["error"]
        assert answer.status_code == 400 and [line["line"] for line in error["lines"]] == [2, 4]
        assert error["message"].startswith("d.jsonl, line 2: not valid JSON") and "1 more bad line" in error["message"]
        assert client.get("/api/files").json()["data"] == []


def test_a_file_beyond_the_limit_is_413_and_leaves_nothing(make_service, tmp_path):
    text = json.dumps(ROW) + "\n"
    with make_service(max_upload_mb=1) as client:
        assert send_file(client, text).status_code == 200
        told = send_file(client, text * 30_000)
        request = client.build_request("POST", "/api/files", files={"file": ("d.jsonl", text * 30_000)})
        chunks = client.post(
            "/api/files", content=iter([request.read()]), headers=dict(request.headers) | {"content-length": ""}
        )
        for answer in (told, chunks):
            assert answer.status_code == 413 and "--max-upload-mb" in answer.json()["detail"]["error"]["message"]
        assert len(list((tmp_path / "data" / "files").iterdir())) == len(client.get("/api/files").json()["data"]) == 1


def test_a_full_disk_is_said_and_leaves_nothing(make_service, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    with make_service() as client:
        monkeypatch.setattr("train_app.routes.files.store_dataset", full)
        answer = send_file(client, json.dumps(ROW))
        assert answer.status_code == 507 and "is full" in answer.json()["detail"]["error"]["message"]
        assert list((tmp_path / "data" / "files").iterdir()) == []


def test_a_stranger_cannot_upload(make_service):
    with make_service(api_key="secret") as client:
        assert send_file(client, json.dumps(ROW)).status_code == 401
        assert send_file(client, json.dumps(ROW), headers={"X-API-Key": "secret"}).status_code == 200


def test_what_an_api_that_was_killed_left_half_done_is_cleared(make_service, tmp_path):
    for folder in ("files", "exports/1"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "data" / "files" / "file_1.part").write_text("half")
    with make_service():
        assert list((tmp_path / "data" / "files").iterdir()) == [] and not (tmp_path / "data" / "exports").exists()


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
    tools = {"messages": [ROW["messages"][0], {"role": "assistant", "content": None, "tool_calls": CALLS}]}
    with make_service() as client:
        file_id = upload(client, ROW, tools)
        for path in ("/api/files", "/api/v1/files", "/api/learning/files", "/api/v1/learning/files"):
            file = client.get(f"{path}/{file_id}").json()
            assert (file["id"], file["status"], file["rows"]) == (file_id, "ready", 2)
            assert client.get(path).json()["files"] == client.get(path).json()["data"]
            assert client.get(f"{path}/{file_id}/content").text == f"{json.dumps(ROW)}\n{json.dumps(tools)}"
        assert client.get("/api/files?purpose=other").json()["files"] == []
        newer = upload(client, ROW)
        assert [f["id"] for f in client.get("/api/files?limit=1").json()["files"]] == [newer]
        assert [f["id"] for f in client.get(f"/api/files?after={newer}").json()["files"]] == [file_id]


def test_a_job_reads_the_same_under_every_path(make_service, create_sft, wait_for):
    with make_service() as client:
        job = wait_for(client, create_sft(client))
        for prefix in ("/api", "/api/v1"):
            for family in ("/learning", "/rl", "/orchestration", "/sft", ""):
                at = f"{prefix}{family}/jobs/{job['id']}"
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
        (run,) = client.get(f"/api/jobs/{job['id']}/runs").json()["runs"]
        assert (run["status"], run["run_number"], run["duration_seconds"] > 0) == ("succeeded", 1, True)


def test_events_and_metrics_are_paged(make_service, create_sft, wait_for):
    with make_service() as client:
        at = f"/api/learning/jobs/{wait_for(client, create_sft(client))['id']}"
        assert [e["seq"] for e in client.get(at + "/events?since_seq=1&limit=2").json()["events"]] == [2, 3]
        assert {p["step"] for p in client.get(at + "/metrics?after_step=1").json()["points"]} == {2}
        assert {p["name"] for p in client.get(at + "/metrics?name=train.loss").json()["points"]} == {"train.loss"}


def test_metrics_are_told_by_run(make_service, create_sft, wait_for):
    with make_service("crash-once") as client:
        job_id = wait_for(client, create_sft(client))["id"]
        at = f"/api/learning/jobs/{job_id}"
        assert [r["status"] for r in client.get(at + "/runs").json()["runs"]] == ["failed", "succeeded"]
        assert client.get(at + f"/metrics?run_id={job_id}-1").json()["points"] == []
        points = client.get(at + f"/metrics?run_id={job_id}-2").json()["points"]
        assert {p["run_id"] for p in points} == {f"{job_id}-2"} and min(p["step"] for p in points) == 1
        assert client.get(at + "/metrics?run_id=2").json()["points"] == points
        for unknown in ("3", f"{job_id}-3", f"{job_id}-0"):
            assert client.get(at + f"/metrics?run_id={unknown}").status_code == 404


def test_events_are_told_from_the_end_behind_one_by_time_and_by_run(make_service):
    with make_service() as client:
        store = client.app.state.store
        job_id = store.create_job("sft", "crafter-tiny", {}, ready=False).id
        for attempt in (1, 2):
            store.begin_attempt(job_id)
            store.add_event(job_id, "job.worker.started", "a worker", {"attempt": attempt})
            store.add_event(job_id, "sft.progress", "step 1")

        def events(**params):
            answer = client.get(f"/api/learning/jobs/{job_id}/events", params=params)
            return [e["seq"] for e in answer.json()["events"]] if answer.status_code == 200 else answer.status_code

        assert events() == [1, 2, 3, 4, 5]
        assert events(limit=2) == [4, 5], "who names no beginning gets the newest"
        assert events(since_seq=0, limit=2) == [1, 2]
        assert events(after=f"{job_id}:3") == events(since=f"{job_id}:3", after=f"{job_id}:3") == [4, 5]
        assert events(since="2000-01-01") == [1, 2, 3, 4, 5] and events(since="2100-01-01") == []
        assert (events(run="1"), events(run=f"{job_id}-2")) == ([2, 3], [4, 5])
        assert (events(run="3"), events(after="job_x:1"), events(since="soon")) == (404, 400, 400)


def test_whole_checkpoints_are_listed(make_service, create_sft, wait_for, tmp_path):
    with make_service() as client:
        job_id = wait_for(client, create_sft(client))["id"]
        folder = tmp_path / "data" / "jobs" / job_id / "checkpoints"
        for name in ("checkpoint-10", "checkpoint-9", "checkpoint-20"):
            (folder / name).mkdir(parents=True)
            (folder / name / "model.safetensors").write_bytes(b"1234")
            if name != "checkpoint-20":
                (folder / name / "COMPLETE").touch()
        for family in ("sft", "rl", "learning"):
            found = client.get(f"/api/{family}/jobs/{job_id}/checkpoints").json()
            assert found["data"] == found["checkpoints"]
            assert [(c["id"], c["step"], c["bytes"]) for c in found["data"]] == [
                ("checkpoint-9", 9, 4),
                ("checkpoint-10", 10, 4),
            ]


def test_jobs_are_found_by_tag_time_model_and_file(make_service, upload):
    with make_service() as client:
        file_id, other = upload(client), upload(client, ROW, ROW)

        def create(file, **metadata):
            payload = {"model": "crafter-tiny", "training_file_id": file, "metadata": metadata}
            return client.post("/api/learning/jobs", json=payload).json()["id"]

        first = create(file_id, tags={"team": "blue", "size": 3})
        second = create(other, tags={"team": "red"})

        def found(**query):
            answer = client.get("/api/learning/jobs", params=query)
            assert answer.status_code == 200, answer.text
            return [job["id"] for job in answer.json()["jobs"]]

        assert found(tag="team=blue") == found(tag=["team", "size=3"]) == [first]
        assert found(tag="team") == found(created_after="1h") == found(model="crafter-tiny") == [second, first]
        assert found(file_id=other) == [second]
        assert found(after=second) == [first]
        assert found(created_before="2020-01-01") == found(created_after="4000000000") == found(model="x") == []
        assert client.get("/api/learning/jobs?created_after=soon").status_code == 400
        assert client.get(f"/api/files/{other}/jobs").json()["jobs"][0]["tags"] == {"team": "red"}


def test_what_only_the_hosted_service_has_is_404_with_a_sentence(make_service):
    with make_service() as client:
        answer = client.get("/api/rl/services/t1")
        assert answer.status_code == 404 and "hosted service" in answer.json()["detail"]["error"]["message"]


def test_events_stream_until_the_job_has_ended(make_service, create_sft):
    with make_service() as client:
        job_id = create_sft(client)
        answer = client.get(f"/api/learning/jobs/{job_id}/events", headers={"Accept": "text/event-stream"})
        lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
        assert json.loads(lines[0].removeprefix("data: "))["type"] == "job.created"
        assert json.loads(lines[-1].removeprefix("data: "))["type"] == "sft.job.completed"
        ids = [int(line.removeprefix("id: ")) for line in answer.text.splitlines() if line.startswith("id: ")]
        assert ids == list(range(1, len(lines) + 1))
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(ids[-2])}
        again = client.get(f"/api/orchestration/jobs/{job_id}/events", headers=headers).text
        assert again.startswith(f"id: {ids[-1]}\n") and again.count("data: ") == 1


def test_an_equal_idempotency_key_makes_one_job(make_service, upload):
    with make_service() as client:
        payload = {"model": "crafter-tiny", "training_file_id": upload(client)}
        headers = {"Idempotency-Key": "k"}
        answers = [client.post("/api/learning/jobs", json=payload, headers=headers) for _ in range(3)]
        assert [a.status_code for a in answers] == [201, 200, 200]
        assert len({a.json()["id"] for a in answers}) == 1
        job_id = answers[0].json()["id"]
        moved = {**payload, "training_file_id": upload(client)}
        assert client.post("/api/learning/jobs", json=moved, headers=headers).json()["id"] == job_id, "equal content"
        conflict = client.post(
            "/api/learning/jobs", json={**payload, "hyperparameters": {"n_epochs": 2}}, headers=headers
        )
        assert conflict.status_code == 409 and conflict.json()["detail"]["job_id"] == job_id
        assert job_id in conflict.json()["detail"]["error"]["message"]
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
    monkeypatch.setattr("train_app.specs.base.has_gpu", lambda: False)
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


def test_a_stand_in_counts_its_own_tokens(make_service, create_sft):
    with make_service(aliases={"Qwen/Qwen3-0.6B": "crafter-tiny"}) as client:
        for model, length, noted in (("Qwen/Qwen3-0.6B", TINY_CONTEXT, True), ("crafter-tiny", 512, False)):
            job_id = create_sft(client, model=model, start=False, sequence_length=512)
            job = client.get(f"/api/learning/jobs/{job_id}").json()
            assert job["config"]["sequence_length"] == length
            assert ("hyperparameters.sequence_length" in job["not_applied"]) is noted


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


def distillation(teacher, **training):
    training = {"advantage": "distillation", "teacher": teacher, **training}
    config = {"model": {"base": "crafter-tiny"}, "training": training}
    return {"job_type": "rl", "data": {"endpoint_base_url": "http://t", "config": config}}


def test_a_teacher_is_pinned_like_the_source(make_service, create_sft, wait_for):
    with make_service(aliases={"Qwen/Qwen3-0.6B": "crafter-tiny"}) as client:
        sft = wait_for(client, create_sft(client))

        def teacher(name, **training):
            return client.post("/api/rl/jobs", json=distillation(name, **training)).json()["config"]["teacher"]

        assert teacher("latest:sft") == teacher(sft["id"]) == sft["fine_tuned_model"]
        assert teacher("big", teacher_url="http://vllm") == "big", "one that is served elsewhere stays as named"
        job = client.post("/api/rl/jobs", json=distillation("Qwen/Qwen3-0.6B")).json()
        assert job["config"]["teacher"] == "Qwen/Qwen3-0.6B"
        events = client.get(f"/api/rl/jobs/{job['id']}/events").json()["events"]
        assert any("crafter-tiny stands in for Qwen/Qwen3-0.6B" in event["message"] for event in events)


@pytest.mark.parametrize(
    ("teacher", "complaint"),
    [
        ("crafter-expert", "script without weights"),
        ("latest:rl", "no trained model"),
        ("no/such-model", "no weights for 'no/such-model'"),
    ],
)
def test_a_teacher_that_cannot_be_loaded_is_refused_at_once(make_service, teacher, complaint):
    with make_service() as client:
        answer = client.post("/api/rl/jobs", json=distillation(teacher))
        message = answer.json()["detail"]["error"]["message"]
        assert answer.status_code == 400 and complaint in message and "training.teacher" in message


def test_a_job_that_trains_on_its_dev_seeds_is_warned(make_service):
    config = {"model": {"base": "crafter-tiny"}, "training": {"seeds": [1, 2], "dev": {"seeds": [2, 3]}}}
    with make_service() as client:
        payload = {"job_type": "rl", "data": {"endpoint_base_url": "http://t", "config": config}}
        job = client.post("/api/rl/jobs", json=payload).json()
        events = client.get(f"/api/rl/jobs/{job['id']}/events").json()["events"]
        assert any(e["type"] == "rl.warning" and "1 of 2 dev seeds" in e["message"] for e in events)


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
        for path in (
            *("learning/jobs/job_0", "learning/jobs/job_0/events", "learning/jobs/job_0/checkpoints"),
            *("files/file_0", "files/file_0/content", "learning/jobs?after=job_0", "learning/jobs?file_id=file_0"),
            *("learning/models/x", "models/x/export", "models/x/jobs"),
        ):
            assert client.get(f"/api/{path}").status_code == 404, path


def test_a_validation_file_a_task_app_and_tags_reach_the_worker(make_service, upload):
    with make_service() as client:
        held_back = upload(client, ROW, ROW)
        metadata = {
            "effective_config": {"data": {"validation_files": [held_back]}},
            "task_app_url": "http://task:8001/",
            "tags": {"team": "blue"},
        }
        payload = {"model": "crafter-tiny", "training_file_id": upload(client), "metadata": metadata}
        job = client.post("/api/learning/jobs", json=payload).json()
        spec = client.get(f"/api/learning/jobs/{job['id']}/config").json()["spec"]
        assert spec["validation_file"] == client.app.state.store.get_file(held_back).path
        assert (spec["task_app_url"], spec["tags"]) == ("http://task:8001", {"team": "blue"})
        metadata["effective_config"]["data"]["validation_files"] = ["file_0"]
        refused = client.post("/api/learning/jobs", json=payload)
        assert refused.status_code == 400 and "validation_files" in refused.text


def test_rl_is_also_taken_without_the_table_around_its_data(make_service):
    with make_service() as client:
        payload = {"model": "crafter-tiny", "endpoint_base_url": "http://t", "trainer_id": "1", "trainer": {}}
        answer = client.post("/api/rl/jobs", json=payload)
        assert answer.status_code == 201 and answer.json()["model"] == "crafter-tiny"


def test_more_gpus_than_there_are_is_refused(make_service, upload):
    payload = {"model": "crafter-tiny", "hyperparameters": {"gpus": 64}}
    with make_service() as client:
        answer = client.post("/api/learning/jobs", json={**payload, "training_file_id": upload(client)})
        assert answer.status_code == 400 and "64 GPUs" in answer.text


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
