"""Judges of one's own."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest

from crafter_pipeline.errors import ConfigError, JudgeError
from crafter_pipeline.judging.plugin import PluginJudge
from crafter_pipeline.judging.review import judge_rollout
from crafter_pipeline.judging.rubric import Rubrics


@pytest.fixture
def plugin(monkeypatch):
    """`plugin(function)`: the target that names it."""

    def make(function, name="judge"):
        module = ModuleType("my_judge")
        setattr(module, name, function)
        monkeypatch.setitem(sys.modules, "my_judge", module)
        return f"my_judge:{name}"

    return make


async def test_it_is_given_the_wires_payload_and_returns_a_number(plugin, make_rollout):
    seen = {}

    def score(payload, *, scale):
        seen.update(payload)
        return scale * payload["metrics"]["mean_return"]

    judge = PluginJudge(plugin(score), name="mine", kwargs={"scale": 3})
    review = await judge_rollout(make_rollout(seed=7), Rubrics(), judge)
    assert (review.judge, review.outcome.total, review.events) == ("mine", 3.0, ())
    assert seen.keys() == {"seed", "prompt_index", "prompt", "completion", "metrics", "response", "trace"}
    assert (seen["seed"], seen["completion"], seen["prompt"]) == (7, "do", "tree east, step 1")
    assert len(seen["trace"]["event_history"]) == 4
    assert review.to_wire()["outcome_review"]["criteria"]["mine"]["score"] == 3.0


async def test_an_async_judge_is_awaited(plugin, make_rollout):
    async def score(payload):
        return 0.25

    assert (await PluginJudge(plugin(score)).review(make_rollout(), Rubrics())).outcome.total == 0.25


async def test_a_file_will_do(tmp_path, make_rollout):
    (tmp_path / "mine.py").write_text("def judge(payload):\n    return payload['seed'] / 2\n")
    judge = PluginJudge(str(tmp_path / "mine.py"))
    assert (await judge.review(make_rollout(seed=3), Rubrics())).outcome.total == 1.5


@pytest.mark.parametrize("value", [None, "good", math.nan, math.inf, {}])
async def test_what_is_no_number_is_named(plugin, make_rollout, value):
    with pytest.raises(JudgeError, match="my_judge:judge returned .* must return a number"):
        await PluginJudge(plugin(lambda payload: value)).review(make_rollout(), Rubrics())


async def test_a_judge_that_raises_is_named_with_its_reason(plugin, make_rollout):
    def broken(payload):
        raise KeyError("level")

    with pytest.raises(JudgeError, match="my_judge:judge failed on run-0: KeyError: 'level'"):
        await PluginJudge(plugin(broken)).review(make_rollout(), Rubrics())


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("no_such_module:judge", "No module named 'no_such_module'"),
        ("math:nothing", "math has no function 'nothing'"),
        ("math:pi", "no function 'pi'"),
        ("missing.py", "missing.py"),
    ],
)
def test_a_judge_that_is_not_there_is_said(target, says):
    with pytest.raises(ConfigError, match=says):
        PluginJudge(target)
