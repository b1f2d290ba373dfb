"""What is done about a run whose process is gone, as Prefect asks for it: by keyword, in another process."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import pytest
from prefect.states import Crashed

from crafter_pipeline.config import EvaluateConfig, PipelineConfig
from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.environments import find_environment
from crafter_pipeline.evaluation import Evaluation, evaluate
from crafter_pipeline.report import read_report
from crafter_pipeline.runs import Run
from crafter_pipeline.training import TrainedModel
from flows.hooks import close_subflows, report_what_is_done
from flows.pipeline import crafter_pipeline

CONFIG = PipelineConfig(name="hooks")


@pytest.fixture
def run(monkeypatch, tmp_path) -> Run:
    """A run that was killed after two stages."""
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS", str(tmp_path))
    names = find_environment("crafter").achievements
    result = EpisodeResult("r", 1_000_000, ("collect_wood",), 1.0, 10, 10, "env_limit")

    def judged(label: str) -> Evaluation:
        return evaluate(label, "m", [result], 100, names, EvaluateConfig(bootstrap=100).bootstrap)

    def trained() -> TrainedModel:
        return TrainedModel(id="fft:m:job_1", job_id="job_1", parent="m")

    run = Run.find(tmp_path, CONFIG)
    with run.locked():
        run.stage("evaluate-random", judged, "random")
        run.stage("submit-sft", trained)
    return run


def crash() -> None:
    flow_run = SimpleNamespace(name="pipeline-tiny", parameters={"config": CONFIG.model_dump(mode="json")})
    report_what_is_done(flow=crafter_pipeline, flow_run=flow_run, state=Crashed())


def test_the_report_of_a_killed_run_tells_what_is_done(run):
    crash()
    report = read_report(run.folder)
    assert report.status == "partial" and [s.name for s in report.stages] == ["evaluate-random", "submit-sft"]
    assert [(e.label, e.mean_achievements) for e in report.evaluations] == [("random", 1.0)]
    assert [m.id for m in report.models] == ["fft:m:job_1"]
    assert "ended as Crashed. The same config goes on" in report.warnings[0]


def test_a_run_that_wrote_its_report_keeps_it(run):
    own = json.dumps({"status": "failed"})
    (run.folder / "report.json").write_text(own)
    crash()
    assert (run.folder / "report.json").read_text() == own


def test_a_run_that_goes_on_elsewhere_is_left_alone(run):
    with run.locked():
        crash()
    assert not (run.folder / "report.json").exists()


@pytest.mark.parametrize("hook", [close_subflows, report_what_is_done])
def test_hooks_are_named_as_prefect_calls_them(hook):
    assert list(inspect.signature(hook).parameters) == ["flow", "flow_run", "state"]
    assert hook in crafter_pipeline.on_cancellation_hooks and hook in crafter_pipeline.on_crashed_hooks
