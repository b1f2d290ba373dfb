"""How a flow ends, in words."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from crafter_pipeline.config import EvaluateConfig
from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.environments import find_environment
from crafter_pipeline.evaluation import Evaluation, evaluate
from tasks.states import journey, told


@pytest.mark.parametrize(
    "failed, says, name, message",
    [
        (None, None, "Completed", None),
        ({}, "6 of 6 seeds", "Completed", "6 of 6 seeds"),
        ({81: "x", 3: "x"}, "98 of 100 seeds", "PartialSuccess", "98 of 100 seeds, failed [3, 81]"),
        (dict.fromkeys(range(12), "x"), None, "PartialSuccess", f"failed {list(range(10))} and 2 more"),
    ],
)
def test_a_state_tells_what_was_done_and_what_was_not(failed, says, name, message):
    state = told("result", failed, says)
    assert (state.name, state.message, state.data) == (name, message, "result")


@pytest.fixture
def make_evaluation() -> Callable[[str, int], Evaluation]:
    def make(label: str, unlocks: int) -> Evaluation:
        names = find_environment("crafter").achievements
        result = EpisodeResult("r", 1, tuple(names[:unlocks]), 1.0, 10, 10, "env_limit")
        return evaluate(label, label, [result], 100, names, EvaluateConfig().bootstrap)

    return make


def test_a_run_in_one_line(make_evaluation):
    played = (("random", 1), ("teacher", 9), ("mlp", 4), ("sft", 5), ("rl", 6))
    players = [make_evaluation(label, n) for label, n in played]
    line = "succeeded in 14 min: random 1.00 → sft 5.00 → rl 6.00 achievements"
    assert journey(players, 840.0) == f"{line} (teacher 9.00, mlp 4.00)"
    assert journey(players[-2:], 840.0) == "succeeded in 14 min: sft 5.00 → rl 6.00 achievements"
