"""The pages of the nights: what stands in them, and what their plot marks."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from crafter_pipeline.evaluation import compare
from crafter_pipeline.nightly import Night, NightlyReport
from crafter_pipeline.report.nightly import night_markdown, nightly_markdown

DAY = 86_400.0


@pytest.fixture
def make_nights(make_evaluation):
    """`make_nights("champion", [6.0, 3.0])`: a night per skill; the first is the baseline."""

    def make(name, skills, models=None, hours=24.0):
        made = []
        for i, skill in enumerate(skills):
            evaluation = make_evaluation(name, skill, model=models[i] if models else "rl:crafter-tiny:job_1")
            first = made[0].evaluation if made else evaluation
            comparison = compare(replace(first, label="baseline"), evaluation, 200) if made else None
            at = 1_790_000_000 + i * hours * 3600
            made.append(Night(f"night-{i}", at, evaluation, first.mean_achievements, comparison))
        return made

    return make


def drawn(markdown: str) -> str:
    """The words of the only plot."""
    (data,) = re.findall(r"!\[[^\]]*\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    return "|".join(ElementTree.fromstring(base64.b64decode(data)).itertext())


def test_a_page_of_a_model_has_a_row_per_night_the_newest_first(make_nights):
    nights = make_nights("champion", [9.0, 9.0, 4.0], ["m1", "m1", "m2"])
    page = night_markdown(nights)
    assert page.startswith("## champion: worse than its baseline")
    rows = [line for line in page.splitlines() if line.startswith("| 2026")]
    assert [row.split(" | ")[0].lstrip("| ").replace("\u2011", "-") for row in rows] == [
        n.date for n in reversed(nights)
    ]
    assert rows[0].split(" | ")[3:] == ["**worse**", "24", "**new** `m2` |"]
    assert rows[2].split(" | ")[2:] == ["–", "baseline", "24", "`m1` |"] and "**new**" not in rows[1]
    words = drawn(page)
    assert "champion" in words and "worse than baseline" in words and "new model" in words


def test_a_page_shows_the_last_thirty_nights(make_nights):
    page = night_markdown(make_nights("champion", [6.0] * 32), plot=False)
    assert page.count("| 2026") == 30 and "The last 30 of 32 nights" in page


def test_nights_of_one_day_are_told_apart_by_the_hour(make_nights):
    assert re.search(r"\d\d:\d\d", drawn(night_markdown(make_nights("champion", [6.0] * 3, hours=1.0))))
    assert not re.search(r"\d\d:\d\d", drawn(night_markdown(make_nights("champion", [6.0] * 3))))


def test_the_overview_has_every_model_and_who_is_missing(make_nights):
    histories = {"champion": make_nights("champion", [9.0, 4.0]), "latest:sft": make_nights("latest:sft", [5.0])}
    tonight = tuple(nights[-1] for nights in histories.values())
    report = NightlyReport(tonight, {"latest:rl": "no such model yet"}, {"a|b": "gone"})
    page = nightly_markdown(report, histories)
    assert "1 of 2 worse than the baseline" in page.splitlines()[0]
    assert "latest:rl was passed over: no such model yet" in page
    assert "**a&#124;b could not be judged**: gone" in page
    assert {"champion", "latest:sft"} <= set(drawn(page).split("|"))
    fine = nightly_markdown(NightlyReport(tonight[1:]), {"latest:sft": histories["latest:sft"]}, plot=False)
    assert "no model is worse" in fine.splitlines()[0]
