"""Criteria scored by programs, over episodes that were really played."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crafter_pipeline.contracts import StopReason
from crafter_pipeline.errors import DataError, FieldError
from crafter_pipeline.game import ACHIEVEMENTS
from crafter_pipeline.judging import criteria
from crafter_pipeline.judging.facts import RolloutFacts
from crafter_pipeline.judging.programmatic import ProgrammaticJudge
from crafter_pipeline.judging.review import blend_rewards, judge_rollout
from crafter_pipeline.judging.rubric import read_rubrics


def every_criterion():
    return read_rubrics(
        {
            "outcome": [{"id": name} for name in criteria.OUTCOME],
            "events": [{"id": name} for name in criteria.EVENTS],
        }
    )


def outcome(name, rollout):
    return criteria.OUTCOME[name](RolloutFacts(rollout)).value


def events(name, rollout):
    return [criteria.EVENTS[name](turn).value for turn in RolloutFacts(rollout)]


def test_the_tech_tree_names_every_achievement_once():
    assert set(criteria.NEEDS) == set(ACHIEVEMENTS)
    assert criteria.depth("collect_wood") == 1 and criteria.depth("collect_diamond") == 8
    assert {a for names in criteria.SERVES.values() for a in names} <= set(ACHIEVEMENTS)


@pytest.mark.parametrize("style", ["sparse", "compact", "rich"])
async def test_every_score_lies_between_0_and_1_and_depends_on_the_episode_alone(play, style):
    rollout = play(80, style=style)
    review = await judge_rollout(rollout, every_criterion(), ProgrammaticJudge())
    cards = [review.outcome, *review.events]
    assert len(review.events) == len(rollout.turns)
    assert all(0.0 <= score.value <= 1.0 for card in cards for score in card.scores.values())
    assert review == await judge_rollout(rollout, every_criterion(), ProgrammaticJudge())


@pytest.mark.parametrize("name", ["achievement_progression", "resource_stockpile", "future_readiness"])
def test_an_expert_scores_more_than_a_sleeper(play, name):
    assert outcome(name, play(150)) > outcome(name, play(actions=[("noop",)] * 5))


def test_who_died_has_not_survived(play):
    rollout = play(5)
    assert outcome("survival_state", rollout) == 1.0
    assert outcome("survival_state", replace(rollout, stop_reason=StopReason.DEATH)) == 0.0


def test_a_turn_is_paid_for_what_it_unlocked(play):
    rollout = play(60)
    unlocked = [float(bool(turn.unlocked)) for turn in rollout.turns]
    assert sum(unlocked) > 0 and events("achievement_unlocks", rollout) == unlocked


def test_wood_sets_up_the_table(play):
    rollout = play(60)
    gained = [turn.gained.get("wood", 0) for turn in RolloutFacts(rollout)]
    first = next(i for i, n in enumerate(gained) if n)
    assert events("milestone_setup", rollout)[first] == 1.0
    assert events("inventory_depth", rollout)[first] == 1.0


def test_actions_without_effect_are_poorly_executed(play):
    rollout = play(actions=[("noop",), ("make_iron_sword",), ("move_left",), ("move_right",)])
    assert events("execution_quality", rollout) == [0.0, 0.0, 1.0, 1.0]
    assert outcome("failure_analysis", rollout) == 0.5


def test_unreadable_answers_and_unplayed_actions_count_against_a_turn(play):
    rollout = play(actions=[("move_left",), ("move_right", "noop")])
    failed = replace(rollout.turns[0], parse_failure="no action in it")
    cut = replace(rollout.turns[1], info={"not_executed": ["do"], "unknown_actions": ["fly"]})
    rollout = replace(rollout, turns=(failed, cut))
    stopped = replace(rollout.turns[1], info={"not_executed": ["do"], "stopped_on": "damage"})
    assert events("execution_quality", replace(rollout, turns=(failed, stopped))) == [0.0, 1.0]
    assert events("execution_quality", rollout) == [0.0, 0.5]
    assert outcome("failure_analysis", rollout) == 0.5
    assert events("answer_submitted", rollout) == [0.0, 1.0]


def test_a_turn_without_actions_is_no_quality(play):
    rollout = play(actions=[("move_left",)])
    idle = replace(rollout.turns[0], actions=())
    assert events("execution_quality", replace(rollout, turns=(idle,))) == [0.0]


def test_creatures_that_move_are_no_effect_of_ours(play):
    facts = next(iter(RolloutFacts(play(actions=[("noop",)]))))
    view = [list(row) for row in facts.before.view]
    view[0][0], view[0][1] = "cow", "grass"
    moved = [list(row) for row in view]
    moved[0][0], moved[0][1] = "grass", "zombie"
    views = (
        replace(facts.before, view=tuple(map(tuple, view))),
        replace(facts.before, view=tuple(map(tuple, moved))),
    )
    assert not replace(facts, _views=lambda: views).had_effect
    chopped = replace(facts.before, view=tuple(map(tuple, [["table", *view[0][1:]], *view[1:]])))
    assert replace(facts, _views=lambda: (chopped, facts.before)).had_effect


async def test_what_no_program_scores_is_refused_with_the_nearest_name(play):
    with pytest.raises(FieldError, match="did you mean 'survival_state'") as caught:
        await ProgrammaticJudge().review(play(1), read_rubrics({"outcome": [{"id": "survival"}]}))
    assert caught.value.field == "outcome.criteria.0.id"


async def test_a_trace_that_tells_too_little_says_so(make_rollout):
    with pytest.raises(DataError, match="do not tell enough"):
        await ProgrammaticJudge().review(make_rollout(), read_rubrics({"outcome": [{"id": "survival_state"}]}))


async def test_a_math_episode_needs_no_observation(make_rollout):
    rubrics = read_rubrics({"outcome": [{"id": "correctness"}], "events": [{"id": "answer_submitted"}]})
    review = await ProgrammaticJudge().review(make_rollout(stop_reason=StopReason.SOLVED), rubrics)
    assert (review.outcome.total, [card.total for card in review.events]) == (1.0, [1.0, 1.0])


async def test_the_blend_is_env_per_turn_event_per_turn_and_outcome_at_the_end(play, rubrics):
    rollout = play(3)
    review = await ProgrammaticJudge().review(rollout, rubrics)
    e, o = [card.total for card in review.events], review.outcome.total
    blended = blend_rewards([1.0, 0.0, 2.0], review, env=0.5, event=0.1, outcome=10.0)
    assert blended == pytest.approx((0.5 + 0.1 * e[0], 0.1 * e[1], 1.0 + 0.1 * e[2] + 10.0 * o))


async def test_a_review_has_the_wires_shape(play, rubrics):
    wire = (await ProgrammaticJudge().review(play(2), rubrics)).to_wire()
    assert wire["event_totals"] == [card["total"] for card in wire["event_reviews"]]
    progress = wire["outcome_review"]["criteria"]["achievement_progression"]
    assert progress.keys() == {"score", "reason", "weight", "description"}
    assert (progress["weight"], progress["description"]) == (3.0, "How far it came.")
