"""Our flows against a stand-in for the hosted backend, which knows its own routes and nothing of ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import tasks.training
from crafter_pipeline import connections
from crafter_pipeline.clients.backend import BackendClient
from crafter_pipeline.config import (
    ComputeConfig,
    DevSeeds,
    PolicyConfig,
    RlComputeConfig,
    RlConfig,
    SftConfig,
)
from crafter_pipeline.errors import BackendError, ConfigError, DataError, JobFailed, JobNotOver
from crafter_pipeline.processes import Service
from crafter_pipeline.runs import Run, read_profile
from crafter_pipeline.services import services
from crafter_pipeline.training import RlJob, SftJob, follow
from flows.pipeline import crafter_pipeline
from flows.submit_rl import submit_rl
from flows.submit_sft import submit_sft
from tasks.promotion import find_champion
from tasks.training import resolve_model
from tests.standins.groq import KEY as GROQ_KEY
from tests.standins.groq import GroqLike
from tests.standins.hosted_backend import FAILS, KEY, NEVER_ENDS, SUCCEEDS, HostedBackend

pytestmark = pytest.mark.usefixtures("prefect_server")
URL = "http://hosted"
TASK_APP_KEY = "of-the-task-app"
ON_GPUS = SftConfig(
    base_model="Qwen/Qwen3-4B", batch_size=64, micro_batch_size=2, compute=ComputeConfig(gpu_type="H100", gpu_count=4)
)
PUBLISHED = re.compile(
    r"(POST /api/files|POST /api/learning/jobs(/job_\w+/start)?|GET /api/learning/jobs/job_\w+(/events|/metrics)?"
    r"|POST /api/rl/(verify_task_app|jobs)|GET /api/learning/models(/.+)?|POST /api/inference/v1/chat/completions)"
)
"""What a run may ask of a hosted backend and be answered."""
TRIED = re.compile(r"(POST /api/plan|GET /api/(learning/)?models/.+)")
"""What our own backend knows, and names by which a hosted one knows no model: asked for first, and done without."""


@pytest.fixture
def hosted(monkeypatch, tmp_path):
    """A hosted backend that the environment names, with its key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks.training, "POLL_SECONDS", 0.02)
    for name in ("_keys", "_task_apps", "_backends"):
        monkeypatch.setattr(connections, name, {})
    backend = HostedBackend()
    with backend.serving() as url:
        monkeypatch.setenv("BACKEND_BASE_URL", f"{url}/api")
        monkeypatch.setenv("SYNTH_API_KEY", KEY)
        yield backend


@pytest.fixture
def client(hosted, monkeypatch) -> BackendClient:
    """Of the hosted backend, in this process; whatever the address."""
    found = BackendClient(TestClient(hosted.app, base_url=URL, headers={"Authorization": f"Bearer {KEY}"}))
    monkeypatch.setattr(connections, "backend", lambda url: found)
    return found


@pytest.fixture
def dataset(tmp_path) -> Path:
    row = {"messages": [{"role": "user", "content": "tree east"}, {"role": "assistant", "content": "do"}]}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path / "d.jsonl"


@pytest.fixture
def task_app(monkeypatch):
    """A task app that is there."""
    for module in ("flows.submit_rl", "flows.submit_sft"):
        monkeypatch.setattr(f"{module}.check_task_app", lambda url: {"healthy": True})
    return "https://somebody--crafter-task-app.modal.run"


def require_published(hosted: HostedBackend) -> None:
    """Nothing was asked but what the service has, and the key travelled in its headers alone."""
    for r in hosted.requests:
        asked = f"{r.method} {r.path}"
        assert PUBLISHED.fullmatch(asked) if r.status < 300 else TRIED.fullmatch(asked), (asked, r.status, r.body)
        assert r.headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in json.dumps([r.path, r.query, r.body])


