"""A replay says where a trace differs from the game, and does not blame what another engine played."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.mathematics import Generator
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.replay import replay


@pytest.mark.parametrize("style", ["sparse", "compact", "rich", "synth"])
@pytest.mark.parametrize(
    "setup", [{}, {"difficulty": "hard"}, {"world": {"cow_initial_rate": 3.0}}, {"task": "collect_iron"}]
)
def test_what_was_played_comes_out_the_same(play, style, setup):
    result = replay(play(style=style, **setup))
    assert (result.verdict, result.turns, result.difference) == ("same", 10, None)


def changed(rollout, turn, **changes):
    turns = list(rollout.turns)
    turns[turn] = replace(turns[turn], **changes)
    return replace(rollout, turns=tuple(turns))


@pytest.mark.parametrize(
    ("turn", "changes", "what"),
    [
        (0, {"actions": ("move_left", "move_left")}, "next_observation"),
        (4, {"observation": "t8/40 hp9 food1"}, "observation"),
        (5, {"unlocked": ("eat_cow",)}, "unlocked"),
        (6, {"reward": 3.0}, "reward"),
    ],
)
def test_the_first_difference_is_named(play, turn, changes, what):
    result = replay(changed(play(), turn, **changes))
    assert result.verdict == "different" and result.turns == turn
    assert (result.difference.turn, result.difference.what) == (turn, what)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"stop_reason": StopReason.DEATH}, "end"),
        ({"env_steps": 3}, "env_steps"),
        ({"total_reward": 20.0}, "return"),
        ({"seed": 4}, "observation"),
    ],
)
def test_the_rollout_s_own_facts_are_compared(play, changes, what):
    assert replay(replace(play(), **changes)).difference.what == what


def test_shaped_rewards_are_computed_again(play):
    rollout = play()
    shaping = {"enabled": True, "mode": "decision_stepwise", "indicator_lambda": 2.0}
    metadata = {"policy_config": {"step_rewards": shaping}}
    turns = tuple(replace(t, reward=2.0 * bool(t.unlocked)) for t in rollout.turns)
    shaped = replace(rollout, metadata=metadata, turns=turns, total_reward=sum(t.reward for t in turns))
    assert replay(shaped).verdict == "same"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"turns": ()}, "no turns"),
        ({"environment": "chess"}, "no environment 'chess'"),
        ({"seed": -1}, "no seed of a world"),
        ({"metadata": {"policy_config": {}, "setup": {"difficulty": "brutal"}}}, "there is no difficulty"),
    ],
)
def test_what_cannot_be_played_again_says_why(play, changes, says):
    result = replay(replace(play(), **changes))
    assert result.verdict == "not_replayable" and says in result.reason


def test_an_episode_that_went_on_in_a_live_environment_is_not_replayable(play):
    rollout = play()
    result = replay(replace(rollout, turns=rollout.turns[3:]))
    assert result.verdict == "not_replayable" and "live environment at env step 6" in result.reason


def test_the_original_s_rollouts_are_compared_as_far_as_terrain_goes(sample_db):
    results = [replay(rollout) for rollout in read_rollouts(sample_db)]
    assert [(r.verdict, r.turns) for r in results] == [("partly", 4), ("partly", 11), ("partly", 10)]
    assert all("another engine" in r.reason and r.difference is None for r in results)


def test_the_original_s_rollout_of_another_world_is_not_replayable(sample_db):
    rollout = next(iter(read_rollouts(sample_db)))
    elsewhere = rollout.turns[0].observation.replace("grass player", "water player")
    assert "not the world that seed 0 makes" in replay(changed(rollout, 0, observation=elsewhere)).reason


def solved(answer, reward, unlocked, stop, **changes):
    """One turn at seed 7's easy problem."""
    problem = Generator("easy").problem("train", 7)
    answer = problem.answer if answer is None else answer
    turn = Turn(0, (), Reply(answer), (answer,), None, reward, unlocked, 1.0, 2.0, observation=problem.text)
    return Rollout(
        run_id="m",
        environment="math",
        seed=7,
        policy="math-react",
        model="m",
        provider="custom",
        turns=(replace(turn, **changes),),
        achievements=unlocked,
        total_reward=reward,
        env_steps=1,
        stop_reason=stop,
        created_at=1.0,
        metadata={"policy_config": {}},
    )


def test_math_answers_are_judged_again():
    assert replay(solved(None, 1.0, ("solve_problem",), StopReason.SOLVED)).verdict == "same"
    assert replay(solved("123456", 0.0, (), StopReason.FAILED)).verdict == "same"
    wrong = replay(solved("123456", 1.0, ("solve_problem",), StopReason.SOLVED))
    assert (wrong.verdict, wrong.difference.what, wrong.difference.replayed) == ("different", "judgement", "incorrect")


def test_a_math_answer_that_could_not_be_read_keeps_its_kind():
    unread = {"actions": ("",), "parse_failure": "no call", "info": {"parse_failure_kind": "no_call"}}
    assert replay(solved("", -1.0, (), StopReason.FAILED, **unread)).verdict == "same"
    assert replay(solved("", -0.5, (), StopReason.FAILED, **unread)).difference.what == "reward"
