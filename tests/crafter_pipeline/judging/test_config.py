"""`[rl.judge]`: what a config may say of a judge."""

from __future__ import annotations

import pytest

from crafter_pipeline.config import PipelineConfig, RlConfig, parse_config
from crafter_pipeline.errors import ConfigError

GOOD = {"reward_blend": {"event": 0.1}}


def test_nobody_judges_unless_asked():
    assert RlConfig().judge is None


def test_the_program_is_the_judge_unless_another_is_named():
    judge = parse_config(PipelineConfig, {"rl": {"judge": GOOD}}, "a.toml").rl.judge
    assert (judge.model, judge.reward_blend.env, judge.on_failure) == ("programmatic", 1.0, "leave_out")


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        ({}, "give event or outcome a weight"),
        ({"reward_blend": {"env": 2.0}}, "give event or outcome a weight"),
        ({**GOOD, "model": "judge-1"}, "where does the chat model 'judge-1' answer"),
        ({**GOOD, "inference_url": "judge.test"}, "rl.judge.inference_url"),
        ({**GOOD, "rubric": {"outcome": [{"id": "a", "weight": 0}]}}, "rubric.outcome.criteria.0.weight"),
        ({**GOOD, "modle": "x"}, "did you mean 'model'"),
        ({"reward_blend": {"events": 1}}, "did you mean 'event'"),
        ({**GOOD, "on_failure": "ignore"}, "rl.judge.on_failure"),
    ],
)
def test_a_judge_without_effect_or_address_is_refused_with_its_key(judge, says):
    with pytest.raises(ConfigError, match=says):
        parse_config(PipelineConfig, {"rl": {"judge": judge}}, "a.toml")
