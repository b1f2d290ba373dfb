"""Rewards computed again from stored facts, and the check that the stored ones were right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crafter_pipeline.errors import FieldError
from crafter_pipeline.game import ACHIEVEMENTS
from crafter_pipeline.rewards import Counters, Shaper, read_step_rewards
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.rescore import Totals, rescore

ON = {"enabled": True, "mode": "decision_stepwise"}
PER_ACHIEVEMENT = ON | {"strategy": "per_achievement", "weights": {"collect_wood": 0.5}}
NOTHING = Counters({}, {})

FACTS = (
    ((), {}),
    (("collect_wood",), {"inventory": {"wood": 1, "food": -1}, "achievements": {"collect_wood": 1}}),
    ((), {"inventory": {"wood": 2, "health": 1}, "achievements": {"collect_wood": 2}}),
    (("place_table", "wake_up"), {"inventory": {"wood": -2}, "achievements": {"place_table": 1, "wake_up": 1}}),
)
"""What the turns of an episode unlocked and gained."""


@pytest.fixture
def play(make_rollout, make_turn):
    """`play(step_rewards)`: the episode of FACTS as it would have been stored under that shaping."""

    def make(shaping=None, *, where="policy_config", gains=True, penalty=0.0, failed=(), **changes):
        parsed = read_step_rewards(shaping, ACHIEVEMENTS)
        shaper = Shaper(parsed) if parsed else None
        turns = []
        for index, (unlocked, gained) in enumerate(FACTS):
            reward, info = float(len(unlocked)), {}
            if shaper is not None:
                after = Counters(gained.get("inventory", {}), gained.get("achievements", {}))
                reward, info["stepwise"] = shaper.reward(index, ("do",), unlocked, reward, NOTHING, after)
            if gains and gained:
                info["gains"] = gained
            failure = "no action in it" if index in failed else None
            if failure is not None:
                reward -= penalty
                info["parse_failure_penalty"] = penalty
            turns.append(make_turn(index, unlocked=unlocked, reward=reward, info=info, parse_failure=failure))
        metadata = {"policy_config": {}, "env_config": {}}
        if shaping is not None:
            metadata[where] = metadata[where] | {"step_rewards": shaping}
        names = tuple(name for unlocked, _ in FACTS for name in unlocked)
        total = sum(turn.reward for turn in turns)
        return make_rollout(turns=tuple(turns), achievements=names, total_reward=total, metadata=metadata, **changes)

    return make


STORED = [None, {"enabled": False}, ON, ON | {"indicator_lambda": 2.0}, PER_ACHIEVEMENT]


@pytest.mark.parametrize("where", ["policy_config", "env_config"])
@pytest.mark.parametrize("stored", STORED)
def test_what_the_stored_shaping_gives_is_what_is_stored(play, stored, where):
    result = rescore(play(stored, where=where))
    assert result.reproduced is True and result.problem == ""
    assert result.difference == pytest.approx(0.0)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(
    ("asked", "rewards"),
    [
        ({"enabled": False}, [0.0, 1.0, 0.0, 2.0]),
        (ON | {"indicator_lambda": 2.0}, [0.0, 2.0, 0.0, 2.0]),
        (PER_ACHIEVEMENT, [0.0, 0.5 + 0.10 + 0.08, 2 * 0.10 + 0.05 + 2 * 0.08, 2.0 + 0.05 + 0.05]),
    ],
)
def test_another_shaping_gives_what_it_would_have_given(play, stored, asked, rewards):
    result = rescore(play(stored), asked)
    assert result.turn_rewards == pytest.approx(rewards)
    assert result.new == pytest.approx(sum(rewards))


def test_credits_are_limited_over_the_whole_episode(play, make_turn):
    rollout = play()
    again = make_turn(4, unlocked=("collect_wood",), info={"gains": {"achievements": {"collect_wood": 1}}})
    result = rescore(replace(rollout, turns=(*rollout.turns, again)), PER_ACHIEVEMENT)
    assert result.turn_rewards[-1] == pytest.approx(0.08)


def test_the_price_of_an_unreadable_answer_stays(play):
    result = rescore(play(ON, penalty=0.25, failed=(0, 2)), {"enabled": False})
    assert result.reproduced is True
    assert result.turn_rewards == (-0.25, 1.0, -0.25, 2.0)


@pytest.mark.parametrize("stored", [None, ON])
def test_an_old_trace_without_gains_says_so_where_they_are_needed(play, stored):
    rollout = play(stored, gains=False)
    assert rescore(rollout, {"enabled": False}).new == 3.0
    assert rescore(rollout, ON).new == 2.0
    lacking = rescore(rollout, PER_ACHIEVEMENT)
    assert lacking.new is None and "turn 1 has no gains" in lacking.problem


def test_an_old_trace_that_was_shaped_by_its_gains_has_them(play):
    rollout = play(PER_ACHIEVEMENT, gains=False)
    assert rescore(rollout).reproduced is True
    assert rescore(rollout, ON | {"strategy": "per_achievement"}).difference == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: replace(r, turns=(replace(r.turns[0], reward=0.5), *r.turns[1:])), "turn 0 is stored with 0.5"),
        (lambda r: replace(r, total_reward=9.0), "stored as 9"),
        (lambda r: replace(r, metadata={"policy_config": {"step_rewards": {"mode": "x"}}}), "no mode 'x'"),
    ],
)
def test_rewards_that_do_not_follow_from_their_shaping_are_found(play, change, says):
    result = rescore(change(play()))
    assert result.reproduced is False and says in result.problem


def test_of_a_single_task_only_the_goal_is_paid(play):
    rollout = play(None)
    only_table = tuple(replace(turn, reward=float("place_table" in turn.unlocked)) for turn in rollout.turns)
    metadata = rollout.metadata | {"setup": {"task": "place_table"}}
    result = rescore(replace(rollout, turns=only_table, total_reward=1.0, metadata=metadata))
    assert result.reproduced is True and result.turn_rewards == (0.0, 0.0, 0.0, 1.0)


def test_another_environments_reward_is_what_its_trace_says(make_rollout, make_turn):
    turn = make_turn(0, reward=-0.5)
    rollout = make_rollout(environment="math", turns=(turn,), total_reward=-0.5, metadata={"policy_config": {}})
    assert rescore(rollout, {"enabled": False}).new == -0.5
    assert rescore(rollout).reproduced is True


def test_a_wrong_table_is_refused_not_recorded(play):
    with pytest.raises(FieldError, match="collect_wood"):
        rescore(play(), ON | {"weights": {"colect_wood": 1}})


def test_the_originals_database_can_be_rescored_but_not_checked(sample_db):
    results = [rescore(rollout, ON) for rollout in read_rollouts(sample_db)]
    totals = Totals.of(results)
    assert totals.rescored == totals.rollouts == totals.unchecked > 0 and totals.mismatches == 0


def test_totals_leave_out_what_could_not_be_computed(play):
    results = [rescore(play(), PER_ACHIEVEMENT), rescore(play(gains=False), PER_ACHIEVEMENT)]
    totals = Totals.of(results)
    assert (totals.rollouts, totals.rescored, totals.stored) == (2, 1, 3.0)
