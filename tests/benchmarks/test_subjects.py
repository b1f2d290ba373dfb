"""Each subject's code runs, in its smallest form. How fast things are is for `make bench` to say."""

from __future__ import annotations

import math
import subprocess

import pytest

from benchmarks import cli, dataset, game, task_app, traces, workplace


def test_steps():
    step, parity_step = game.step_ratios((1,), steps=5, rounds=1)
    assert step > 0 and parity_step > 0


def test_the_expert_plays_the_actions_that_are_timed():
    actions = game.expert_actions(1, 12)
    assert len(actions) == 12 and set(actions) != {"noop"}


def test_processes_are_timed_by_turns_and_a_failing_one_is_noticed():
    first, second = cli.by_turns([cli.BARE, [*cli.BARE[:2], "import time; time.sleep(0.2)"]], rounds=1)
    assert len(first) == len(second) == 1 and 0 < first[0] < second[0] > 0.2
    with pytest.raises(subprocess.CalledProcessError):
        cli.by_turns([[*cli.BARE[:2], "1/0"]], rounds=1)
    assert {"setup", "rollout", "status"} <= set(cli.commands())


@pytest.mark.slow
def test_the_command_line():
    values = cli.measure(quick=True)
    assert values.keys() == {m.name for m in cli.METRICS} and all(v > 0 for v in values.values())


def test_cached_resets():
    assert game.cached_reset_ms(3) > 0


def test_storing_turns():
    values = traces.measure(quick=True)
    assert values.keys() == {m.name for m in traces.METRICS} and all(v > 0 for v in values.values())


def test_building_a_dataset():
    with workplace() as folder:
        files = dataset.make_databases(folder, 80)
        assert dataset.build(files, folder, {})["peak_mb"] > 0
        rows = (folder / "rows.jsonl").read_bytes().splitlines()
    assert len(files) == dataset.DATABASES and len(rows) == len(set(rows)) == 80


@pytest.mark.slow
def test_the_largest_dataset_in_small():
    values = dataset.measure(quick=True)
    assert values.keys() == {m.name for m in dataset.METRICS} and all(v > 0 for v in values.values())


@pytest.mark.slow
def test_resets():
    assert game.reset_ratio("without-numba", 1) > 0


@pytest.mark.slow
def test_the_task_app_under_load():
    with workplace() as folder, task_app.model(folder) as chat:
        values = task_app.throughput(folder, chat, rollouts=32, rounds=1)
        with task_app.task_app(folder) as server:
            share = task_app.latency_share(server, chat, concurrent=2, latency_ms=20, rollouts=2)
        values |= task_app.many_live(folder, chat, rollouts=4, latency_ms=100)
    assert 0 < share <= 1.0
    assert values.keys() | {"task_app.latency_limit_share_32", "task_app.latency_limit_share_256"} == {
        m.name for m in task_app.METRICS
    }
    assert all(math.isfinite(value) for value in values.values())
