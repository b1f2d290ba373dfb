"""`crafter-pipeline sweep`: what can be seen without running anything."""

from __future__ import annotations

import json

import pytest

from crafter_pipeline.cli import main

SWEEP = """
name = "test"
base = "smoke"
grid = { sft.max_steps = [1, 2] }
evaluate = { suite = "crafter-50", split = "dev", seeds = 8 }
"""


@pytest.fixture
def file(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.toml").write_text(SWEEP)
    return "test.toml"


def test_a_dry_run_shows_rows_and_steps_and_writes_nothing(file, tmp_path, capsys):
    assert main(["sweep", file, "--dry-run", "--json", "--set", "evaluate.seeds=10"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in told["rows"]] == ["max_steps=1", "max_steps=2"]
    assert [step["work"]["episodes"] for step in told["steps"] if step["stage"] == "evaluate"] == [10, 10]
    assert told["steps"][0]["trials"] == ["max_steps=1", "max_steps=2"]
    assert main(["sweep", file, "--dry-run", "--only", "max_steps=2"]) == 0
    shown = capsys.readouterr().out
    assert "max_steps=2" in shown and "max_steps=1" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["test.toml"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["none.toml"], "none.toml"),
        (["lora-rnak", "--dry-run"], "known: "),
        (["test.toml", "--only", "max_steps=3"], "did you mean"),
        (["test.toml", "--parallel", "0"], "at least 1"),
        (["test.toml", "--report-only", "--only", "max_steps=1"], "leave out --only"),
        (["test.toml", "--set", "grid.sft.max_steps=[0]"], "max_steps=0"),
    ],
)
def test_a_mistake_is_a_line(file, words, says, capsys):
    assert main(["sweep", *words]) == 2
    told = capsys.readouterr().err
    assert says in told and len(told.splitlines()) == 1


def test_tables_of_a_sweep_that_never_ran_are_refused(file, capsys):
    assert main(["sweep", file, "--report-only"]) == 1
    assert "Run it without --report-only" in capsys.readouterr().err
