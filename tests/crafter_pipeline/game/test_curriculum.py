"""The curriculum: every start state loads, every task is solved as the file says."""

import base64
import json
from importlib.resources import files

import pytest

from crafter_pipeline.errors import FieldError
from crafter_pipeline.expert import Expert, parse
from crafter_pipeline.game import ACHIEVEMENTS, DIFFICULTIES, Game, render_text
from crafter_pipeline.game.curriculum import find_start, find_task, start_states, tasks
from crafter_pipeline.game.make_curriculum import STARTS, solve

DESCRIBED = {start.name: start.fits for start in STARTS}


@pytest.mark.parametrize("name", start_states())
def test_a_start_state_is_what_it_says(name):
    start = start_states()[name]
    assert len(base64.b64encode(start.snapshot)) <= 7_000
    game = Game.restore(start.snapshot)
    assert DESCRIBED[name](game)
    assert game.world.changes() == {}
    episode = start.begin(seed=3, max_steps=50)
    assert episode.max_steps - episode.steps == 50
    assert episode.observe().view == game.observe().view


@pytest.mark.parametrize("name", tasks())
def test_the_expert_solves_a_task_in_the_steps_that_are_recorded(name):
    """Made again by `python -m crafter_pipeline.game.make_curriculum` where the expert plays otherwise."""
    task = tasks()[name]
    game = task.begin(task.seed)
    assert name not in game.unlocked
    assert solve(game, name) == task.solution_steps <= task.max_steps


def test_there_is_a_task_for_every_achievement():
    assert set(tasks()) == set(ACHIEVEMENTS)


def test_no_start_state_is_without_a_task():
    assert {task.start for task in tasks().values()} - {None} == set(start_states())


def test_chance_follows_the_seed_of_a_start_state():
    views = set()
    for seed in (1, 2, 1):
        game = find_start("zombie-in-sight").begin(seed, 50)
        for _ in range(6):
            game.step("noop")
        views.add(game.snapshot())
    assert len(views) == 2


def test_a_task_has_a_limit_of_its_own():
    task = find_task("place_plant")
    game = task.begin(0, max_steps=1_000)
    assert game.max_steps - game.steps == task.max_steps
    game = task.begin(0, max_steps=5)
    assert game.max_steps - game.steps == 5


def test_a_task_without_a_start_state_is_played_in_any_world():
    assert find_task("collect_wood").start is None
    game = find_task("collect_wood").begin(77, world=DIFFICULTIES["peaceful"])
    assert (game.seed, game.world, game.steps) == (77, DIFFICULTIES["peaceful"], 0)


def test_an_expert_can_begin_in_the_middle():
    """What a teacher does in a start state: it reads the text and knows nothing of the way there."""
    game, expert = find_start("holding-stone-pickaxe").begin(5, 100), Expert()
    while not game.done:
        game.step(expert.act(parse(render_text(game.observe(), "compact"))).action)
    assert game.steps == game.max_steps or game.inventory["health"] == 0


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(FieldError, match="start: .*did you mean 'night-energy-3'"):
        find_start("night-energy")
    with pytest.raises(FieldError, match="task: .*did you mean 'collect_iron'"):
        find_task("collect_irn")


def test_the_file_holds_nothing_else():
    data = json.loads(files("crafter_pipeline.game").joinpath("curriculum.json").read_text())
    assert set(data) == {"starts", "tasks"}
    assert set(data["starts"]) == set(start_states()) and set(data["tasks"]) == set(tasks())
