"""What is kept of a night, and what it is compared with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from crafter_pipeline.clients.backend import BackendClient
from crafter_pipeline.config import NightlyConfig, SeedRange
from crafter_pipeline.errors import ConfigError, DataError
from crafter_pipeline.evaluation import Evaluation
from crafter_pipeline.nightly import NightlyReport, Nights, find_models
from tests.standins.nights import evaluation_of
from train_app.app import make_app

CONFIG = NightlyConfig(seeds=SeedRange(start=1_000_000, count=8), bootstrap=200)


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path / "nightly" / "champion", "champion")


def played(unlocked: int, name: str = "champion", **how: Any) -> Evaluation:
    return evaluation_of(name, unlocked, CONFIG, **how)


# --------------------------------------------------------------------------- which models


@pytest.fixture
def registry(tmp_path: Path) -> BackendClient:
    """A training backend that has trained nothing yet."""
    return BackendClient(TestClient(make_app(tmp_path / "data", api_key=None)))


def test_names_without_a_model_are_passed_over_and_built_in_models_are_models(registry):
    found = find_models(registry, ("champion", "latest:rl", "rl:crafter-tiny:job_0123456789ab", "crafter-random"))
    assert found.models == {"crafter-random": "crafter-random"}
    assert set(found.missing) == {"champion", "latest:rl", "rl:crafter-tiny:job_0123456789ab"}
    with pytest.raises(DataError, match="none of champion, latest:sft. Train a model with submit-sft"):
        find_models(registry, ("champion", "latest:sft"))


# --------------------------------------------------------------------------- what is kept


def test_the_first_night_is_the_baseline_of_the_next(nights):
    first = nights.keep("night-1", played(3), CONFIG)
    assert first.comparison is None and not first.regressed and "the baseline from now on" in first.says
    second = nights.keep("night-2", played(1), CONFIG)
    assert second.comparison is not None and second.comparison.delta == -2 and second.regressed
    assert second.baseline_mean == first.evaluation.mean_achievements
    assert "−2.00 [−2.00, −2.00] against its baseline on 8 seeds: worse." in second.says
    third = nights.keep("night-3", played(4), CONFIG)
    assert third.comparison.delta == 1 and not third.regressed
    assert nights.history() == [first, second, third]
    line = json.loads((nights.folder / "history.jsonl").read_text().splitlines()[1])
    assert line["model"] == "rl:crafter-tiny:job_1" and line["evaluation"]["counts"] == [1] * 8


def test_a_night_is_kept_once(nights):
    nights.keep("night-1", played(3), CONFIG)
    kept = nights.keep("night-2", played(3), CONFIG)
    assert nights.keep("night-2", played(0), CONFIG) == kept, "a retry finds what it stored"
    assert len(nights.history()) == 2


def test_a_night_that_died_after_it_became_the_baseline_is_the_baseline(nights):
    nights.keep("night-1", played(3), CONFIG)
    (nights.folder / "history.jsonl").unlink()
    assert nights.keep("night-1", played(3), CONFIG).comparison is None


def test_rebaseline_replaces_the_baseline_and_keeps_the_history(nights):
    nights.keep("night-1", played(5), CONFIG)
    anew = nights.keep("night-2", played(2), CONFIG.model_copy(update={"rebaseline": True}))
    assert anew.comparison is None
    assert nights.keep("night-3", played(2), CONFIG).comparison.delta == 0
    assert len(nights.history()) == 3


def test_too_few_pairs_show_nothing(nights):
    nights.keep("night-1", played(5), CONFIG)
    night = nights.keep("night-2", played(0, missing=3), CONFIG)
    assert night.comparison.ci95[1] < 0 and not night.regressed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_env_steps": 200}, "max_env_steps 100; the config asks for max_env_steps 200"),
        ({"seeds": SeedRange(start=1_000_000, count=9)}, "seeds.count 8; the config asks for seeds.count 9:"),
        ({"environment": "math"}, "environment crafter; the config asks for environment math"),
        (
            {"policy": CONFIG.policy.model_copy(update={"temperature": 0.5})},
            "policy.temperature 1.0; the config .* 0.5:",
        ),
    ],
)
def test_a_baseline_of_other_conditions_is_not_compared(nights, change, says):
    nights.keep("night-1", played(5), CONFIG)
    other = CONFIG.model_copy(update=change)
    with pytest.raises(ConfigError, match=f"{says}.*rebaseline = true"):
        nights.require_comparable(other)
    nights.require_comparable(other.model_copy(update={"rebaseline": True}))
    nights.require_comparable(CONFIG.model_copy(update={"concurrency": 1, "models": ("latest:rl",)}))


def test_a_baseline_older_than_a_field_of_the_config_stays_comparable(nights):
    nights.keep("night-1", played(5), CONFIG)
    path = nights.folder / "baseline.json"
    stored = json.loads(path.read_text())
    del stored["conditions"]["policy"]["event_line"]
    path.write_text(json.dumps(stored))
    nights.require_comparable(CONFIG)
    with pytest.raises(ConfigError, match="rebaseline"):
        nights.require_comparable(
            CONFIG.model_copy(update={"policy": CONFIG.policy.model_copy(update={"event_line": True})})
        )


def test_damaged_files_are_named(nights):
    nights.keep("night-1", played(5), CONFIG)
    with (nights.folder / "history.jsonl").open("a") as history:
        history.write('{"id": "night-2"}\n')
    with pytest.raises(DataError, match="history.jsonl, line 2"):
        nights.keep("night-3", played(5), CONFIG)
    (nights.folder / "baseline.json").write_text("{")
    with pytest.raises(DataError, match="baseline.json is not a baseline.*rebaseline = true"):
        nights.require_comparable(CONFIG)


def test_two_nights_at_once_are_refused(nights):
    with nights.locked(), pytest.raises(ConfigError, match="is in use by process"), nights.locked():
        pass
    with nights.locked():
        pass


# --------------------------------------------------------------------------- the config


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"models": ()}, "at least 1 item"),
        ({"models": ("latest:rl", "latest-rl")}, "one and the same folder"),
        ({"seeds": {"start": 1_000_000, "count": 5}}, "from 6 seeds on"),
        ({"baseline_seeds": {"start": 1_000_000, "count": 2}}, "baseline_seeds has no meaning here"),
    ],
)
def test_a_config_that_could_show_nothing_is_refused(wrong, says):
    with pytest.raises(ValidationError, match=says):
        NightlyConfig.model_validate(wrong)


def test_what_is_judged_does_not_depend_on_who_else_is(nights: Nights):
    one, other = CONFIG, CONFIG.model_copy(update={"models": ("crafter-random",), "rebaseline": True})
    assert one.evaluation() == other.evaluation()


def test_a_report_says_who_is_worse(nights: Nights):
    nights.keep("night-1", played(5), CONFIG)
    worse = nights.keep("night-2", played(2), CONFIG)
    fine = replace(worse, evaluation=played(5, "latest:rl"), comparison=None)
    report = NightlyReport((worse, fine), {"latest:sft": "none"}, {"x": "gone"})
    assert report.regressed == ("champion",)
    assert report.says.startswith("2 models judged; champion (rl:crafter-tiny:job_1) unlocks 2.00")
    assert report.says.endswith("worse; x could not be judged; latest:sft passed over")


def test_a_suite_stands_for_what_it_says_and_keys_beside_it_win():
    named = NightlyConfig.model_validate({"suite": "crafter-200", "seeds": {"start": 1_000_000, "count": 8}})
    plain = NightlyConfig.model_validate({"max_env_steps": 200, "seeds": {"start": 1_000_000, "count": 8}})
    assert named.conditions() == plain.conditions(), "a baseline without the name is comparable"
    assert NightlyConfig.model_validate(named.model_dump(mode="json")) == named
    fewer = NightlyConfig.model_validate({"suite": "crafter-200", "seeds": {"count": 50}})
    assert (fewer.seeds.start, fewer.seeds.count) == (1_000_000, 50), "of the suite's worlds"
    math = NightlyConfig.model_validate({"suite": "math-hard", "policy": {"temperature": 0.5}})
    assert (math.environment, math.env_config["level"], math.seeds.count) == ("math", "hard", 200)
    assert (math.policy.history, math.policy.temperature) == (0, 0.5)
    with pytest.raises(ValidationError, match="did you mean 'crafter-200'"):
        NightlyConfig.model_validate({"suite": "crafter-2000"})
    with pytest.raises(ValidationError, match="mixes splits"):
        NightlyConfig.model_validate({"seeds": {"start": 899_990, "count": 20}})
