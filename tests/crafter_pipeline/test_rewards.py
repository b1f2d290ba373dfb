"""Shaping: strategies, weights, limits, and names that do not exist."""

from __future__ import annotations

import pytest

from crafter_pipeline.errors import FieldError
from crafter_pipeline.game import ACHIEVEMENTS
from crafter_pipeline.rewards import STRATEGIES, Counters, Shaper, read_step_rewards

ON = {"enabled": True, "mode": "decision_stepwise"}
NOTHING = Counters({}, {})


def shaped(config, unlocked=(), after=NOTHING):
    step_rewards = read_step_rewards(ON | config, ACHIEVEMENTS)
    assert step_rewards is not None
    return Shaper(step_rewards).reward(0, ("do",), tuple(unlocked), float(len(unlocked)), NOTHING, after)


@pytest.mark.parametrize(
    "config", [None, {}, {"enabled": False, "mode": "decision_stepwise"}, {"enabled": True, "mode": "off"}]
)
def test_shaping_is_off_until_asked_for(config):
    assert read_step_rewards(config, ACHIEVEMENTS) is None


@pytest.mark.parametrize(("name", "meaning"), STRATEGIES.items())
def test_every_strategy_name_is_known(name, meaning):
    assert shaped({"strategy": name})[1]["strategy"] == meaning


@pytest.mark.parametrize(
    ("unlocked", "reward"), [((), 0.0), (("collect_wood",), 2.0), (("collect_wood", "wake_up"), 2.0)]
)
def test_consistent_pays_lambda_once_a_turn(unlocked, reward):
    assert shaped({"indicator_lambda": 2.0}, unlocked)[0] == reward


def test_a_lambda_of_zero_means_one():
    assert shaped({"indicator_lambda": 0}, ["wake_up"])[0] == 1.0


def test_per_achievement_pays_weights_and_resources():
    after = Counters({"wood": 2, "diamond": 1}, {"collect_wood": 2, "collect_diamond": 1})
    config = {"strategy": "per_achievement", "weights": {"collect_wood": 0.5}, "indicator_lambda": 2.0}
    reward, stepwise = shaped(config, ["collect_wood", "collect_diamond"], after)
    resources = 2 * 0.10 + 0.05 + 2 * 0.08 + 0.05
    assert reward == pytest.approx(2.0 * (0.5 + 1.0 + resources))
    assert stepwise["resource_reward"] == pytest.approx(resources)
    assert stepwise["credited_achievements"] == ["collect_wood", "collect_diamond"]


@pytest.mark.parametrize(("limit", "credited"), [(1, 1), (2, 2), (0, 3), (-1, 3)])
def test_credits_stop_at_the_limit(limit, credited):
    config = read_step_rewards(ON | {"strategy": "complex", "k_limits": {"wake_up": limit}}, ACHIEVEMENTS)
    shaper = Shaper(config)
    paid = [shaper.reward(i, ("do",), ("wake_up",), 1.0, NOTHING, NOTHING)[0] for i in range(3)]
    assert sum(paid) == credited


@pytest.mark.parametrize(
    ("config", "field", "hint"),
    [
        ({"strategy": "per_achivement"}, "strategy", "per_achievement"),
        ({"weights": {"craft_wood_pickaxe": 1}}, "weights.craft_wood_pickaxe", "make_wood_pickaxe"),
        ({"k_limits": {"colect_wood": 1}}, "k_limits.colect_wood", "collect_wood"),
        ({"weights": {"wake_up": "much"}}, "weights.wake_up", "number"),
    ],
)
def test_wrong_names_are_refused_with_the_nearest_one(config, field, hint):
    with pytest.raises(FieldError) as caught:
        shaped(config)
    assert caught.value.field == field and hint in caught.value.message
