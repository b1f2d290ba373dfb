"""Where the task app runs, as flows see it: containers, Modal, other hosts; and the gate before a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import pytest

import crafter_pipeline.services
import tasks.task_app
from crafter_pipeline import connections, detached, environments
from crafter_pipeline.cli import main
from crafter_pipeline.config import CollectConfig, PipelineConfig, SeedRange, TaskAppConfig
from crafter_pipeline.dataset.build import build_dataset
from crafter_pipeline.errors import ConfigError, ValidationFailed
from crafter_pipeline.processes import Service
from crafter_pipeline.runs import Run
from crafter_pipeline.services import services
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.validation import players
from flows.collect_rollouts import collect_rollouts
from flows.deploy_task_app import deploy_task_app
from tasks.task_app import start_task_app
from tests.standins.fake_docker import install_docker
from tests.standins.live_environments import WALK, ToyTaskApp, WalkExpert
from tests.standins.orchestration import standins

pytestmark = pytest.mark.usefixtures("prefect_server")
URL = "http://127.0.0.1:9"
ROOT = Path(__file__).resolve().parents[2]


def run_of(tmp_path: Path, **config) -> Run:
    return Run.find(tmp_path / "runs", PipelineConfig.model_validate({"name": "runtimes", **config}))


# --------------------------------------------------------------------------- the gate


@pytest.fixture
def toy(monkeypatch):
    """Let the flow find a toy environment: `toy("unstable")`."""
    monkeypatch.setitem(environments.ENVIRONMENTS, "walk", WALK)
    monkeypatch.setitem(players.EXPERTS, "walk", WalkExpert)

    def served(*defects: str) -> ToyTaskApp:
        app = ToyTaskApp("walk", *defects)
        client = app.client()
        client.health = lambda: {"healthy": True}
        monkeypatch.setattr(connections, "task_app", lambda url: client)
        return app

    return served


def test_a_fit_environment_passes_the_gate(toy):
    app = toy()
    assert deploy_task_app(TaskAppConfig(), "walk", task_app_url=URL) == URL
    assert app.requests and not app.live


def test_an_unfit_environment_ends_the_run_with_the_reason(toy):
    app = toy("unstable")
    with pytest.raises(ValidationFailed, match="determinism: .* not repeatable.*Draw every random number") as e:
        deploy_task_app(TaskAppConfig(), "walk", task_app_url=URL)
    assert e.value.exit_code == 1
    asked = len(app.requests)
    assert deploy_task_app(TaskAppConfig(gate=False), "walk", task_app_url=URL) == URL
    assert len(app.requests) == asked, "without the gate nobody plays"


def test_the_gate_tries_the_reward_that_training_will_use(toy):
    app = toy()
    shaping = {"enabled": True, "mode": "decision_stepwise"}
    deploy_task_app(TaskAppConfig(), "walk", shaping, task_app_url=URL)
    created = [body for path, body in app.requests if path == "/create"]
    assert created and all(body["config"]["step_rewards"] == shaping for body in created)


def test_a_task_app_that_cannot_be_tried_is_passed_over():
    with standins():
        assert deploy_task_app(TaskAppConfig(), "crafter", task_app_url=URL) == URL


# --------------------------------------------------------------------------- containers


@pytest.fixture
def diary(monkeypatch, tmp_path) -> Path:
    """What the `docker` command of the test was told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return install_docker(folder)


