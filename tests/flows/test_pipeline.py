"""The pipeline as a whole: its contents, what a second start does, what is left after a failure."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

import flows.pipeline
from crafter_pipeline.config import PipelineConfig
from crafter_pipeline.errors import JobFailed
from crafter_pipeline.report import read_report
from crafter_pipeline.runs import Run
from crafter_pipeline.services import Addresses
from flows.nightly_eval import nightly_eval
from flows.pipeline import crafter_pipeline
from tests.standins.orchestration import FakeBackend, FakeTaskApp, standins

pytestmark = pytest.mark.usefixtures("prefect_server")

STAGES = [
    "deploy-task-app",
    "collect-rollouts",
    "filter-dataset",
    "evaluate-random",
    "evaluate-teacher",
    "submit-sft",
    "evaluate-sft",
    "submit-rl",
    "evaluate-rl",
]


@pytest.fixture
def config() -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "name": "test",
            "collect": {"seeds": {"start": 0, "count": 3}},
            "evaluate": {
                "seeds": {"start": 1_000_000, "count": 4},
                "baseline_seeds": {"start": 1_000_000, "count": 2},
                "bootstrap": 100,
            },
        }
    )


@pytest.fixture
def world(monkeypatch, tmp_path, make_manifest) -> Iterator[tuple[FakeTaskApp, FakeBackend, Path]]:
    """Stand-ins for both services, a filter that always finds something, runs in a temporary folder."""
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        flows.pipeline, "services", lambda run: nullcontext(Addresses("http://127.0.0.1:9", "http://127.0.0.1:10"))
    )
    monkeypatch.setattr("tasks.dataset.build_dataset", lambda dbs, config, out: make_manifest(path=str(out)))
    monkeypatch.setattr("tasks.dataset.resolve", lambda inputs: [Path(inputs[0]) / "a.db"])
    with standins() as (task_app, backend):
        yield task_app, backend, tmp_path


def test_a_run_goes_through_every_stage_and_a_second_one_does_nothing(world, config):
    task_app, backend, root = world
    folder = Path(crafter_pipeline(profile="test", config=config))
    report = json.loads((folder / "report.json").read_text())
    assert report["status"] == "succeeded"
    assert [s["name"] for s in report["stages"]] == STAGES
    assert [(e["label"], len(e["seeds"])) for e in report["evaluations"]] == [
        ("random", 2), ("teacher", 2), ("sft", 4), ("rl", 4),
    ]  # fmt: skip
    assert [(c["a"], c["b"]) for c in report["comparisons"]][0] == ("random", "teacher")
    assert len(report["comparisons"]) == 6
    assert [m["parent"] for m in report["models"]] == ["crafter-tiny", report["models"][0]["id"]]
    assert (root / "latest").resolve() == folder.resolve()
    asked = dict(task_app.calls), dict(backend.calls)

    assert crafter_pipeline(profile="test", config=config) == str(folder)
    assert (task_app.calls, backend.calls) == asked, "a finished run asks nobody"

    (folder / "report.json").unlink()  # as if killed before the report
    assert crafter_pipeline(profile="test", config=config) == str(folder)
    asked[0]["health"] += 1  # the task app has to be there again
    assert (task_app.calls, backend.calls) == asked, "a done stage is not done twice"
    assert {s.state for s in read_report(folder).stages[1:]} == {"cached"}


def test_a_failed_run_reports_and_the_next_one_goes_on(world, config, monkeypatch):
    task_app, backend, root = world
    with monkeypatch.context() as patch:
        patch.setattr(backend, "wait", _job_failed)
        with pytest.raises(JobFailed, match="the worker's last words"):
            crafter_pipeline(profile="test", config=config)
    folder = root / "latest"
    report = read_report(folder)
    assert report.status == "partial"
    assert (report.stages[-1].name, report.stages[-1].state) == ("submit-sft", "failed")
    assert any("the worker's last words" in w for w in report.warnings)
    before = len(task_app.requests)
    crafter_pipeline(profile="test", config=config)
    assert read_report(folder).status == "succeeded"
    assert {r.training_session_id for r in task_app.requests[before:]} == {"evaluate"}, "nothing is collected again"


def _job_failed(*args):
    raise JobFailed("the worker's last words")


def test_nightly_evaluates_the_newest_model(world):
    evaluation = nightly_eval(task_app_url="http://127.0.0.1:9", backend_url="http://127.0.0.1:10")
    assert evaluation.model == "rl:crafter-tiny:job_2"


def test_the_flow_is_a_table_of_contents():
    tree = ast.parse(inspect.getsource(crafter_pipeline.fn))
    assert not [n for n in ast.walk(tree) if isinstance(n, (ast.For, ast.While, ast.Try))]
    assert sum(isinstance(n, ast.If) for n in ast.walk(tree)) <= 1
    assert len(inspect.getsource(crafter_pipeline.fn).splitlines()) < 60


def test_two_runs_in_one_folder_are_refused(tmp_path, config):
    from crafter_pipeline.errors import ConfigError

    with Run.find(tmp_path, config).locked():
        with pytest.raises(ConfigError, match="in use by process"), Run.find(tmp_path, config).locked():
            pass
    with Run.find(tmp_path, config).locked():
        pass


def test_fresh_takes_the_next_folder(tmp_path, config):
    first = Run.find(tmp_path, config)
    for number in (1, 2, 3):
        with Run.find(tmp_path, config, fresh=True).locked() as run:
            assert run.id == (first.id if number == 1 else f"{first.id}-{number}")
    assert Run.find(tmp_path, config).id == f"{first.id}-3"


def test_a_stage_is_done_again_when_its_inputs_change(tmp_path, config):
    calls = []

    def stage(value: int, where: str = "") -> int:
        calls.append((value, where))
        return value

    with Run.find(tmp_path, config).locked() as run:
        assert [run.stage("s", stage, v, where=w) for v, w in ((1, "a"), (1, "b"), (2, "a"))] == [1, 1, 2]
    assert calls == [(1, "a"), (2, "a")]
