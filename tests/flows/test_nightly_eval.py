"""A night: who is judged, what is played anew, what is told when a model got worse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.serializers import JSONSerializer

import tasks.nightly
from crafter_pipeline.config import NightlyConfig, SeedRange
from crafter_pipeline.episodes import EpisodeSpec
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.nightly import NightlyReport, Nights
from flows.nightly_eval import nightly_eval
from tests.standins.nights import evaluation_of, plant_baseline
from tests.standins.orchestration import FakeBackend, FakeTaskApp, standins

pytestmark = pytest.mark.usefixtures("prefect_server")
AT = {"task_app_url": "http://127.0.0.1:9", "backend_url": "http://127.0.0.1:10"}
CONFIG = NightlyConfig(models=("champion", "latest:rl"), seeds=SeedRange(start=1_000_000, count=6), bootstrap=100)
MODEL = "rl:crafter-tiny:job_2"


@pytest.fixture
def world(monkeypatch, tmp_path: Path) -> Iterator[tuple[FakeTaskApp, FakeBackend]]:
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS", str(tmp_path))
    with standins() as services:
        yield services


@pytest.fixture
def events(monkeypatch) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(tasks.nightly, "emit_event", lambda event, **facts: told.append({"event": event, **facts}))
    return told


def test_a_night_is_played_anew_and_a_regression_is_told(world, events):
    task_app, _ = world
    plant_baseline("latest:rl", 5, CONFIG)
    state = nightly_eval(CONFIG, **AT, return_state=True)
    report = state.result()
    (night,) = report.nights
    assert night.comparison.delta == -2.5 and list(report.missing) == ["champion"]
    assert state.is_completed() and state.name == "Regressed" and "champion passed over" in state.message
    (event,) = events
    assert event["event"] == "crafter.eval.regressed"
    assert event["resource"]["prefect.resource.id"] == "crafter-pipeline.model.latest:rl"
    assert event["payload"] == {
        "model": "latest:rl",
        "model_id": MODEL,
        "delta": -2.5,
        "ci95": list(night.comparison.ci95),
        "seeds": 6,
        "says": night.says,
    }
    here = EpisodeSpec.to_evaluate(CONFIG.evaluation(), MODEL, AT["task_app_url"], "", repetition=night.id)
    assert {r.run_id for r in task_app.requests} == {here.run_id(seed) for seed in CONFIG.seeds.seeds}
    assert night.id == str(state.state_details.flow_run_id), "another run has other episodes, a retry the same"
    with pytest.raises(ConfigError, match="The baseline of latest:rl was played with max_env_steps 100"):
        nightly_eval.fn(CONFIG.model_copy(update={"max_env_steps": 50}), **AT)
    assert len(task_app.requests) == 6, "that is known before anybody plays"


def test_a_retried_run_goes_on_with_the_same_episodes(world, events, monkeypatch):
    task_app, _ = world
    keep, died = Nights.keep, []

    def dies_once(self, *args):
        if not died:
            died.append(True)
            raise RuntimeError("killed for the test")
        return keep(self, *args)

    monkeypatch.setattr(Nights, "keep", dies_once)
    state = nightly_eval.with_options(retries=1)(CONFIG, **AT, return_state=True)
    assert died and len(state.result().nights) == 1
    assert len(task_app.requests) == 12 and len({request.run_id for request in task_app.requests}) == 6


def test_one_model_that_cannot_be_judged_does_not_stop_the_others(world, events, monkeypatch):
    damaged = Nights.of("latest:sft")
    damaged.folder.mkdir(parents=True)
    (damaged.folder / "history.jsonl").write_text("{\n")
    config = CONFIG.model_copy(update={"models": ("latest:sft", "latest:rl")})
    state = nightly_eval(config, **AT, return_state=True)
    report = state.result()
    assert [night.name for night in report.nights] == ["latest:rl"] and state.name == "PartialSuccess"
    assert "history.jsonl, line 1" in report.failed["latest:sft"]


def test_a_report_survives_the_store_of_results(world):
    night = plant_baseline("champion", 3, CONFIG)
    worse = Nights.of("champion").keep("next", evaluation_of("champion", 1, CONFIG), CONFIG)
    report = NightlyReport((night, worse), {"latest:rl": "none"}, {"latest:sft": "gone"})
    serializer = JSONSerializer()
    assert serializer.loads(serializer.dumps(report)) == report
