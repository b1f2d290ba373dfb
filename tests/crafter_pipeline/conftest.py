"""Factories shared by the core's tests."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.traces.store import TraceStore

SYSTEM = "You play Crafter. Answer with one action."


@pytest.fixture
def make_turn() -> Callable[..., Turn]:
    """`make_turn(0, reward=1.0)`: a turn that is readable and earns nothing, but for what the test names."""

    def make(index: int = 0, **changes: Any) -> Turn:
        turn = Turn(
            index=index,
            messages=(
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"tree east, step {index}"},
            ),
            reply=Reply("do", thinking="collect wood", prompt_tokens=20, completion_tokens=2, latency_ms=12.25),
            actions=("do",),
            parse_failure=None,
            reward=0.0,
            unlocked=(),
            started_at=1_790_000_000.123456 + index,
            ended_at=1_790_000_000.623456 + index,
            observation=f"tree east, step {index}",
            next_observation=f"tree east, step {index + 1}",
        )
        return replace(turn, **changes)

    return make


@pytest.fixture
def make_rollout(make_turn: Callable[..., Turn]) -> Callable[..., Rollout]:
    """`make_rollout("run-1", seed=1)`: two turns and collect_wood in the second, but for what the test names."""

    def make(run_id: str = "run-0", **changes: Any) -> Rollout:
        rollout = Rollout(
            run_id=run_id,
            environment="crafter",
            seed=0,
            policy="crafter-react",
            model="crafter-expert",
            provider="custom",
            turns=(make_turn(0), make_turn(1, reward=1.0, unlocked=("collect_wood",))),
            achievements=("collect_wood",),
            total_reward=1.0,
            env_steps=2,
            stop_reason=StopReason.TURN_LIMIT,
            created_at=1_790_000_000.1,
        )
        return replace(rollout, **changes)

    return make


@pytest.fixture
def make_db(tmp_path: Path) -> Callable[..., Path]:
    """`make_db([rollout, …])`: a closed trace database that holds them."""

    def make(rollouts: Sequence[Rollout], name: str = "traces.db") -> Path:
        with TraceStore(tmp_path / name) as store:
            for rollout in rollouts:
                assert store.add(rollout)
        return tmp_path / name

    return make


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
