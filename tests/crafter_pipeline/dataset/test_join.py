"""Datasets one behind the other: rows alike, facts added up, parts named."""

from __future__ import annotations

import orjson
import pytest

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.dataset.build import build_dataset
from crafter_pipeline.dataset.card import card_markdown
from crafter_pipeline.dataset.chat_form import problems
from crafter_pipeline.dataset.join import join_datasets
from crafter_pipeline.dataset.manifest import card_path, read_manifest
from crafter_pipeline.errors import DataError


@pytest.fixture
def build(tmp_path, make_db, make_rollout, make_turn):
    """`build("a", seeds, label=…)`: the path of a dataset of those worlds."""

    def run(name, seeds, **export):
        rollouts = [make_rollout(f"{name}-{s}", seed=s, turns=(sparse(make_turn, s),)) for s in seeds]
        out = tmp_path / f"{name}.jsonl"
        build_dataset([make_db(rollouts, f"{name}.db")], FilterConfig(export=export), out)
        return out

    return run


def sparse(make_turn, seed):
    """A turn whose prompt the expert can read."""
    from crafter_pipeline.game import Game, render_text

    text = render_text(Game(seed).observe(), "sparse")
    return make_turn(0, messages=({"role": "user", "content": text},), reward=1.0, unlocked=("collect_wood",))


def rows_of(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_rows_get_the_same_columns_and_facts_add_up(build, tmp_path):
    first = build("first", range(3), tokenizer="crafter-tiny", validation_share=0.3)
    labelled = build("labelled", (7, 8), label="crafter-expert", target="label", tokenizer="crafter-tiny")
    out = tmp_path / "all.jsonl"
    joined = join_datasets([first, labelled], out)
    rows, parts = rows_of(out), [read_manifest(first), read_manifest(labelled)]
    assert [tuple(row) for row in rows] == [("messages", "metadata")] * joined.rows
    assert len({tuple(row["metadata"]) for row in rows}) == 1 and not any(map(problems, rows))
    assert [row["metadata"]["label_model"] for row in rows] == [""] * parts[0].rows + ["crafter-expert"] * 2
    assert [row["messages"] for row in rows] == [row["messages"] for path in (first, labelled) for row in rows_of(path)]
    for fact in ("rows", "tokens", "turns", "rollouts", "rollouts_read"):
        assert getattr(joined, fact) == sum(getattr(part, fact) for part in parts)
    assert joined.labels == {"crafter-expert": 2} and joined.unlocks["collect_wood"] == 5
    assert joined.seeds == {"count": 5, "min": 0, "max": 8, "ranges": [[0, 2], [7, 8]]}
    assert sum(joined.lengths.counts) == 5 and sum(joined.rewards.counts) == 5
    assert [(part.path, part.sha256) for part in joined.parts] == [(str(p.path), p.sha256) for p in parts]
    assert {source.path for source in joined.sources} == {str(tmp_path / "first.db"), str(tmp_path / "labelled.db")}
    assert read_manifest(out) == joined
    assert card_path(out).read_text() == card_markdown(joined)
    assert f"first.jsonl ({parts[0].rows})" in card_markdown(joined)


def test_equal_parts_give_equal_bytes(build, tmp_path):
    parts = [build("a", (1,)), build("b", (2,))]
    first = join_datasets(parts, tmp_path / "all.jsonl")
    before = (tmp_path / "all.jsonl").read_bytes()
    assert join_datasets(parts, tmp_path / "all.jsonl") == first and (tmp_path / "all.jsonl").read_bytes() == before


def test_parts_that_do_not_fit_are_refused(build, tmp_path):
    chat, other = build("a", (1,)), build("b", (2,), form="completion")
    with pytest.raises(DataError, match="b.jsonl is of the form completion"):
        join_datasets([chat, other], tmp_path / "all.jsonl")
    with pytest.raises(DataError, match="no such manifest"):
        join_datasets([chat, tmp_path / "nowhere.jsonl"], tmp_path / "all.jsonl")
    (tmp_path / "a.images").mkdir()
    with pytest.raises(DataError, match="data_url"):
        join_datasets([chat], tmp_path / "all.jsonl")
    assert not (tmp_path / "all.jsonl").exists()
