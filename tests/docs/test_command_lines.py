"""Every command of ours that a page names exists, with the options that it is given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from crafter_pipeline.cli.app import app
from tests.standins.command_lines import in_page, unknown

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {"prefect.md", "seed-coverage.md"}
"""Pages with tests of their own."""
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name not in ELSEWHERE)]
COMMANDS = [
    pytest.param(words, id=f"{page.name}-{' '.join(words[1:])[:80]}")
    for page in PAGES
    for words in in_page(page.read_text(), ["crafter-pipeline"])
]
CLI, MOVING = (ROOT / "docs" / "cli.md").read_text(), (ROOT / "docs" / "coming-from-synth-ai.md").read_text()


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_exists(words):
    assert unknown(words[0], words[1:]) is None


def test_every_command_has_a_line():
    table = CLI[CLI.index("## Commands") : CLI.index("## Where a value")]
    for name in app:
        if not name.startswith("-"):
            assert re.search(rf"^\|.*`{name}[` ].*\|", table, re.M), name


def test_every_recipe_is_named_and_every_named_one_is_there():
    files = {path.stem for path in (ROOT / "configs" / "recipes").glob("*.toml")}
    table = CLI[CLI.index("| step | recipes |") :]
    assert set(re.findall(r"`((?:eval|filter|train|crafter|math|rl)_\w+)`", table)) == files
    for page in (CLI, MOVING):
        for name in re.findall(r"configs/recipes/(\w+)\.toml", page):
            assert name in files


@pytest.mark.parametrize("page", [CLI, MOVING], ids=["cli.md", "coming-from-synth-ai.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page):
        assert target.startswith("https://") or (ROOT / "docs" / target).exists(), target
