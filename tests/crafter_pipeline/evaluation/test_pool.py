"""Stored evaluations, pooled into the rows of a table."""

from __future__ import annotations

import json

import pytest

from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.errors import DataError
from crafter_pipeline.evaluation import evaluate
from crafter_pipeline.evaluation.pool import Stored, compare_rows, pool, read_stored, require_row
from crafter_pipeline.evaluation.statistics import paired, wilson
from crafter_pipeline.report.evaluation_table import tables_markdown

NAMES = tuple("abcd")


def judged(label, model, counts, *, start=1_000_000, max_steps=100):
    results = [EpisodeResult(f"r{i}", start + i, NAMES[:n], n, 5, 50, "death") for i, n in enumerate(counts)]
    return evaluate(label, model, results, max_steps, NAMES, bootstrap=200)


def test_training_runs_of_one_label_are_one_row():
    tables = pool(
        [
            Stored("", judged("rl", "rl:m:1", [2, 3, 2, 4])),
            Stored("", judged("random", "crafter-random", [0, 1, 0, 1])),
            Stored("", judged("rl", "rl:m:2", [4, 4, 4, 4])),
            Stored("", judged("random", "crafter-random", [0, 1, 0, 1])),
        ]
    )
    random, rl = tables[100]
    assert (random.name, len(random.runs), rl.name, len(rl.runs)) == ("random", 1, "rl", 2)
    assert rl.mean_achievements == pytest.approx((11 + 16) / 8) and rl.ci95[0] < 3.4 < rl.ci95[1]
    assert rl.crafter_score == pytest.approx(sum(run.crafter_score for run in rl.runs) / 2)
    low, high = rl.crafter_score_ci95
    assert low <= rl.crafter_score <= high
    assert rl.success_rates["d"] == (5, 8)
    assert random.success_ci95("a") == wilson(2, 4)
    low, high = rl.success_ci95("d")
    assert low <= 0.25 and high == 1.0, "the runs unlock it in 25 and 100 % of the worlds"
    (pair,) = compare_rows([random, rl])
    assert (pair.a, pair.b, pair.delta) == ("random", "rl", pytest.approx(27 / 8 - 0.5))


def test_groups_are_rows_of_their_own_and_limits_tables_of_their_own():
    tables = pool(
        [
            Stored("tiny", judged("sft", "fft:m:1", [1, 2])),
            Stored("hour", judged("sft", "fft:m:2", [3, 4])),
            Stored("hour", judged("sft", "fft:m:2", [4, 4], max_steps=200)),
        ]
    )
    assert {steps: [row.name for row in rows] for steps, rows in tables.items()} == {
        100: ["tiny sft", "hour sft"],
        200: ["hour sft"],
    }
    told = tables_markdown({steps: (rows, compare_rows(rows)) for steps, rows in tables.items()}, success=True)
    assert "### Up to 200 env steps" in told and "| hour sft − tiny sft | +2.00" in told
    assert "worlds 1000000 to 1000001 (held_out)" in told


def test_single_runs_are_compared_as_evaluations_are():
    a, b = judged("sft", "fft:m:1", [1, 2, 3, 1, 2, 3, 1]), judged("rl", "rl:m:1", [2, 2, 4, 2, 3, 3, 2])
    rows = pool([Stored("", a), Stored("", b)])[100]
    (pair,) = compare_rows(rows)
    told = paired(a.scores, b.scores)
    assert (pair.delta, pair.ci95, pair.p_value, pair.sd) == (told.delta, told.ci95, told.p_value, told.sd)
    (other,) = compare_rows(rows, against="rl")
    assert (other.a, other.b, other.delta) == ("rl", "sft", -pair.delta)
    with pytest.raises(DataError, match="No row is called 'sftt'; did you mean 'sft'"):
        require_row("sftt", rows)
    assert compare_rows(rows[:1], against="rl") == [], "a table of another limit may lack it"


def test_what_cannot_stand_in_one_table_is_refused():
    dev = judged("sft", "fft:m:1", [1, 2], start=900_000)
    with pytest.raises(DataError, match="the splits dev and held_out"):
        pool([Stored("", dev), Stored("", judged("rl", "rl:m:1", [1, 2]))])
    solved = [EpisodeResult("r", 1_000_000, ("solve_problem",), 1, 1, 1, "solved")]
    math = evaluate("sft", "m", solved, 100, ("solve_problem",), 100)
    with pytest.raises(DataError, match="different environments"):
        pool([Stored("", math), Stored("", judged("rl", "rl:m:1", [1, 2]))])


def test_files_are_read_as_they_were_written(tmp_path):
    evaluation = judged("sft", "fft:m:1", [1, 2, 4])
    (tmp_path / "report.json").write_text(json.dumps({"evaluations": [evaluation.to_json()]}))
    (tmp_path / "sft.json").write_text(json.dumps(evaluation.to_json()))
    kept = [Stored("tiny", evaluation).to_json()]
    (tmp_path / "kept.json").write_text(json.dumps({"evaluations": kept}))
    assert read_stored(tmp_path) == read_stored(tmp_path / "sft.json") == [Stored("", evaluation)]
    assert read_stored(tmp_path / "kept.json") == [Stored("tiny", evaluation)]
    assert read_stored(tmp_path / "kept.json", "other") == [Stored("other", evaluation)]
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(DataError, match="no evaluation in it"):
        read_stored(tmp_path / "other.json")
    with pytest.raises(DataError, match="There is no .*nothing"):
        read_stored(tmp_path / "nothing")
