"""Which tasks an RL job plays: in their order, or by what can be learnt from them."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from crafter_pipeline.config import CurriculumConfig, RlConfig
from train_app.curriculum import BySuccess, Task, make_tasks

EASY, HARD, MIXED = {}, {"start": "night-energy-3"}, {"start": "holding-stone"}


def curriculum(groups=8, seed=0, seeds_start=100, **changes):
    changes = {"seeds": 16, "success_return": 1.0, **changes}
    config = RlConfig(
        groups_per_iteration=groups, seeds_start=seeds_start, seed=seed, curriculum=CurriculumConfig(**changes)
    )
    source = make_tasks(config)
    assert isinstance(source, BySuccess)
    return source


def train(source, solves, iterations, group_size=8):
    """Play with a policy that solves task t with probability solves(t); every iteration's (tasks, returns)."""
    played = []
    for iteration in range(iterations):
        tasks = source.draw(iteration)
        chance = random.Random(iteration)
        returns = [[float(chance.random() < solves(task)) for _ in range(group_size)] for task in tasks]
        source.record(iteration, returns)
        played.append((tasks, returns))
    return played


def seeds(tasks):
    return [task.seed for task in tasks]


def test_without_a_curriculum_each_batch_takes_the_next_seeds():
    source = make_tasks(RlConfig(groups_per_iteration=3, seeds_start=50))
    assert source.draw(0) == [Task(50), Task(51), Task(52)]
    source.record(0, [[0.0], [1.0], []])
    assert seeds(source.draw(2)) == [56, 57, 58]
    assert source.state() == {}


def test_named_seeds_are_taken_in_turn_and_again_from_the_first():
    source = make_tasks(RlConfig(groups_per_iteration=2, seeds=(7, 9, 8)))
    assert [seeds(source.draw(i)) for i in range(3)] == [[7, 9], [8, 7], [9, 8]]


def test_a_batch_has_different_tasks_while_there_are_enough():
    tasks = curriculum(groups=16).draw(0)
    assert sorted(seeds(tasks)) == list(range(100, 116))
    more = Counter(seeds(curriculum(groups=40).draw(0)))
    assert set(more) == set(range(100, 116)) and max(more.values()) == 3


def test_tasks_are_pairs_of_seed_and_start_state():
    tasks = curriculum(groups=6, seeds=3, starts=(EASY, HARD)).draw(0)
    assert sorted((t.seed, t.start.get("start", "")) for t in tasks) == [
        (seed, start) for seed in (100, 101, 102) for start in ("", "night-energy-3")
    ]


def test_equal_configs_and_results_give_equal_tasks_and_other_seeds_others():
    def run(seed):
        return [tasks for tasks, _ in train(curriculum(seed=seed), lambda task: task.seed % 2, 5)]

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_it_concentrates_on_what_is_solved_now_and_then():
    """Of three kinds of tasks the one in between gets nearly all that is not exploration."""

    def solves(task):
        return {"": 1.0, "night-energy-3": 0.0, "holding-stone": 0.5}[task.start.get("start", "")]

    played = train(curriculum(starts=(EASY, HARD, MIXED), explore=0.0), solves, 30)
    late = Counter(task.start.get("start", "") for tasks, _ in played[15:] for task in tasks)
    assert late["holding-stone"] > 0.8 * late.total()


def test_within_a_start_state_solved_and_hopeless_worlds_are_left():
    def solves(task):
        return (0.0, 1.0, 0.5, 0.0)[task.seed % 4]

    played = train(curriculum(seeds=32, explore=0.0), solves, 40)
    late = Counter(task.seed % 4 for tasks, _ in played[20:] for task in tasks)
    assert late[2] > 0.5 * late.total()  # a quarter by chance


def test_a_task_that_became_solvable_comes_back():
    source = curriculum(seeds=8, groups=4)
    train(source, lambda task: 0.0, 10)
    before = source.success_rates().ravel()
    for iteration in range(10, 30):
        source.record(iteration, [[0.0, 1.0, 0.0, 1.0]] * len(source.draw(iteration)))
    after = source.success_rates().ravel()
    assert max(before) < 0.1 and min(after) > 0.3


