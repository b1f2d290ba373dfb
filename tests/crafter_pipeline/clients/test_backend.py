"""The backend's client, against the real service with stand-ins for its workers."""

import hashlib
import io
import json
import sys
import tarfile
from functools import reduce
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from crafter_pipeline.clients.backend import BackendClient
from crafter_pipeline.clients.http import service_client
from crafter_pipeline.clients.payloads import rl_payload, sft_payload
from crafter_pipeline.config import DevSeeds, PolicyConfig, RlConfig, SftConfig
from crafter_pipeline.errors import BackendError, DataError, JobFailed
from train_app.app import make_app

WORKER = Path(__file__).parents[2] / "standins" / "fake_worker.py"
WHERE = dict(task_app_url="http://t:1", environment="crafter", policy=PolicyConfig())
ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "noop"}]}


@pytest.fixture
def make_backend(tmp_path):
    """A client of the real service, whose workers behave as `mode` says."""
    opened = []

    def make(mode="succeed"):
        def command(job, data_dir):
            where = ["--data-dir", str(data_dir), "--job", job.id, "--attempt", str(job.attempts)]
            return [sys.executable, str(WORKER), mode, *where]

        app = make_app(tmp_path / "data", api_key=None, worker_command=command, poll_seconds=0.05)
        opened.append(TestClient(app))
        return BackendClient(opened[-1].__enter__())

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    return path


def run_sft(backend, dataset, **options):
    job_id = backend.create_sft(SftConfig(), backend.upload(dataset), **options)
    backend.start(job_id)
    return job_id


def test_a_job_is_followed_to_its_model(make_backend, dataset):
    backend, events, steps = make_backend(), [], []
    job_id = run_sft(backend, dataset)
    job = backend.wait(job_id, on_event=events.append, on_metrics=lambda *step: steps.append(step), poll_seconds=0.02)
    assert job.succeeded and job.model_id == f"fft:crafter-tiny:{job_id}"
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    assert events[-1].type == "sft.job.completed", "the last event is told too"
    assert steps == [(1, {"train.loss": 1.0, "train.tokens": 10.0}), (2, {"train.loss": 0.5, "train.tokens": 20.0})]
    assert [(m.name, m.step) for m in backend.metrics(job_id, name="train.loss")] == [
        ("train.loss", 1),
        ("train.loss", 2),
    ]
    assert [m["id"] for m in backend.models()] == [job.model_id]
    assert backend.models("rl") == []


def test_a_failed_job_raises_with_the_workers_last_words(make_backend, dataset):
    backend = make_backend("crash")
    with pytest.raises(JobFailed, match="RuntimeError: the GPU fell out"):
        backend.wait(run_sft(backend, dataset), poll_seconds=0.02)


def test_a_cancelled_job_raises(make_backend, dataset):
    backend = make_backend("wait")
    job_id = run_sft(backend, dataset)
    backend.cancel(job_id)
    with pytest.raises(JobFailed, match="cancelled"):
        backend.wait(job_id, poll_seconds=0.02)


def test_a_validation_set_and_tags_go_along(make_backend, dataset, tmp_path):
    backend, held_back = make_backend(), tmp_path / "v.jsonl"
    held_back.write_text(json.dumps(ROW | {"metadata": {}}) + "\n")
    file_id = backend.upload(held_back)
    run_sft(backend, dataset, validation_file_id=file_id, tags={"method": "dagger"})
    with pytest.raises(BackendError, match="file_00"):
        run_sft(backend, dataset, validation_file_id="file_00")
    digest = backend.download_file(file_id, tmp_path / "new" / "copy.jsonl")
    assert (tmp_path / "new" / "copy.jsonl").read_bytes() == held_back.read_bytes()
    assert digest == hashlib.sha256(held_back.read_bytes()).hexdigest()
    with pytest.raises(DataError, match="not 0000"):
        backend.download_file(file_id, tmp_path / "new" / "other.jsonl", "0" * 64)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["copy.jsonl"]
    with pytest.raises(BackendError, match="404"):
        backend.download_file("file_00", tmp_path / "new" / "nothing.jsonl")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["copy.jsonl"], "nothing half-written stays"


def test_a_model_is_taken_out_whole_or_not_at_all(make_backend, dataset, tmp_path):
    backend = make_backend()
    job = backend.wait(run_sft(backend, dataset), poll_seconds=0.02)
    out = backend.export_model("latest:sft", tmp_path / "models" / "sft")
    assert (out / "config.json").read_text() == "{}"
    assert backend.model(job.id)["id"] == job.model_id
    assert job.model_id in backend.model_card(job.model_id)
    assert backend.checkpoints(job.id) == []
    with pytest.raises(DataError, match="is there already"):
        backend.export_model(job.model_id, out)
    with pytest.raises(BackendError, match="no adapter"):
        backend.export_model(job.model_id, tmp_path / "models" / "adapter", "adapter")
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["sft"]


