"""A report says what happened, in a shape that scripts can rely on, on a page that needs nothing but itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from crafter_pipeline import files
from crafter_pipeline.config import PipelineConfig, parse_config
from crafter_pipeline.errors import DataError
from crafter_pipeline.evaluation import Comparison, compare_all
from crafter_pipeline.report import (
    Example,
    ModelRecord,
    RunReport,
    Stage,
    read_report,
    render_html,
    verdict,
    write_report,
)


def bare(**facts) -> RunReport:
    return RunReport(**{"run_id": "r", "name": "smoke", "status": "failed", "created_at": 0.0, **facts})


# --------------------------------------------------------------------------- report.json


def test_report_json_has_the_names_others_rely_on(full_report, tmp_path):
    path, _ = write_report(full_report, tmp_path)
    data = json.loads(path.read_text())
    assert data["status"] == "succeeded"
    for stage in data["stages"]:
        assert stage.keys() - {"compute"} == {"name", "seconds", "state"}
    assert [s["name"] for s in data["stages"] if "compute" in s] == ["submit-sft", "submit-rl"]
    assert data["stages"][3]["compute"]["cpu_seconds"] == 391.0 and data["models"][1]["compute"]["episodes"] == 960
    rows = (tmp_path / data["curves"]).read_text().splitlines()
    assert rows[0] == "stage,metric,step,tokens,episodes,value" and sum("rl,kl," in row for row in rows) == 14
    assert [e["label"] for e in data["evaluations"]] == ["random", "teacher", "sft", "rl"]
    for e in data["evaluations"]:
        assert isinstance(e["model"], str) and isinstance(e["max_steps"], int)
        assert all(isinstance(s, int) for s in e["seeds"])
        assert e["ci95"][0] <= e["mean_achievements"] <= e["ci95"][1]
        assert 0 <= e["crafter_score"] <= 100
        assert len(e["success_rates"]) == 22 and all(0 <= r <= 1 for r in e["success_rates"].values())
    assert [(c["a"], c["b"]) for c in data["comparisons"]] == [
        ("random", "teacher"),
        ("random", "sft"),
        ("random", "rl"),
        ("teacher", "sft"),
        ("teacher", "rl"),
        ("sft", "rl"),
    ]
    assert all(c["ci95"][0] <= c["delta"] <= c["ci95"][1] for c in data["comparisons"])
    assert {"path", "rows", "tokens", "sha256"} <= data["dataset"].keys()
    assert [{"id", "parent", "dataset_sha256"} <= m.keys() for m in data["models"]] == [True, True]
    assert data["training"]["rl"]["kl"][3] == [3, None]  # NaN is no JSON


def test_a_report_survives_its_file(full_report, tmp_path):
    write_report(full_report, tmp_path)
    again = read_report(tmp_path)
    assert again.to_json() == full_report.to_json()
    assert again.evaluations == full_report.evaluations


@pytest.mark.parametrize("content", [None, "{", '{"run_id": "r"}', "[]"])
def test_a_missing_or_damaged_report_is_an_operators_error(content, tmp_path):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataError):
        read_report(tmp_path)


def test_a_half_written_report_is_never_seen(full_report, tmp_path, monkeypatch):
    write_report(bare(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        write_report(full_report, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_text_that_is_not_unicode_is_written_all_the_same(tmp_path):
    report = bare(examples=[Example("sft", "p", "\ud83d half a pair", "\x00")])
    path, html = write_report(report, tmp_path)
    assert json.loads(path.read_text(encoding="utf-8"))["examples"][0]["thinking"].endswith("half a pair")
    assert "half a pair" in html.read_text(encoding="utf-8")


def test_an_unknown_status_is_a_bug():
    with pytest.raises(ValueError, match="partial"):
        bare(status="done")


# --------------------------------------------------------------------------- report.html


def test_the_page_fetches_nothing_and_is_well_formed(full_report, read_page):
    html = render_html(full_report)
    page = read_page(html)
    assert page.fetched == []
    assert not re.search(r"https?://", html)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe", html)
    assert len(page.ids) == len(set(page.ids))
    assert {t[1:] for t in page.targets} <= set(page.ids)
    assert page.tags.count("svg") == 11  # scores, differences, two plots of sft and three of rl, four of the dataset


def test_what_models_say_cannot_become_markup(full_report, make_manifest, read_page):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    report = replace(
        full_report,
        name=evil,
        warnings=[evil],
        examples=[Example(evil, evil, evil, evil, evil)],
        evaluations=[replace(e, model=evil, label=e.label + evil) for e in full_report.evaluations],
        comparisons=[replace(c, a=evil) for c in full_report.comparisons],
        models=[ModelRecord(evil, evil, evil)],
        dataset=make_manifest(path=evil, sha256=evil, models={evil: 1}, unlocks={evil: 1}, goals={evil: 3}),
        stages=[Stage(evil, 1.0, evil)],
        training={"sft": {"loss" + evil: [(1, 1.0), (2, 0.5)]}},
        environment={evil: evil},
        config={evil: evil},
        command=evil,
    )
    html = render_html(report)
    page = read_page(html)
    assert "script" not in page.tags and "img" not in page.tags
    assert html.count("&lt;script&gt;") > 10


def test_the_page_shows_what_happened(full_report):
    html = render_html(full_report)
    for shown in (
        "It learned: rl",
        "evaluate-teacher",
        "64,310",
        "turns.drop_noops",
        "fft:crafter-tiny:job_3f2a91c0",
        "place_table",
        "crafter-pipeline run --profile tiny",
        "3 of 960 rollouts failed",
        "collect diamond",
        "6 min 31 s",  # of CPU
        "5,100,000",  # tokens
    ):
        assert shown in html


def test_equal_reports_give_equal_pages(full_report):
    assert render_html(full_report) == render_html(full_report)


def test_a_run_that_broke_off_at_once_still_has_a_page(tmp_path, read_page):
    path, html = write_report(bare(stages=[Stage("deploy-task-app", 0.3, "Failed")]), tmp_path)
    page = html.read_text()
    read_page(page)
    assert "Broken off: deploy-task-app" in page
    for missing in (
        "No evaluation was finished.",
        "Nothing to compare",
        "No sft curve",
        "No rl curve",
        "No dataset was written.",
        "Neither a dataset nor a model",
        "No turn was kept",
        "The config was not recorded.",
    ):
        assert missing in page
    data = json.loads(path.read_text())
    assert (data["status"], data["evaluations"], data["dataset"]) == ("failed", [], None)


@pytest.mark.parametrize("part", ["evaluations", "comparisons", "dataset", "models", "training", "stages", "examples"])
def test_each_part_may_be_missing_on_its_own(full_report, part, read_page):
    empty = {"dataset": None, "training": {}}.get(part, ())
    read_page(render_html(replace(full_report, status="partial", **{part: empty})))


def test_the_config_on_the_page_is_toml_that_repeats_the_run(full_report):
    import tomli

    from crafter_pipeline.report.text import toml

    assert parse_config(PipelineConfig, tomli.loads(toml(full_report.config)), "page") == PipelineConfig(name="tiny")
    odd = {"a b": 'quote " and \\ and \n', "t": {"x": [1, 2.5, True], "u": {"v": "w"}}, "e": {}, "r": [{"k": 1}]}
    assert tomli.loads(toml(odd)) == odd


# --------------------------------------------------------------------------- did it learn?


def versus(a, b, delta, half=0.5, pairs=24):
    return Comparison(a, b, delta, (delta - half, delta + half), tuple(range(pairs)))


@pytest.mark.parametrize(
    ("labels", "comparisons", "learned", "says"),
    [
        ([], [], "unclear", "Nothing was evaluated"),
        (["random", "teacher"], [versus("random", "teacher", 9)], "unclear", "No trained model"),
        (["sft"], [], "unclear", "not compared with random"),
        (["random", "sft"], [versus("random", "sft", 3)], "yes", r"3\.0 more than random \(95 %.*24 shared seeds\)"),
        (["random", "sft"], [versus("random", "sft", -3)], "no", "did not learn.*fewer than random"),
        (["random", "sft"], [versus("random", "sft", 0.2)], "unclear", "not shown.*zero lies inside"),
        (["random", "sft"], [versus("random", "sft", 3, pairs=1)], "unclear", r"Too few seeds.*1 shared seed\)"),
        (
            ["random", "sft", "rl"],
            [versus("random", "rl", 5), versus("sft", "rl", 2)],
            "yes",
            r"rl gained 2\.0 \[\+1\.5, \+2\.5\] over sft",
        ),
        (["random", "sft", "rl"], [versus("random", "rl", 2), versus("sft", "rl", -2)], "yes", "rl lost 2.0"),
        (["random", "sft", "rl"], [versus("random", "rl", 2), versus("sft", "rl", 0.1)], "yes", "against sft is open"),
    ],
)
def test_the_verdict_follows_the_paired_intervals(make_evaluation, labels, comparisons, learned, says):
    v = verdict(bare(evaluations=[make_evaluation(label) for label in labels], comparisons=comparisons))
    assert v.learned == learned
    assert re.search(says, v.sentence)


def test_a_student_that_plays_at_random_is_not_said_to_learn(make_evaluation):
    evaluations = [make_evaluation("random", 2.0), make_evaluation("sft", 2.01)]
    v = verdict(bare(evaluations=evaluations, comparisons=compare_all(evaluations, 1000)))
    assert v.learned == "unclear"
