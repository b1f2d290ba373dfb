"""From what a sweep's folder has stored to its table: scores, differences, costs, and the words that warn."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from crafter_pipeline.config import SweepConfig, parse_config
from crafter_pipeline.contracts import Compute
from crafter_pipeline.evaluation import Evaluation
from crafter_pipeline.report.sweep import render_sweep, sweep_markdown
from crafter_pipeline.runs import plain
from crafter_pipeline.sweeps import FILES, Plan, keep_failure, place, plan_sweep, results_of, write_results
from crafter_pipeline.sweeps.preview import preview
from crafter_pipeline.training import TrainedModel

WORLDS = range(900_000, 900_020)


def plan(**tables: Any) -> Plan:
    named = [{"name": "first"}, {"name": "second", "set": {"sft.max_steps": 7}, "tags": {"note": "<b>more</b>"}}]
    told = {"name": "test", "base": "smoke", "runs": named, "common": {"evaluate": {"bootstrap": 500}}, **tables}
    return plan_sweep(parse_config(SweepConfig, told, "file"), "file")


def evaluation(counts: Sequence[int]) -> Evaluation:
    mean = sum(counts) / len(counts)
    return Evaluation(
        label="x",
        model="fft:crafter-tiny:job_1",
        seeds=tuple(WORLDS[: len(counts)]),
        max_steps=100,
        counts=tuple(counts),
        mean_achievements=mean,
        ci95=(mean - 1, mean + 1),
        crafter_score=7.0,
        success_rates={"collect_wood": 0.5, "eat_cow": 0.25},
        mean_env_steps=90.0,
        parse_failures=5,
        turns=50,
        mean_reward=mean,
    )


@pytest.fixture
def store(tmp_path, make_manifest) -> Callable[..., Path]:
    """`store(plan, trial, counts)`: what a trial leaves behind, in the sweep's folder, which is returned."""

    def keep(made: Plan, trial: int, counts: Sequence[int], cpu_seconds: float = 30.0) -> Path:
        one = made.trials[trial]
        compute = Compute(wall_seconds=20.0, cpu_seconds=cpu_seconds, gpu_seconds=0.0, tokens=4_000)
        model = TrainedModel(id=f"fft:crafter-tiny:job_{trial}", job_id="j", parent="crafter-tiny", compute=compute)
        stages = {
            "filter": ("filter-dataset", make_manifest(rows=64), 2.0),
            "sft": ("submit-sft", model, 25.0),
            "evaluate": ("evaluate", evaluation(counts), 9.0),
        }
        for step, (name, output, seconds) in stages.items():
            marker = place(tmp_path, one.steps[step], one).folder / "stages" / f"{name}.json"
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text(json.dumps({"stage": name, "key": "k", "seconds": seconds, "outputs": plain(output)}))
        return tmp_path

    return keep


def test_a_real_difference_is_shown_with_its_cost(store):
    made = plan()
    store(made, 0, [n % 3 for n in range(20)])
    folder = store(made, 1, [n % 3 + 2 for n in range(20)], cpu_seconds=60.0)
    results = results_of(made, folder)
    first, second = results.rows
    assert first.quality and second.quality and second.difference and first.cost and second.cost
    assert first.difference is None and second.difference.delta == pytest.approx(2.0)
    assert second.difference.shown and second.difference.p_corrected < 0.01
    assert (second.quality.achievements, second.quality.reward) == (pytest.approx(2.95), pytest.approx(2.95))
    assert second.quality.invalid_answers == pytest.approx(0.1)
    assert second.quality.crafter_score == pytest.approx(7.0), (
        "the mean of the trainings' scores, as `eval table` tells it"
    )
    assert second.quality.success_rates == {"collect_wood": 0.5, "eat_cow": 0.25}
    assert (second.cost.seconds, second.cost.evaluation_seconds, second.cost.cpu_seconds) == (27.0, 9.0, 60.0)
    assert second.cost.tokens_per_second == 200.0
    assert not any("noise" in note for note in results.notes)
    assert results.headline == "2 of 2 runs, best second with 2.95 achievements, 1 differ from first"


@pytest.mark.parametrize("against", ["second", "random"])
def test_rows_are_compared_with_the_one_that_is_named(store, against):
    made = plan(against=against, baselines=["random"])
    store(made, 0, [n % 3 for n in range(20)])
    folder = store(made, 1, [n % 3 + 2 for n in range(20)])
    marker = place(folder, made.baseline("random"), made.first).folder / "stages" / "evaluate-random.json"
    marker.parent.mkdir(parents=True)
    output = plain(replace(evaluation([n % 3 + 2 for n in range(20)]), label="random"))
    marker.write_text(json.dumps({"stage": "evaluate-random", "key": "k", "seconds": 1.0, "outputs": output}))
    results = results_of(made, folder)
    first, second = results.rows
    assert first.difference and first.difference.delta == pytest.approx(-2.0) and first.difference.shown
    assert (second.difference is None) == (against == "second")
    assert results.headline.endswith(f"1 differ from {against}")
    assert f"Differences are to {against}." in sweep_markdown(results) and f"Against {against}" in render_sweep(results)


def test_noise_is_called_noise_with_the_worlds_that_it_would_take(store):
    made = plan()
    store(made, 0, [1, 2, 3, 4] * 5)
    folder = store(made, 1, [2, 1, 4, 3] * 4 + [2, 2, 4, 3])
    results = results_of(made, folder)
    difference = results.rows[1].difference
    assert difference and not difference.shown and difference.worlds_needed and difference.worlds_needed > 1000
    assert "These differences are noise" in results.notes[0] and f"{difference.worlds_needed:,}" in results.notes[0]
    assert "One training per run" in results.notes[1]


