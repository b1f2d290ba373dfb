"""prefect.yaml and configs/: every entry is known to Prefect, loads, is documented, and makes a form."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml
from prefect import Flow
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.events import DeploymentTriggerTypes
from prefect.utilities.schema_tools.validation import validate
from prefect.workers.process import ProcessWorker
from pydantic import TypeAdapter

from crafter_pipeline.cli.deployments import POOL
from crafter_pipeline.cli.server import prefect_variables
from crafter_pipeline.config import PipelineConfig, load_config
from flows import _prefect_plugin

ROOT = Path(__file__).resolve().parents[2]
YAML = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {d["name"]: d for d in YAML["deployments"]}
ENTRYPOINTS = {
    "crafter-pipeline": "flows.pipeline.crafter_pipeline",
    "deploy-task-app": "flows.deploy_task_app.deploy_task_app",
    "collect-rollouts": "flows.collect_rollouts.collect_rollouts",
    "filter-dataset": "flows.filter_dataset.filter_dataset",
    "submit-sft": "flows.submit_sft.submit_sft",
    "dagger": "flows.dagger.dagger",
    "evaluate": "flows.evaluate_model.evaluate_model",
    "submit-rl": "flows.submit_rl.submit_rl",
    "promote": "flows.promote.promote",
    "rollback": "flows.rollback.rollback",
    "nightly-eval": "flows.nightly_eval.nightly_eval",
    "sweep": "flows.sweep.sweep",
    "alert": "flows.alert.alert",
}


def test_the_names_that_others_rely_on():
    assert {name: d["entrypoint"] for name, d in DEPLOYMENTS.items()} == ENTRYPOINTS
    assert _prefect_plugin.OUR_NAMES == set(ENTRYPOINTS)
    assert "pull" not in YAML


# --------------------------------------------------------------------------- the file


def strict(schema: Any) -> Any:
    """The same schema, in which an object has no other properties than it names."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in closed:
        closed["additionalProperties"] = False
    return closed


def problems(content: Any) -> list[str]:
    """What Prefect would ignore or refuse in a prefect.yaml, by its own models."""
    content = {key: value for key, value in content.items() if key != "definitions"}  # YAML anchors are ours
    found = [_told(e) for e in _errors(strict(PrefectYamlModel.model_json_schema()), content)]
    trigger_schema = strict(TypeAdapter(DeploymentTriggerTypes).json_schema())
    for deployment in content["deployments"]:
        found += [_told(e) for t in deployment.get("triggers", ()) for e in _errors(trigger_schema, t)]
    return found


def _errors(schema: Any, content: Any) -> Iterator[jsonschema.ValidationError]:
    return jsonschema.Draft202012Validator(schema).iter_errors(content)


def _told(error: jsonschema.ValidationError) -> str:
    return " ".join([error.message, *(e.message for e in error.context or ())])


def test_prefect_knows_every_word_of_the_file():
    assert problems(YAML) == []


@pytest.mark.parametrize("where", ["deployment", "limit", "pool", "schedule", "trigger", "file"])
def test_a_word_that_prefect_would_ignore_is_found(where):
    broken = deepcopy(YAML)
    nightly, alert = (next(d for d in broken["deployments"] if d["name"] == n) for n in ("nightly-eval", "alert"))
    places = {
        "deployment": nightly,
        "limit": nightly["concurrency_limit"],
        "pool": nightly["work_pool"],
        "schedule": nightly["schedules"][0],
        "trigger": alert["triggers"][0],
        "file": broken,
    }
    places[where]["tagz"] = ["crafter"]
    assert any("tagz" in problem for problem in problems(broken))


def test_the_work_pool_takes_its_variables():
    known = ProcessWorker.get_default_base_job_template()["variables"]["properties"]
    for deployment in DEPLOYMENTS.values():
        assert deployment["work_pool"]["name"] == POOL
        assert set(deployment["work_pool"]["job_variables"]) <= set(known)


def test_a_deployment_and_the_settings_say_the_same(monkeypatch):
    for deployment in DEPLOYMENTS.values():
        for name, value in deployment["work_pool"]["job_variables"]["env"].items():
            monkeypatch.delenv(name, raising=False)
            assert prefect_variables()[name] == value


# --------------------------------------------------------------------------- each deployment


