"""A setup comes back from its record, and an outcome follows the goal."""

from __future__ import annotations

import pytest

from crafter_pipeline.contracts import StopReason
from crafter_pipeline.errors import FieldError
from crafter_pipeline.game import DIFFICULTIES, StepResult, WorldConfig
from crafter_pipeline.game.setup import CrafterSetup, outcome


@pytest.mark.parametrize(
    "setup",
    [
        CrafterSetup(),
        CrafterSetup(DIFFICULTIES["hard"]),
        CrafterSetup(WorldConfig(cow_initial_rate=2.5, day_length=100)),
        CrafterSetup(start="beside-table"),
        CrafterSetup(task="collect_diamond"),
    ],
)
def test_a_setup_comes_back_from_its_record(setup):
    assert CrafterSetup.of_record(setup.record()) == setup


@pytest.mark.parametrize(
    "record", [{"difficulty": "brutal"}, {"start": "x"}, {"task": "x"}, {"world": {"cows": 1}}, {"world": 1}]
)
def test_a_record_of_another_game_is_refused(record):
    with pytest.raises(FieldError):
        CrafterSetup.of_record(record)


def step(**facts):
    nothing = {"reward": 0.0, "unlocked": (), "reached": (), "done": False, "died": False}
    return StepResult(**nothing | facts)


def test_only_the_goal_is_rewarded_where_there_is_one():
    game = CrafterSetup().begin(1, 10)
    result = step(unlocked=("eat_cow", "wake_up"))
    assert outcome(game, None, result) == (2.0, None)
    assert outcome(game, "eat_cow", result) == (1.0, StopReason.SOLVED)
    assert outcome(game, "collect_wood", result) == (0.0, None)


def test_death_comes_before_a_limit():
    game = CrafterSetup().begin(1, 10)
    assert outcome(game, None, step(died=True, done=True)) == (0.0, StopReason.DEATH)
    assert outcome(game, None, step(done=True)) == (0.0, StopReason.ENV_LIMIT)