def test_a_dataset_becomes_a_model_and_the_same_again_asks_for_nothing_new(hosted, dataset):
    model, again = submit_sft(ON_GPUS, dataset=dataset), submit_sft(ON_GPUS, dataset=dataset)
    assert model.id == again.id == "fft:Qwen/Qwen3-4B:job_0000000000000001"
    assert model.curves["train.loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    require_published(hosted)
    first, second = hosted.asked("POST", "/api/learning/jobs")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] and len(hosted.jobs) == 1
    assert first.body["training_type"] == "sft_offline" and first.body["training_file_id"] in hosted.files
    effective, hyper = first.body["metadata"]["effective_config"], first.body["hyperparameters"]
    assert effective["compute"] == {"gpu_type": "H100", "gpu_count": 4, "nodes": 1}
    assert effective["training"] == {"mode": "full_finetune", "use_qlora": False}
    wire = {"global_batch": 64, "per_device_batch": 2, "gradient_accumulation_steps": 8, "train_kind": "fft"}
    assert wire.items() <= hyper.items() and "compute" not in hyper
    assert hosted.contents[first.body["training_file_id"]] == dataset.read_bytes()


def sft_job(client, dataset: Path, config: SftConfig) -> SftJob:
    return SftJob(config=config, file_id=client.upload(dataset), dataset_sha256="00")


def test_a_job_that_names_no_machine_is_refused_in_a_line_that_says_which_key(client, dataset):
    with pytest.raises(BackendError, match=r"answered 422 to POST /api/learning/jobs: .*compute.*gpu_type") as e:
        sft_job(client, dataset, SftConfig(base_model="Qwen/Qwen3-4B")).submit(client)
    assert len(str(e.value).splitlines()) == 1


def test_a_failed_job_is_told_with_its_reason(hosted, client, dataset):
    hosted.scripts["sft"] = FAILS
    with pytest.raises(JobFailed, match="CUDA out of memory"):
        follow(client, sft_job(client, dataset, ON_GPUS).submit(client), 0.01)


def test_a_job_that_never_ends_is_waited_for_in_bounds_and_found_again(hosted, client, dataset):
    hosted.scripts["sft"] = NEVER_ENDS
    job = sft_job(client, dataset, ON_GPUS)
    job_id = job.submit(client)
    with pytest.raises(JobNotOver, match=f"Job {job_id} is running after .*goes on"):
        follow(client, job_id, 0.01, 0.05)
    hosted.jobs[job_id].states = SUCCEEDS
    assert follow(client, job.submit(client), 0.01, 60.0)[0] == f"fft:Qwen/Qwen3-4B:{job_id}"


def test_rewards_are_learned_from_the_newest_model_through_a_task_app_that_was_verified(hosted, task_app):
    hosted.add_model("fft:Qwen/Qwen3-4B:job_00000000000000aa")
    hosted.add_model("rl:Qwen/Qwen3-4B:job_00000000000000bb")
    machines = RlComputeConfig(gpu_type="H100", gpu_count=8, gpus_for_vllm=4, gpus_for_training=4, tensor_parallel=4)
    config = RlConfig(loss="grpo", ratio="sequence", dev=DevSeeds(every=5, seeds=(900_000, 900_001)), compute=machines)
    model = submit_rl(config, "latest:sft", task_app_url=task_app)
    assert model.id == "rl:Qwen/Qwen3-4B:job_0000000000000001"
    assert model.parent == "fft:Qwen/Qwen3-4B:job_00000000000000aa"
    require_published(hosted)
    (verified,), (asked,) = hosted.asked("POST", "/api/rl/verify_task_app"), hosted.asked("POST", "/api/rl/jobs")
    assert verified.body == {"endpoint_base_url": task_app}
    data = asked.body["data"]
    assert (data["endpoint_base_url"], data["model"]) == (task_app, model.parent) and "base_model" not in data
    assert asked.body["compute"] == data["config"]["compute"] == {"gpu_type": "H100", "gpu_count": 8, "nodes": 1}
    assert data["config"]["topology"] == {"gpus_for_vllm": 4, "gpus_for_training": 4, "tensor_parallel": 4}
    assert data["config"]["vllm"] == {"tensor_parallel_size": 4}
    assert data["config"]["algorithm"]["variety"] == "gspo"
    assert data["config"]["evaluation"] == {"instances": 2, "every_n_iters": 5, "seeds": [900_000, 900_001]}
    assert "compute" not in data["config"]["training"] and asked.headers["idempotency-key"].startswith("rl-")


def test_a_task_app_that_it_cannot_use_costs_no_job(hosted, client, task_app):
    hosted.reaches_task_apps = False
    job = RlJob(config=RlConfig(), source="x", environment="crafter", policy=PolicyConfig(), task_app_url=task_app)
    with pytest.raises(BackendError, match="cannot use the task app at .*same ENVIRONMENT_API_KEY"):
        job.submit(client)
    assert not hosted.jobs