def flow_of(name: str) -> Flow[..., Any]:
    module, _, function = DEPLOYMENTS[name]["entrypoint"].rpartition(".")
    found = getattr(import_module(module), function)
    assert isinstance(found, Flow)
    return found


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_loads_and_is_documented(name):
    deployment, flow = DEPLOYMENTS[name], flow_of(name)
    assert flow.name == name
    assert flow.fn.__doc__ and flow.description
    assert deployment["description"] and "crafter" in deployment["tags"]
    assert all(schedule["slug"] and schedule["timezone"] for schedule in deployment.get("schedules", ()))


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_its_parameters_exist_and_are_valid(name):
    deployment, flow = DEPLOYMENTS[name], flow_of(name)
    schema, given = flow.parameters.model_dump_for_openapi(), deployment.get("parameters", {})
    starts = [s.get("parameters", {}) for s in deployment.get("schedules", ())]
    starts += [t.get("parameters", {}) for t in deployment.get("triggers", ())]
    for parameters in (given | start for start in starts or [{}]):
        assert set(parameters) <= set(flow.parameters.properties)
        assert set(flow.parameters.required) <= set(parameters)
        validate(parameters, schema, raise_on_error=True, preprocess=True)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_its_parameters_make_a_good_form(name):
    """Everything has a title and a description; a choice between types opens with the default's."""
    schema = flow_of(name).parameters.model_dump_for_openapi()
    bad = []
    for where, owner in {name: schema, **schema.get("definitions", {})}.items():
        for key, field in owner.get("properties", {}).items():
            if not (field.get("description") or _referred(field, schema).get("description")):
                bad.append(f"{where}.{key} has no description")
            choices = [c for c in field.get("anyOf", ()) if c.get("type") != "null"]
            if not (field.get("title") or any("$ref" in part for part in (field, *choices))):  # a model has its own
                bad.append(f"{where}.{key} has no title")
            default = field.get("default")
            if len(choices) > 1 and default is not None and not _fits(default, choices[0], schema):
                bad.append(f"{where}.{key} opens as {choices[0]}, its default is {default!r}")
    assert not bad


def _referred(field: Any, schema: Any) -> Any:
    """The model that a field refers to; pydantic leaves out what both would say."""
    return schema.get("definitions", {}).get(field.get("$ref", "").rpartition("/")[2], {})


def _fits(value: Any, choice: Any, schema: Any) -> bool:
    return jsonschema.Draft202012Validator({**choice, "definitions": schema.get("definitions", {})}).is_valid(value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "profiles").glob("*.toml")), ids=lambda p: p.stem)
def test_a_profile_parses(path):
    assert load_config(PipelineConfig, path).name == path.stem


# --------------------------------------------------------------------------- bare names


@pytest.fixture
def readers(monkeypatch):
    """Prefect's two classes that read deployments, as copies without the plugin, and what they were asked for."""
    from prefect.client.orchestration._deployments import client

    asked: list[str] = []
    for name in ("DeploymentClient", "DeploymentAsyncClient"):
        reader = type(name, (), {"read_deployment_by_name": lambda self, name: asked.append(name)})
        monkeypatch.setattr(client, name, reader)
    return SimpleNamespace(module=client, asked=asked)


def test_the_plugin_completes_our_names_alone(readers):
    assert not _prefect_plugin.bare_names_work()
    _prefect_plugin.setup_environment(ctx=None)
    _prefect_plugin.setup_environment(ctx=None)  # twice is once
    assert _prefect_plugin.bare_names_work()
    for name in ("crafter-pipeline", "evaluate", "somebody-elses", "a/b"):
        readers.module.DeploymentClient().read_deployment_by_name(name)
    assert readers.asked == ["crafter-pipeline/crafter-pipeline", "evaluate/evaluate", "somebody-elses", "a/b"]


@pytest.mark.parametrize("gone", ["DeploymentClient", "DeploymentClient.read_deployment_by_name"])
def test_a_prefect_without_the_place_to_hook_in_is_left_alone(readers, gone, monkeypatch, caplog):
    owner, _, method = gone.partition(".")
    monkeypatch.delattr(getattr(readers.module, owner) if method else readers.module, method or owner)
    with caplog.at_level(logging.WARNING):
        _prefect_plugin.setup_environment(ctx=None)
    assert "crafter-pipeline/crafter-pipeline" in caplog.text
    assert not _prefect_plugin.bare_names_work()


def test_the_place_where_the_plugin_hooks_in_is_still_there():
    from prefect.client.orchestration._deployments import client

    assert callable(client.DeploymentClient.read_deployment_by_name)
    assert callable(client.DeploymentAsyncClient.read_deployment_by_name)
