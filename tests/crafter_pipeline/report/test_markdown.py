"""Markdown for Prefect: tables that stay tables, plots as images, nothing from outside as markup."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from crafter_pipeline.evaluation import compare
from crafter_pipeline.report import (
    RunReport,
    comparison_markdown,
    evaluation_markdown,
    plots,
    run_markdown,
    summary_rows,
    text,
)


def images(markdown):
    found = re.findall(r"!\[[^\]]*\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    return [ElementTree.fromstring(base64.b64decode(data)) for data in found]


def test_an_evaluation_names_its_metrics_and_draws_its_success_rates(make_evaluation):
    markdown = evaluation_markdown(make_evaluation("sft"))
    assert "achievements (mean of 22)" in markdown and "Crafter score (0–100)" in markdown
    (svg,) = images(markdown)
    assert "collect diamond" in "".join(svg.itertext())


def test_without_a_plot_the_rates_are_a_table(make_evaluation):
    markdown = evaluation_markdown(make_evaluation("sft"), plot=False)
    assert not images(markdown)
    assert "| collect diamond | 0 % |" in markdown


def test_a_comparison_marks_what_is_shown(make_evaluation):
    random, sft = make_evaluation("random", 1.3), make_evaluation("sft", 6.0)
    markdown = comparison_markdown(compare(random, sft, 500))
    assert "| sft − random | +" in markdown and "**better**" in markdown
    assert "**worse**" in comparison_markdown([compare(sft, random, 500)], plot=False)
    few = [make_evaluation("random", 1.3, count=3), make_evaluation("sft", 9.0, count=3)]
    assert "too few seeds" in comparison_markdown(compare(*few, 500), plot=False)
    assert len(images(markdown)) == 1


def test_a_run_in_one_artifact(full_report):
    markdown = run_markdown(full_report)
    assert "It learned" in markdown and "3 of 960 rollouts" in markdown
    assert len(images(markdown)) == 4
    assert "Nothing was evaluated" in run_markdown(RunReport("r", "smoke", "failed", 0.0))


def test_names_cannot_break_a_table(make_evaluation):
    markdown = evaluation_markdown(replace(make_evaluation("sft"), model="a|b\n<img src=x>`c"), plot=False)
    assert "<img" not in markdown and "a&#124;b &lt;img" in markdown


def test_summary_rows_are_text_in_the_pipelines_order(full_report):
    rows = summary_rows(replace(full_report, evaluations=full_report.evaluations[::-1]))
    assert [r["label"] for r in rows] == ["random", "teacher", "sft", "rl"]
    assert all(isinstance(v, str) for r in rows for v in r.values())
    assert rows[0]["vs random"] == "–" and rows[2]["vs random"].startswith("+")
    assert summary_rows(RunReport("r", "smoke", "failed", 0.0)) == []


def test_a_curve_with_gaps_is_drawn_and_a_dollar_is_a_dollar():
    svg = plots.curves("cost $x$ <b>", {"cost": [(0, 1.0), (1, None), (2, float("nan")), (3, 0.5)]}).svg()
    words = "".join(ElementTree.fromstring(svg).itertext())
    assert "cost $x$ <b>" in words


def test_an_inline_plot_follows_the_pages_colours(make_evaluation):
    svg = plots.achievement_bars([make_evaluation("sft")])
    assert "currentColor" in svg and "#010203" not in svg
    assert "xmlns" not in plots.inline(svg, "x", "bars")
    assert "currentColor" not in base64.b64decode(plots.data_uri(svg).split(",")[1]).decode()


def test_importing_the_report_does_not_import_matplotlib():
    code = "import sys, crafter_pipeline.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (text.number(-0.04), "0.0"),
        (text.number(-1234.56), "−1,234.6"),
        (text.signed(0.0), "0.0"),
        (text.signed(2.0), "+2.0"),
        (text.signed(-2.0), "−2.0"),
        (text.interval((-1.0, 2.0), sign=True), "[−1.0, +2.0]"),
        (text.duration(0.42), "0.4 s"),
        (text.duration(59.7), "1 min 00 s"),
        (text.duration(185), "3 min 05 s"),
        (text.duration(7620), "2 h 07 min"),
        (text.percent(0.004), "<1 %"),
        (text.percent(0.997), ">99 %"),
        (text.seeds((3, 5)), "2 seeds, 3–5, with gaps"),
    ],
)
def test_numbers_read_well(written, expected):
    assert written == expected