def test_a_container_that_stays_is_found_again_and_stopped(diary, monkeypatch, tmp_path):
    monkeypatch.setattr(detached, "project_root", lambda: tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = TaskAppConfig(runtime="docker", image="crafter-pipeline-task-app:mine", trace_dir=tmp_path / "traces")
    url = start_task_app.fn(config, "crafter")
    assert start_task_app.fn(config, "crafter") == url
    assert httpx.get(f"{url}/livez").status_code == 200
    assert main(["down"]) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/livez")


def test_a_run_in_a_container_traces_here_and_leaves_nothing(diary, tmp_path):
    run = run_of(tmp_path, task_app={"runtime": "docker"})
    with run.locked(), services(run) as at:
        assert at.imports is None, "the traces' folder is mounted"
        config = CollectConfig(seeds=SeedRange(start=0, count=2), max_env_steps=5)
        played = collect_rollouts(config, at.task_app_url, at.inference_url, at.imports)
        assert played.episodes == 2
        assert httpx.get(f"{at.task_app_url}/health").status_code == 401
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{at.task_app_url}/livez")
    assert len([r for db in run.traces.glob("*.db") for r in read_rollouts(db)]) == 2
    calls = [json.loads(line) for line in diary.read_text().splitlines()]
    (started,) = [call for call in calls if call["words"][0] == "run"]
    words = started["words"]
    assert started["key_in_environment"] and words[words.index("ENVIRONMENT_API_KEY") - 1] == "--env"
    assert not [w for w in words if w.startswith("ENVIRONMENT_API_KEY=")], "no value on the command line"
    assert f"{run.traces.absolute()}:/traces" in words


# --------------------------------------------------------------------------- far away


def test_traces_of_a_task_app_elsewhere_are_imported_and_become_a_dataset(tmp_path, monkeypatch):
    """A task app of its own folder stands for one on another host: what it answers is all that we have."""
    for name in ("ENVIRONMENT_API_KEY", "SYNTH_API_KEY"):
        monkeypatch.setenv(name, "shared-by-hand")
    with Service("far", "task_app", ["grpo-crafter", "--trace", str(tmp_path / "far")], log=tmp_path / "log") as far:
        run = run_of(tmp_path, task_app={"runtime": "url", "url": far.url})
        with run.locked(), services(run) as at:
            assert at.imports == run.traces
            config = CollectConfig(seeds=SeedRange(start=0, count=3), max_env_steps=8)
            for _ in range(2):  # the second time the ledger answers, with the trace
                played = collect_rollouts(config, at.task_app_url, at.inference_url, at.imports)
            assert played.episodes == 3
    (database,) = run.traces.glob("*.db")
    assert len(list(read_rollouts(database))) == 3
    manifest = build_dataset([database], PipelineConfig().filter, run.dataset)
    assert manifest.rollouts == 3 and manifest.rows > 0


def test_modal_needs_a_way_back_and_keys_that_both_sides_know(monkeypatch, tmp_path):
    for name in ("ENVIRONMENT_API_KEY", "SYNTH_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(crafter_pipeline.services, "deploy_modal", lambda *a, **k: asked.append((a, k)))
    public = {"public_url": "https://tunnel.example"}
    for config, says in (
        ({}, "cannot reach a training backend on 127.0.0.1. Set backend.public_url"),
        ({"backend": public}, "backend.public_url needs SYNTH_API_KEY"),
        ({"backend": {"runtime": "url", "url": "https://far.example"}}, "runtime modal needs ENVIRONMENT_API_KEY"),
    ):
        with (
            pytest.raises(ConfigError, match=says),
            services(run_of(tmp_path, task_app={"runtime": "modal"}, **config)),
        ):
            pass
    assert not asked, "nothing is deployed before that is clear"


def test_the_address_on_modal_reaches_every_stage(monkeypatch, tmp_path):
    for name in ("ENVIRONMENT_API_KEY", "SYNTH_API_KEY"):
        monkeypatch.setenv(name, "shared-by-hand")
    where = {"name": "crafter-task-app", "url": "https://me--crafter-task-app.modal.run"}
    for module in (crafter_pipeline.services, tasks.task_app):
        monkeypatch.setattr(module, "deploy_modal", lambda *a, **k: where)
    far = {"runtime": "url", "url": "https://far.example"}
    run = run_of(tmp_path, task_app={"runtime": "modal"}, backend=far)
    with run.locked(), services(run) as at:
        assert (at.task_app_url, at.imports) == (where["url"], run.traces)
        assert connections.task_app(at.task_app_url).has_key
    with standins():
        assert deploy_task_app(TaskAppConfig(runtime="modal"), "crafter") == where["url"]
