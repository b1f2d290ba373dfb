"""A card tells the whole manifest, and nothing from outside becomes markup in it."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.dataset.card import LISTED, card_html, card_markdown, funnel_rows
from crafter_pipeline.dataset.manifest import (
    DatasetManifest,
    Histogram,
    LongRow,
    RuleCount,
    SkippedRow,
    read_manifest,
)
from crafter_pipeline.errors import DataError
from crafter_pipeline.report.dataset import DatasetView
from crafter_pipeline.report.plots import describe_histogram

EVIL = "<script>alert(1)</script>|`*\"'><img src=x> [a](b)\n# head"


def test_the_page_needs_nothing_but_itself(make_manifest, read_page):
    html = card_html(make_manifest())
    page = read_page(html)
    assert not re.search(r"https?://|@import|<script|<link|<iframe", html)
    assert page.fetched == [] and {target[1:] for target in page.targets} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == len(page.labels) == 4
    assert any("place table 24" in label for label in page.labels)


def test_equal_manifests_give_equal_cards(make_manifest):
    assert card_html(make_manifest()) == card_html(make_manifest())
    assert card_markdown(make_manifest(), plot=True) == card_markdown(make_manifest(), plot=True)


FACTS = (
    "72 examples from 7 rollouts, 64 of them (4,900 tokens) for training",
    "4,900 of crafter-tiny",
    "crafter-expert (72)",
    "7: 0–5, 9",
    "2.500",
    "train.test.jsonl",
    "place table",
    "turns.drop_noops",
    "task_app_traces_2026-11-21_10-00-00.db",
    "min_reward",
)


@pytest.mark.parametrize("draw", [card_html, card_markdown])
def test_the_card_tells_the_manifest(make_manifest, draw):
    card = draw(make_manifest(warnings=("7 rows are odd.",)))
    for fact in (*FACTS, "7 rows are odd."):
        assert fact in card, fact
    assert "shuffle_seed" not in card, "what is the default is not told"


def test_without_rules_the_card_says_that_everything_is_kept(make_manifest):
    manifest = make_manifest(filter=FilterConfig().model_dump(mode="json"))
    assert "everything valid is kept" in card_markdown(manifest)
    assert "everything valid is kept" in card_html(manifest)


def evil_manifest(make_manifest) -> DatasetManifest:
    counts = {EVIL: 3}
    return make_manifest(
        path=f"ft/{EVIL}.jsonl",
        models=counts, providers=counts, environments=counts, unlocks=counts, goals=counts, achievements=counts,
        warnings=(EVIL,),
        rules=(RuleCount(EVIL, "rollouts", 1, 2),),
        skipped=(SkippedRow(EVIL, EVIL, 1, EVIL),), skipped_count=1,
        beyond_context=(LongRow(EVIL, None, 99),),
        filter=FilterConfig(models=(EVIL,)).model_dump(mode="json"),
        rewards=Histogram(EVIL, (0.0, 1.0), (3,)),
    )  # fmt: skip


def test_names_from_traces_are_text_on_the_page(make_manifest, read_page):
    page = read_page(card_html(evil_manifest(make_manifest)))
    assert "script" not in page.tags and "img" not in page.tags


@pytest.mark.parametrize("plot", [False, True])
def test_names_from_traces_are_text_in_markdown(make_manifest, plot):
    markdown = card_markdown(evil_manifest(make_manifest), plot=plot)
    assert "<script" not in markdown and "<img" not in markdown and "](b)" not in markdown
    assert "\n# head" not in markdown
    for block in markdown.split("\n\n"):
        if block.startswith("| "):
            assert len({line.count("|") for line in block.splitlines()}) == 1, "a table keeps its columns"


def test_markdown_for_prefect_holds_the_plots_as_images(make_manifest):
    markdown = card_markdown(make_manifest(), plot=True)
    found = re.findall(r"!\[[^\]]+\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", markdown)
    words = ["".join(ElementTree.fromstring(base64.b64decode(data)).itertext()) for data in found]
    assert len(words) == 4 and "collect wood" in words[0]
    assert "█" not in markdown and "█" in card_markdown(make_manifest())


def test_the_funnel_goes_from_rollouts_over_turns_to_rows(make_manifest):
    assert [tuple(row.values()) for row in funnel_rows(make_manifest())] == [
        ("rollouts read", "rollouts", "", "12"),
        ("models", "rollouts", "3", "9"),
        ("min_reward", "rollouts", "2", "7"),
        ("turns of these rollouts", "turns", "", "80"),
        ("turns.drop_noops", "turns", "8", "72"),
        ("rows written", "rows", "", "72"),
    ]


@pytest.mark.parametrize(
    "form, shares", [("chat", [1.0, 0.75, 1.0, 0.9, 0.45, 0.45]), ("conversation", [1.0, 0.75, 1.0, 0.9, 0.5, 0.5])]
)
def test_bars_are_shares_of_what_there_was(make_manifest, form, shares):
    rows = 36 if form == "chat" else 3
    rules = (
        RuleCount("models", "rollouts", 3, 9),
        RuleCount("turns.drop_noops", "turns", 8, 72),
        RuleCount("export.duplicates", "rows", rows, rows),
    )
    splits = {"train": replace(make_manifest().splits["train"], rows=rows)}
    view = DatasetView(make_manifest(form=form, rules=rules, splits=splits))
    assert [step.share for step in view.funnel] == pytest.approx(shares)


def test_what_was_left_out_is_listed_up_to_a_point(make_manifest):
    skipped = tuple(SkippedRow("a.db", f"run-{i:03}", i, "damaged") for i in range(LISTED + 10))
    long = tuple(LongRow(f"long-{i:03}", i, 2000) for i in range(5))
    rules = (RuleCount("export.context", "rows", 5_000, 72),)
    manifest = make_manifest(skipped=skipped, skipped_count=40, beyond_context=long, rules=rules)
    for card in (card_html(manifest), card_markdown(manifest)):
        assert f"run-{LISTED - 1:03}" in card and f"run-{LISTED:03}" not in card
        assert "long-004" in card and "5,000" in card


def test_an_uncounted_dataset_without_rewards_has_a_card(make_manifest, read_page):
    manifest = make_manifest(
        tokens=None, tokenizer=None, achievements={}, unlocks={}, goals={},
        rewards=Histogram("episode return", (), ()), lengths=Histogram("characters", (120.0, 121.0), (72,)),
    )  # fmt: skip
    assert "not counted" in card_markdown(manifest)
    assert read_page(card_html(manifest)).tags.count("svg") == 1


@pytest.mark.parametrize(
    "changes, says",
    [
        ({}, "64 of them (4,900 tokens) for training."),
        ({"tokens": None}, "72 examples from 7 rollouts, 64 of them for training."),
        ({"splits": "train"}, "64 examples from 7 rollouts, 4,900 tokens."),
        ({"splits": "train", "tokens": None}, "64 examples from 7 rollouts."),
    ],
)
def test_the_headline_tells_what_there_is(make_manifest, changes, says):
    if "splits" in changes:
        changes = {**changes, "splits": {"train": make_manifest().splits["train"]}}
    assert says in card_markdown(make_manifest(**changes)).splitlines()[2]


def test_a_distribution_is_told_in_words():
    whole = Histogram("return", (1.0, 2.0, 3.0), (2, 5))
    assert describe_histogram(whole, "rollouts") == "rollouts by return: 7 between 1 to 2, most (5) at 2"
    broad = Histogram("tokens", (60.0, 66.5, 73.0), (4, 1))
    assert "most (4) at 60 to 66.5" in describe_histogram(broad, "rows")


# --------------------------------------------------------------------------- the manifest's file


def test_a_manifest_survives_its_file(make_manifest, tmp_path):
    manifest = make_manifest(
        skipped=(SkippedRow("a.db", "run-1", None, "damaged"),), beyond_context=(LongRow("run-2", 3, 4000),)
    )
    (tmp_path / "train.manifest.json").write_text(manifest.to_json())
    assert read_manifest(tmp_path / "train.jsonl") == manifest


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "no such manifest"),
        ("{", "not valid JSON"),
        ("{}", "not a manifest of ours: path"),
        ("[]", "not a manifest of ours"),
        ('{"path": 3}', "not a manifest of ours: path"),
    ],
)
def test_what_is_no_manifest_is_said_to_be_none(tmp_path, content, says):
    if content is not None:
        (tmp_path / "train.manifest.json").write_text(content)
    with pytest.raises(DataError, match=says):
        read_manifest(tmp_path / "train.jsonl")