def test_start_states_share_what_is_known_of_their_worlds():
    source = curriculum(seeds=50, groups=10, starts=(EASY, HARD), explore=1.0)
    for iteration in range(2):
        source.record(iteration, [[float(not task.start)] * 8 for task in source.draw(iteration)])
    easy, hard = source.success_rates()
    assert min(easy) > 0.9 and max(hard) < 0.1  # also of those that were never played


def share_with_variance(played):
    groups = [group for _, returns in played for group in returns]
    return sum(len(set(group)) > 1 for group in groups) / len(groups)


@pytest.mark.parametrize("seed", range(3))
def test_more_groups_teach_than_with_uniform_draws(seed):
    """64 worlds in three start states; one in five is solved now and then, the others always or never."""
    chance = random.Random(seed)
    solved = {}

    def solves(task):
        key = (task.seed, task.start.get("start"))
        if key not in solved:
            solved[key] = chance.choice((0.0, 0.0, 1.0, 1.0, chance.uniform(0.2, 0.8)))
        return solved[key]

    options = {"seeds": 64, "starts": (EASY, HARD, MIXED), "seed": seed}
    uniform = share_with_variance(train(curriculum(explore=1.0, **options), solves, 60))
    played = train(curriculum(explore=0.25, **options), solves, 60)
    assert 0.1 < uniform < 0.3
    assert share_with_variance(played) > 1.5 * uniform  # from the first draw on, when nothing is known
    assert share_with_variance(played[30:]) > 1.8 * uniform


def test_success_is_a_return_of_the_median_on():
    source = curriculum(groups=4, seeds=4, success_return=None)
    source.draw(0)
    source.record(0, [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], []])  # median 3.5
    assert sorted(values for _, *values in source.state()["results"]) == [[0.0, 2.0], [1.0, 2.0], [2.0, 2.0]]


def test_where_most_returns_are_the_lowest_any_more_is_a_success():
    source = curriculum(groups=4, seeds=4, success_return=None)
    source.draw(0)
    source.record(0, [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert sorted(values for _, *values in source.state()["results"]) == [[0.0, 2.0]] * 3 + [[1.0, 2.0]]


def test_nothing_ever_solved_leaves_all_tasks_in_play():
    source = curriculum(success_return=None, explore=0.0)
    played = train(source, lambda task: 0.0, 10)
    assert len({task.seed for tasks, _ in played for task in tasks}) == 16


def test_a_restored_curriculum_goes_on_as_if_nothing_had_happened():
    """The state of a checkpoint, as JSON; the iteration after it had been drawn when the worker was killed."""
    whole, killed = curriculum(success_return=None), curriculum(success_return=None)
    for source in (whole, killed):
        train(source, lambda task: task.seed % 3 / 2, 6)
    killed.draw(6)
    resumed = curriculum(success_return=None)
    resumed.restore(json.loads(json.dumps(killed.state())))
    for source in (whole, resumed):
        source.record(6, [[1.0, 0.0]] * len(source.draw(6)))
    assert [resumed.draw(i) for i in (7, 8)] == [whole.draw(i) for i in (7, 8)]


def test_an_iteration_keeps_its_tasks_until_its_results_are_in():
    source = curriculum()
    first, second = source.draw(0), source.draw(1)
    assert source.draw(0) == first
    source.record(0, [[0.0, 1.0]] * 4 + [[0.0, 0.0]] * 4)
    assert source.draw(1) == second != first


def test_results_must_be_those_of_the_tasks_that_were_drawn():
    source = curriculum()
    source.draw(0)
    with pytest.raises(ValueError, match="drew 8 tasks; results are of 3"):
        source.record(0, [[0.0]] * 3)


@pytest.mark.parametrize(
    "config",
    [
        RlConfig(seeds=(5, 1_000_000)),
        RlConfig(seeds_start=899_999, iterations=200_000),
        RlConfig(seeds_start=899_999, curriculum=CurriculumConfig(seeds=100_000)),
    ],
)
def test_held_out_seeds_are_never_among_them(config):
    if config.last_seed < 1_000_000:
        drawn = {task.seed for i in range(50) for task in make_tasks(config).draw(i)}
        assert max(drawn) < 1_000_000
    else:
        with pytest.raises(ValueError, match="held-out"):
            make_tasks(config)