def test_a_model_that_it_has_not_is_said_with_the_nearest(hosted, client):
    hosted.add_model("fft:Qwen/Qwen3-4B:job_00000000000000aa")
    with pytest.raises(DataError, match="job_00000000000000aa"):
        resolve_model.fn("fft:Qwen/Qwen3-4B:job_00000000000000ab", URL)
    assert resolve_model.fn("job_00000000000000aa", URL) == "fft:Qwen/Qwen3-4B:job_00000000000000aa"


def test_there_is_no_champion_to_be_made(client):
    with pytest.raises(DataError, match="keeps no name 'champion'"):
        find_champion.fn(URL)


@pytest.mark.parametrize(
    ("backend", "overrides", "says"),
    [
        (
            "https://hosted.test/api",
            ["task_app.runtime=uvicorn"],
            "hosted.test/api cannot reach a task app on 127.0.0.1",
        ),
        (None, [], "runtime modal.*Set BACKEND_BASE_URL"),
    ],
)
def test_backend_and_task_app_have_to_reach_each_other(monkeypatch, tmp_path, backend, overrides, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BACKEND_BASE_URL", raising=False)
    if backend:
        monkeypatch.setenv("BACKEND_BASE_URL", backend)
    run = Run.find(tmp_path, read_profile("hosted", overrides))
    with pytest.raises(ConfigError, match=says), services(run):
        pass


@pytest.mark.slow
def test_the_hosted_profile_runs_to_its_end(hosted, monkeypatch, tmp_path):
    """Groq's teacher, the hosted trainer, a task app that is not ours: each a stand-in but for the task app."""
    monkeypatch.setenv("ENVIRONMENT_API_KEY", TASK_APP_KEY)
    monkeypatch.setenv("GROQ_API_KEY", GROQ_KEY)
    groq = GroqLike(["ok", "rate_limited", "slow", "html", "unavailable"], retry_after_s=0.2)
    with groq.serving() as groq_url:
        monkeypatch.setenv("INFERENCE_API_KEYS", f"{groq_url.split('/')[2]}=GROQ_API_KEY")
        arguments = ["grpo-crafter", "--trace", str(tmp_path / "far")]
        with Service("task app", "task_app", arguments, log=tmp_path / "task_app.log") as far:
            config = read_profile(
                "hosted",
                [
                    "task_app.runtime=url",
                    f"task_app.url={far.url}",
                    f"collect.inference_url={groq_url}",
                    "collect.seeds={start = 0, count = 4}",
                    "collect.max_env_steps=20",
                    "filter.min_unique=0",
                    "evaluate.seeds={start = 1_000_000, count = 6}",
                    "evaluate.baseline_seeds={start = 1_000_000, count = 6}",
                    "evaluate.max_env_steps=20",
                ],
            )
            folder = Path(crafter_pipeline(config=config))
    report = json.loads((folder / "report.json").read_text())
    assert report["status"] == "succeeded"
    assert [stage["name"] for stage in report["stages"]] == [
        *("deploy-task-app", "collect-rollouts", "filter-dataset", "evaluate-teacher"),
        *("submit-sft", "evaluate-sft", "submit-rl", "evaluate-rl"),
    ]
    assert [e["label"] for e in report["evaluations"]] == ["teacher", "sft", "rl"]
    assert all(len(e["seeds"]) == 6 and e["mean_achievements"] > 0 for e in report["evaluations"])
    sft, rl = (m["id"] for m in reversed(hosted.models))
    assert (sft, rl) == ("fft:Qwen/Qwen3-4B:job_0000000000000001", "rl:Qwen/Qwen3-4B:job_0000000000000002")
    require_published(hosted)
    (job,) = hosted.asked("POST", "/api/rl/jobs")
    assert job.body["data"]["model"] == sft
    (file,) = hosted.contents.values()
    rows = [json.loads(line) for line in file.splitlines()]
    assert len(rows) == report["dataset"]["rows"] > 4
    asked = {r.body["model"] for r in hosted.asked("POST", "/api/inference/v1/chat/completions")}
    assert asked == {sft, rl}
    assert {h["authorization"] for h in groq.headers} == {f"Bearer {GROQ_KEY}"}
    for secret in (KEY, GROQ_KEY, TASK_APP_KEY):
        for path in folder.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path
