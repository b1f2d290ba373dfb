"""prefect.yaml and configs/: every entry loads and is documented."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from crafter_pipeline.config import PipelineConfig, load_config
from flows import _prefect_plugin

ROOT = Path(__file__).resolve().parents[2]
YAML = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {d["name"]: d for d in YAML["deployments"]}
KEYS = {"name", "entrypoint", "description", "tags", "parameters", "concurrency_limit", "work_pool", "schedules"}
ENTRYPOINTS = {
    "crafter-pipeline": "flows.pipeline.crafter_pipeline",
    "deploy-task-app": "flows.deploy_task_app.deploy_task_app",
    "collect-rollouts": "flows.collect_rollouts.collect_rollouts",
    "filter-dataset": "flows.filter_dataset.filter_dataset",
    "submit-sft": "flows.submit_sft.submit_sft",
    "dagger": "flows.dagger.dagger",
    "evaluate": "flows.evaluate_model.evaluate_model",
    "submit-rl": "flows.submit_rl.submit_rl",
    "nightly-eval": "flows.nightly_eval.nightly_eval",
}


def test_the_names_that_others_rely_on():
    assert {name: d["entrypoint"] for name, d in DEPLOYMENTS.items()} == ENTRYPOINTS
    assert _prefect_plugin.OUR_NAMES == set(ENTRYPOINTS)
    assert "pull" not in YAML


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_loads_and_is_documented(name):
    deployment = DEPLOYMENTS[name]
    assert not set(deployment) - KEYS, "Prefect ignores unknown keys in silence"
    assert deployment["work_pool"]["name"] == "crafter"
    assert deployment["description"]
    module, _, function = deployment["entrypoint"].rpartition(".")
    flow = getattr(import_module(module), function)
    assert flow.name == name
    assert flow.fn.__doc__ and flow.description
    given = deployment.get("parameters", {})
    assert set(given) <= set(flow.parameters.properties)
    undocumented = [p for p, schema in flow.parameters.properties.items() if not schema.get("description")]
    assert not undocumented
    for schedule in deployment.get("schedules", ()):
        assert schedule["slug"] and schedule["cron"]
        assert set(schedule["parameters"]) <= set(flow.parameters.properties)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "profiles").glob("*.toml")), ids=lambda p: p.stem)
def test_a_profile_parses(path):
    assert load_config(PipelineConfig, path).name == path.stem


def test_the_plugin_completes_our_names_alone(monkeypatch):
    from prefect.client.orchestration._deployments import client

    asked: list[str] = []
    owners = SimpleNamespace(
        DeploymentClient=type("C", (), {"read_deployment_by_name": lambda self, name: asked.append(name)}),
        DeploymentAsyncClient=type("A", (), {"read_deployment_by_name": lambda self, name: asked.append(name)}),
    )
    monkeypatch.setattr(client, "DeploymentClient", owners.DeploymentClient)
    monkeypatch.setattr(client, "DeploymentAsyncClient", owners.DeploymentAsyncClient)
    _prefect_plugin.setup_environment(ctx=None)
    _prefect_plugin.setup_environment(ctx=None)  # twice is once
    for name in ("crafter-pipeline", "evaluate", "somebody-elses", "a/b"):
        owners.DeploymentClient().read_deployment_by_name(name)
    assert asked == ["crafter-pipeline/crafter-pipeline", "evaluate/evaluate", "somebody-elses", "a/b"]


def test_the_place_where_the_plugin_hooks_in_is_still_there():
    from prefect.client.orchestration._deployments import client

    assert callable(client.DeploymentClient.read_deployment_by_name)
    assert callable(client.DeploymentAsyncClient.read_deployment_by_name)