def test_an_archive_that_reaches_outside_is_refused(tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("config.json", "../outside"):
            tar.addfile(tarfile.TarInfo(name))
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=archive.getvalue()))
    with pytest.raises(BackendError, match="outside"):
        BackendClient(service_client("http://b", transport=transport)).export_model("m", tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_an_equal_key_is_an_equal_job(make_backend, dataset):
    backend = make_backend()
    first = run_sft(backend, dataset, idempotency_key="k", name="warmup")
    assert run_sft(backend, dataset, idempotency_key="k", name="warmup") == first
    assert run_sft(backend, dataset, name="warmup") != first


def test_rl_runs_from_a_trained_model(make_backend, dataset):
    backend = make_backend()
    sft = backend.wait(run_sft(backend, dataset), poll_seconds=0.02)
    job_id = backend.create_rl(RlConfig(), source=sft.model_id, **WHERE)
    assert backend.wait(job_id, poll_seconds=0.02).model_id == f"rl:crafter-tiny:{job_id}"
    with pytest.raises(BackendError, match="no trained model 'ft:job_0000000000000000'"):
        backend.create_rl(RlConfig(), source="ft:job_0000000000000000", **WHERE)


def test_a_job_is_planned_before_it_is_made(make_backend, dataset):
    backend = make_backend()
    file_id = backend.upload(dataset)
    for payload in (
        sft_payload(SftConfig(max_steps=10), file_id, task_app_url="http://t:1", tags={"a": "b"}),
        rl_payload(RlConfig(), source="crafter-tiny", **WHERE),
    ):
        plan = backend.plan(payload)
        assert plan["not_applied"] == {} and len(plan) > 1
    with pytest.raises(BackendError, match="no file file_00"):
        backend.plan(sft_payload(SftConfig(), "file_00"))


def test_what_rl_trained_can_be_read(make_backend):
    backend = make_backend()
    job_id = backend.create_rl(RlConfig(), source="crafter-tiny", **WHERE)
    backend.wait(job_id, poll_seconds=0.02)
    assert backend.samples(job_id, iteration=1, limit=5) == [], "the stand-in trains nothing"
    with pytest.raises(BackendError, match="no sample 1-0"):
        backend.sample(job_id, "1-0")


@pytest.mark.parametrize(
    ("config", "source", "says"),
    [
        (
            RlConfig(),
            "crafter-tiny",
            {"model.base": "crafter-tiny", "model.trainer_mode": "full", "data": "base_model"},
        ),
        (RlConfig(), "latest:sft", {"model.source": "latest:sft", "data": "model"}),
        (RlConfig(), "folder:a.gguf", {"model.base": "folder:a.gguf", "data": "base_model"}),
        (
            RlConfig(train_kind="qlora", lora_rank=4, lora_target_modules=("q_proj",)),
            "a",
            {
                "model.trainer_mode": "qlora",
                "lora": {"r": 4, "alpha": 32, "dropout": 0.0, "target_modules": ["q_proj"]},
            },
        ),
        (RlConfig(loss="dr_grpo"), "a", {"algorithm.variety": "dr_grpo", "training.loss": "dr_grpo"}),
        (RlConfig(loss="grpo", ratio="sequence"), "a", {"algorithm.variety": "gspo", "training.ratio": "sequence"}),
        (
            RlConfig(advantage="distillation", teacher="b"),
            "a",
            {"algorithm.variety": "on_policy_distillation", "training.teacher": "b"},
        ),
        (
            RlConfig(dev=DevSeeds(every=3, seeds=(900_001, 900_002))),
            "a",
            {"evaluation": {"instances": 2, "every_n_iters": 3, "seeds": [900_001, 900_002]}},
        ),
        (RlConfig(), "a", {"tags.method": "rl"}),
    ],
)
def test_the_wires_own_keys_say_what_the_config_says(config, source, says):
    payload = rl_payload(config, source=source, tags={"method": "rl"}, **WHERE)
    toml = payload["data"]["config"]
    for key, wanted in says.items():
        if key == "data":
            assert {k for k in payload["data"] if k.endswith("model")} == {wanted}
        else:
            assert reduce(lambda table, name: table[name], key.split("."), toml) == wanted
    assert len(toml["model"].keys() & {"source", "base"}) == 1


def test_a_bad_dataset_is_refused_with_its_line(make_backend, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(ROW) + "\n{}\n")
    with pytest.raises(BackendError, match="bad.jsonl, line 2"):
        make_backend().upload(bad)


def test_a_dataset_that_is_not_there_is_said(make_backend, tmp_path):
    with pytest.raises(DataError, match="nowhere.jsonl"):
        make_backend().upload(tmp_path / "nowhere.jsonl")


def test_something_else_at_the_address_is_said():
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text="<html>"))
    with pytest.raises(BackendError, match="is no training backend"):
        BackendClient(service_client("http://b/api", transport=transport)).job("job_1")
