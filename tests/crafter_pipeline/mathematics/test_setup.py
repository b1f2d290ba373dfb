"""A setup comes back from its record; an answer is judged, and worth what the setup says."""

from __future__ import annotations

import pytest

from crafter_pipeline.mathematics import Generator
from crafter_pipeline.mathematics.setup import MathSetup, Rewards, judge, unreadable


@pytest.mark.parametrize(
    "setup",
    [MathSetup(), MathSetup("local", "hard", "test", 3, 2), MathSetup(rewards=Rewards(positive=2.0))],
)
def test_a_setup_comes_back_from_its_record(setup):
    assert MathSetup.of_record(setup.record()) == setup


def test_a_seed_asks_for_its_own_problem_unless_the_setup_says_which():
    assert MathSetup().place(7) == ("train", 7)
    assert MathSetup(split="test", index=3).place(7) == ("test", 3)


def test_answers_are_judged_and_rewarded():
    problem, rewards = Generator("easy").problem("train", 7), Rewards()
    statuses = [judge(answer, problem) for answer in (problem.answer, "123456789", "  ", problem.text)]
    assert statuses == ["correct", "incorrect", "blank_answer", "incorrect"]
    statuses += [unreadable(kind) for kind in ("unreadable", "wrong_tool", "no_call", None)]
    assert [rewards.of(s) for s in statuses] == [1.0, 0.0, -0.5, 0.0, -0.5, -1.0, -1.0, -1.0]
