"""Shaping: strategies, weights, limits, and names that do not exist."""

from __future__ import annotations

import pytest

from crafter_pipeline.environments import MATH
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
    "config",
    [
        None,
        {},
        {"enabled": False, "mode": "decision_stepwise"},
        {"enabled": "false", "mode": "decision_stepwise"},
        {"enabled": True, "mode": "off"},
        {"enabled": True, "mode": "env_sparse"},
    ],
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
        ({"weights": {"wake_up": float("nan")}}, "weights.wake_up", "finite"),
        ({"weights": ["wake_up"]}, "weights", "dictionary"),
        ({"mode": "decision_stepwize"}, "mode", "decision_stepwise"),
        ({"indicator_lamda": 2}, "indicator_lamda", "indicator_lambda"),
    ],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_wrong_names_are_refused_with_the_nearest_one_even_when_switched_off(config, field, hint, enabled):
    with pytest.raises(FieldError) as caught:
        read_step_rewards(ON | {"enabled": enabled} | config, ACHIEVEMENTS)
    assert caught.value.field == field and hint in caught.value.message


@pytest.mark.parametrize("config", ["decision_stepwise", True, [], 1.5])
def test_what_is_no_table_is_refused(config):
    with pytest.raises(FieldError) as caught:
        read_step_rewards(config, ACHIEVEMENTS)
    assert caught.value.below("policy.config.step_rewards").field == "policy.config.step_rewards"


def test_the_trainers_spelling_of_beta_is_read():
    config = read_step_rewards(ON | {"beta": 0.25}, ACHIEVEMENTS)
    assert Shaper(config).summary()["step_beta"] == 0.25


def test_healing_is_paid_as_the_wire_says():
    reward, _ = shaped({"strategy": "per_achievement"}, after=Counters({"health": 2}, {}))
    assert reward == pytest.approx(2 * 0.05)


def test_a_sample_names_the_environments_own_tool():
    shaper = Shaper(read_step_rewards(ON, MATH.achievements), MATH)
    shaper.reward(0, ("42",), ("solve_problem",), 1.0, NOTHING, NOTHING)
    assert shaper.samples[0]["actions"] == [{"tool": "math_submit", "args": {"answer": "42"}}]


EXAMPLE = (
    (("move_left",), (), {}, {}),
    (("do",), ("collect_wood",), {"wood": 1}, {"collect_wood": 1}),
    (("do",) * 4, (), {"wood": 4}, {"collect_wood": 4}),
    (
        ("place_table", "make_wood_pickaxe"),
        ("place_table", "make_wood_pickaxe"),
        {"wood_pickaxe": 1},
        {"place_table": 1, "make_wood_pickaxe": 1},
    ),
    (("do",), ("collect_drink",), {"drink": 1}, {"collect_drink": 1}),
)
"""The five turns of docs/rewards.md: actions, unlocked, gained, counted."""


@pytest.mark.parametrize(
    ("config", "rewards"),
    [
        ({"strategy": "consistent"}, [0, 1, 0, 1, 1]),
        ({"strategy": "consistent", "indicator_lambda": 0.5}, [0, 0.5, 0, 0.5, 0.5]),
        ({"strategy": "per_achievement"}, [0, 1.18, 0.72, 2.5, 1.13]),
        (
            {"strategy": "per_achievement", "indicator_lambda": 0.5, "weights": {"make_wood_pickaxe": 2}},
            [0, 0.59, 0.36, 1.75, 0.565],
        ),
    ],
)
def test_the_worked_example_of_the_docs(config, rewards):
    shaper = Shaper(read_step_rewards(ON | config, ACHIEVEMENTS))
    paid = [
        shaper.reward(i, actions, unlocked, float(len(unlocked)), NOTHING, Counters(gained, counted))[0]
        for i, (actions, unlocked, gained, counted) in enumerate(EXAMPLE)
    ]
    assert paid == pytest.approx(rewards)
    assert shaper.summary()["reward_sum"] == pytest.approx(sum(rewards))
