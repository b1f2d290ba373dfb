"""docs/seed-coverage.md is what the table gives, and the table holds every line there is."""

from __future__ import annotations

import os

import pytest

from tests.seeds.coverage import PAGE, WRITE, page
from tests.seeds.documents import DOCUMENTS
from tests.seeds.session import ROOT
from tests.seeds.table import AS_ABOVE
from tests.standins.command_lines import calls, unknown

LINES_OF = {"000": 26, "001": 26, "002": 19, "003": 25, "004": 19}
"""How many lines of each document somebody types or relies on: none goes missing unnoticed."""
COMMANDS = [
    pytest.param(words, id=f"{document.number}-{' '.join(words[1:])[:80]}")
    for document in DOCUMENTS
    for line in document.lines
    for words in calls(line.command, ["crafter-pipeline"])
]


def test_the_page_is_what_the_table_gives():
    if os.environ.get("WRITE_PAGES"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), f"Write it anew: {WRITE}"


def test_no_line_went_missing():
    assert {document.number: len(document.lines) for document in DOCUMENTS} == LINES_OF


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.number)
def test_a_promise_stands_below_its_command(document):
    assert document.lines[0].ours != AS_ABOVE
    for index, line in enumerate(document.lines):
        assert document.command_of(index).ours, line.theirs
        assert line.product and line.theirs


@pytest.mark.parametrize("words", COMMANDS)
def test_our_line_exists(words):
    assert unknown(words[0], words[1:]) is None


@pytest.mark.parametrize("words", [param for param in COMMANDS if {"--config", "--toml"} & set(param.values[0])])
def test_its_recipe_exists(words):
    file = words[words.index("--config" if "--config" in words else "--toml") + 1]
    assert (ROOT / file).is_file()