def test_several_trainings_widen_the_interval(store):
    one, several = plan(), plan(repeats=2)
    narrow = results_of(one, store(one, 0, [3, 3, 3, 4] * 5)).rows[0].quality
    store(several, 0, [3, 3, 3, 4] * 5)
    folder = store(several, 1, [6, 6, 6, 7] * 5)
    row = results_of(several, folder).rows[0]
    assert (row.trainings, row.of, row.state) == (2, 2, "done") and narrow and row.quality
    assert row.quality.each == (3.25, 6.25)
    assert "| 3.25, 6.25 |" in sweep_markdown(results_of(several, folder))
    assert "each training" not in sweep_markdown(results_of(one, folder)), "one alone is the row itself"
    assert row.quality.achievements == pytest.approx(4.75)
    assert row.quality.ci95[1] - row.quality.ci95[0] > 5 * (narrow.ci95[1] - narrow.ci95[0])


def test_every_file_says_the_same(store, read_page):
    made = plan()
    store(made, 0, [n % 3 for n in range(20)])
    folder = store(made, 1, [n % 3 + 2 for n in range(20)])
    results = results_of(made, folder)
    write_results(results, folder)
    assert {path.name for path in folder.iterdir() if path.is_file()} == set(FILES)
    for table in (pl.read_csv(folder / "results.csv"), pl.read_parquet(folder / "results.parquet")):
        assert table["run"].to_list() == ["first", "second"]
        assert table["achievements"].to_list() == pytest.approx([0.95, 2.95])
        assert table["tags"].to_list()[1] == "note=<b>more</b>" and table["shown"].to_list()[1] is True
        assert table["filter"].to_list()[0] == "models=crafter-expert"
    told = json.loads((folder / "results.json").read_text())
    assert told["rows"][1]["difference"]["delta"] == pytest.approx(2.0) and told["rows"][1]["difference"]["shown"]
    assert told["rows"][1]["cost"]["tokens_per_second"] == 200.0
    markdown, html = ((folder / f"results.{kind}").read_text() for kind in ("md", "html"))
    assert "| second | 2.95" in markdown and "**better**" not in markdown and "better" in markdown
    assert "<b>more</b>" not in html and "&lt;b&gt;more" in html and html.count("<svg") == 3
    assert "src=" not in html and "<link" not in html, "one file, no network"


def test_what_failed_and_what_was_not_run_are_rows(store):
    broken, later = {"name": "broken", "set": {"sft.seed": 3}}, {"name": "later", "set": {"sft.max_steps": 9}}
    made = plan(runs=[{"name": "first"}, broken, later])
    folder = store(made, 0, [1] * 8)
    keep_failure(folder, made.trials[1].steps["evaluate"], "no room")
    results = results_of(made, folder)
    assert [row.state for row in results.rows] == ["done", "failed", "not run"]
    assert results.rows[1].errors == results.failed == {"broken": "no room"} and not results.complete
    elsewhere = plan(runs=[{"name": "first"}, broken, later], evaluate={"seeds": 9})
    assert results_of(elsewhere, folder).rows[1].state == "not run", "it failed on other worlds"
    keep_failure(folder, made.trials[1].steps["evaluate"], None)
    assert results_of(made, folder).rows[1].state == "not run"


def test_a_baseline_that_failed_and_episodes_that_are_missing_are_told(store):
    made = plan(baselines=["random"], common={"evaluate": {"seeds": {"count": 20}, "bootstrap": 500}})
    folder = store(made, 0, [1] * 20)
    keep_failure(folder, made.baseline("random"), "no answer")
    results = results_of(made, store(made, 1, [2] * 17))
    assert results.baseline_errors == {"random": "no answer"}
    assert results.not_played == {"second, evaluate": 3} and not results.complete
    assert results.notes[-1].startswith("Episodes that failed are missing (second, evaluate: 3).")
    assert "- random: no answer" in sweep_markdown(results) and "random: no answer" in render_sweep(results)


def test_of_several_trainings_no_number_of_worlds_is_promised(store):
    made = plan(repeats=2)
    for trial, counts in enumerate(([1, 2, 3, 4], [3, 3, 4, 6], [2, 2, 3, 3], [2, 3, 3, 5])):
        folder = store(made, trial, counts * 5)
    difference = results_of(made, folder).rows[1].difference
    assert difference and difference.delta and difference.worlds_needed is None


def test_few_worlds_are_never_promised_to_be_enough(store):
    made = plan()
    store(made, 0, [1, 1, 2, 2])
    results = results_of(made, store(made, 1, [4, 5, 6, 5]))
    difference = results.rows[1].difference
    assert results.notes[0].startswith("Fewer than 6 worlds show nothing: ")
    assert difference and difference.worlds_needed == 6 and not difference.shown


def test_a_preview_tells_what_is_shared_and_what_is_done(store, tmp_path):
    made = plan()
    planned = preview(made, made.trials, tmp_path)
    assert planned.unshared.episodes - planned.left.episodes == 40, "the teacher's episodes, played once for two"
    store(made, 0, [1] * 8)
    steps = {(step.stage, step.trials): step for step in preview(made, made.trials, tmp_path).steps}
    assert steps["sft", ("first",)].done and not steps["sft", ("second",)].done
    assert steps["filter", ("first", "second")].done
