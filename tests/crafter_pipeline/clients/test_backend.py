"""The backend's client, against the real service with stand-ins for its workers."""

import json
import sys
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from crafter_pipeline.clients.backend import BackendClient
from crafter_pipeline.clients.http import service_client
from crafter_pipeline.config import PolicyConfig, RlConfig, SftConfig
from crafter_pipeline.errors import BackendError, DataError, JobFailed
from train_app.app import make_app

WORKER = Path(__file__).parents[2] / "standins" / "fake_worker.py"
ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "noop"}]}


@pytest.fixture
def make_backend(tmp_path):
    """A client of the real service, whose workers behave as `mode` says."""
    opened = []

    def make(mode="succeed"):
        def command(job, data_dir):
            return [sys.executable, str(WORKER), mode, "--data-dir", str(data_dir), "--job", job.id]

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


def test_an_equal_key_is_an_equal_job(make_backend, dataset):
    backend = make_backend()
    first = run_sft(backend, dataset, idempotency_key="k", name="warmup")
    assert run_sft(backend, dataset, idempotency_key="k", name="warmup") == first
    assert run_sft(backend, dataset, name="warmup") != first


def test_rl_runs_from_a_trained_model(make_backend, dataset):
    backend = make_backend()
    sft = backend.wait(run_sft(backend, dataset), poll_seconds=0.02)
    where = dict(task_app_url="http://t:1", environment="crafter", policy=PolicyConfig())
    job_id = backend.create_rl(RlConfig(), source=sft.model_id, **where)
    assert backend.wait(job_id, poll_seconds=0.02).model_id == f"rl:crafter-tiny:{job_id}"
    with pytest.raises(BackendError, match="no trained model 'ft:job_0000000000000000'"):
        backend.create_rl(RlConfig(), source="ft:job_0000000000000000", **where)


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
