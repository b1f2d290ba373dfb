"""The tables of worlds and tasks: who plays, and what is counted."""

from __future__ import annotations

from benchmarks.worlds import chance, expert, played, reached
from crafter_pipeline.game.curriculum import find_task


def test_the_expert_is_told_apart_from_chance_in_the_same_worlds():
    far, died = played("peaceful", expert, 2, 100).split(", ")
    chances, _ = played("peaceful", chance, 2, 100).split(", ")
    assert float(far) > float(chances) + 4
    assert died == "0 %"


def test_a_task_is_reached_by_its_solution_and_not_by_standing_still():
    task = find_task("collect_wood")
    assert reached(task.begin(task.seed), expert(task.seed), "collect_wood")
    assert not reached(task.begin(task.seed), lambda game: "noop", "collect_wood")
