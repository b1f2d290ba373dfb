"""Factories shared by the core's tests."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest


@pytest.fixture
def sample_db(tmp_path: Path) -> Path:
    """A database that the original wrote."""
    path = tmp_path / "original" / "synth_ai_sample.db"
    path.parent.mkdir()
    path.write_bytes(lzma.decompress((Path(__file__).parents[1] / "data" / "synth_ai_sample.db.xz").read_bytes()))
    return path


_WITHOUT_END = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags and ids of a page, what a browser would fetch for it, and where it links to on itself; fails on tags that do
    not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.targets: list[str] = []
        self.labels: list[str] = []
        """Of its plots."""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _WITHOUT_END:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            value = value or ""
            if key == "id":
                self.ids.append(value)
            if key in ("href", "src", "srcset", "data", "action", "xlink:href"):
                (self.targets if value.startswith("#") else self.fetched).append(value)
            if (tag, key) == ("svg", "aria-label"):
                self.labels.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def read_page() -> Callable[[str], Page]:
    """`read_page(html)`: what stands on a page."""
    return Page
