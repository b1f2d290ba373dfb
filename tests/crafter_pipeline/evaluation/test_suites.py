"""The suites: worlds, limits, and how models are asked."""

from __future__ import annotations

import pytest

from crafter_pipeline.config import DEV_SEEDS_START, GATE_SEEDS_START, EvaluateConfig, PolicyConfig, split_of
from crafter_pipeline.environments import ENVIRONMENTS, find_environment
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.evaluation.suites import SUITES, find_suite
from task_app.policies import Policy


def test_the_published_names_are_there():
    assert list(SUITES) == [
        *("crafter-50", "crafter-100", "crafter-200", "crafter-500", "crafter-full", "crafter-balrog"),
        *("math-easy", "math-medium", "math-hard"),
    ]
    assert [s.max_env_steps for s in SUITES.values()] == [50, 100, 200, 500, 10_000, 2_000, 1, 1, 1]
    assert [s.seeds.count for s in SUITES.values()] == [200, 200, 200, 200, 100, 10, 200, 200, 200]


@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_a_suite_judges_on_held_out_worlds_and_can_be_configured(suite):
    assert {split_of(seed) for seed in suite.seeds.seeds} == {"held_out"}
    assert find_environment(suite.environment) in ENVIRONMENTS.values()
    EvaluateConfig(
        environment=suite.environment,
        max_env_steps=suite.max_env_steps,
        env_config=dict(suite.env_config),
        seeds=suite.seeds,
    )
    for asked in (dict(suite.policy or {}), suite.asks("crafter-expert")):
        Policy.model_validate({"model": "m", "inference_url": "http://m/v1", **asked})


def test_worlds_of_other_splits_begin_where_these_begin():
    suite = find_suite("crafter-200")
    assert suite.worlds("dev", 5).seeds == range(DEV_SEEDS_START, DEV_SEEDS_START + 5)
    assert suite.worlds("train").seeds == range(200)
    with pytest.raises(ConfigError, match=f"from 1 to {GATE_SEEDS_START - DEV_SEEDS_START}"):
        suite.worlds("dev", 60_000)
    with pytest.raises(ConfigError, match="did you mean 'crafter-50'"):
        find_suite("crafter-5")


def test_models_with_a_form_of_their_own_keep_it():
    balrog, math = find_suite("crafter-balrog"), find_suite("math-hard")
    usual = PolicyConfig().model_dump(mode="json", exclude_none=True)
    assert balrog.asks("crafter-expert") == balrog.asks("fft:crafter-tiny:job_1") == usual
    asked = balrog.asks("gpt-4o")
    assert (asked["observation"], asked["history"], asked["use_tools"]) == ("balrog", 16, False)
    assert find_suite("crafter-200").asks("gpt-4o") == {}, "as the task app asks"
    assert math.asks("math-expert") == {**usual, "history": 0, "max_tokens": 96}
