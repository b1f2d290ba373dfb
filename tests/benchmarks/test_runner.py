"""The runner: numbers, goals, and the file they go to."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType

import pytest

import benchmarks
import benchmarks.__main__ as runner
from benchmarks.metrics import Metric


@pytest.fixture
def subjects(monkeypatch, tmp_path):
    """Subjects of our own, and a results file of theirs."""

    def make(**numbers):
        for subject, number in numbers.items():
            module = ModuleType(f"benchmarks.{subject}")
            module.METRICS = (Metric(f"{subject}.rate", "how many", "/s", at_least=10),)
            module.measure = lambda quick, name=f"{subject}.rate", number=number: {name: number}
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(runner, "SUBJECTS", tuple(numbers))

    monkeypatch.setattr(runner, "LATEST", tmp_path / "results" / "latest.json")
    return make


def results():
    return json.loads(runner.LATEST.read_text())


def test_numbers_machine_and_time_go_into_one_flat_file(subjects):
    subjects(walking=12.3456789, flying=None)
    assert runner.main([]) == 0
    written = results()
    assert (written["walking.rate"], written["flying.rate"], written["walking.quick"]) == (12.35, None, False)
    assert {"machine.cpu", "machine.cores", "machine.python", "walking.measured_at", "walking.load_before"} <= set(
        written
    )
    assert not any(isinstance(value, dict | list) for value in written.values())


def test_a_subject_measured_alone_leaves_the_numbers_of_others(subjects):
    subjects(walking=1, flying=2)
    runner.main([])
    subjects(walking=3, flying=4)
    runner.main(["flying", "--quick"])
    assert (results()["walking.rate"], results()["flying.rate"], results()["flying.quick"]) == (1, 4, True)


def test_an_unknown_subject_is_refused(subjects, capsys):
    subjects(walking=1)
    with pytest.raises(SystemExit):
        runner.main(["swimming"])
    assert "no subject swimming; known: walking" in capsys.readouterr().err


def test_the_table_shows_goals_and_whether_they_are_met(subjects, capsys):
    subjects(walking=12, flying=8)
    runner.main([])
    lines = capsys.readouterr().out.splitlines()
    assert any("walking.rate" in line and "pass" in line for line in lines)
    assert any("flying.rate" in line and "fail" in line for line in lines)


def test_a_measure_that_forgets_a_metric_is_caught(subjects, monkeypatch):
    subjects(walking=1)
    monkeypatch.setattr(sys.modules["benchmarks.walking"], "measure", lambda quick: {})
    with pytest.raises(AssertionError, match=r"walking\.rate"):
        runner.main([])


@pytest.mark.parametrize(
    ("metric", "value", "met", "goal"),
    [
        (Metric("a.b", "", "×", at_least=80), 80, True, "≥ 80 ×"),
        (Metric("a.b", "", "×", at_least=80), 79.9, False, "≥ 80 ×"),
        (Metric("a.b", "", "ms", at_most=0.3), 0.31, False, "≤ 0.3 ms"),
        (Metric("a.b", "", at_most=0.3), None, None, "≤ 0.3"),
        (Metric("a.b", ""), 1, None, ""),
    ],
)
def test_goals(metric, value, met, goal):
    assert metric.met(value) is met and metric.goal == goal


@pytest.mark.parametrize("subject", benchmarks.SUBJECTS)
def test_every_subject_declares_metrics_under_its_name(subject):
    module = importlib.import_module(f"benchmarks.{subject}")
    assert module.METRICS and all(m.name.startswith(f"{subject}.") for m in module.METRICS)
