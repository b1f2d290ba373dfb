"""Parquet files have typed columns, hold every turn, and are equal bytes for equal databases."""

from __future__ import annotations

import json

import polars as pl
import pytest

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import parquet
from crafter_pipeline.traces.parquet import ROLLOUT_SCHEMA, TURN_SCHEMA, export_parquet
from crafter_pipeline.traces.reader import read_rollouts


def test_every_rollout_and_turn_is_a_row_with_types(tmp_path, make_db, play, sample_db):
    path = make_db([play("a", task="collect_iron"), play("b")])
    exported = export_parquet([path, sample_db], tmp_path / "out")
    rollouts, turns = (pl.read_parquet(tmp_path / "out" / name) for name in ("rollouts.parquet", "turns.parquet"))
    assert (exported.rollouts, exported.turns) == (len(rollouts), len(turns)) == (5, 70)
    assert rollouts.schema == pl.Schema(ROLLOUT_SCHEMA) and turns.schema == pl.Schema(TURN_SCHEMA)
    first = next(read_rollouts(path))
    row = turns.row(0, named=True)
    assert (row["session_id"], row["goal"], row["actions"]) == ("a", "collect_iron", list(first.turns[0].actions))
    assert json.loads(row["messages"]) == list(first.turns[0].messages) and row["thinking"] == "so be it"
    assert row["started_at"].timestamp() == first.turns[0].started_at
    assert rollouts["session_id"].to_list()[:2] == ["a", "b"]


def test_equal_databases_give_equal_bytes_however_many_blocks(tmp_path, make_db, play, monkeypatch):
    monkeypatch.setattr(parquet, "BLOCK", 7)
    path = make_db([play(f"run-{i}") for i in range(4)])
    contents = []
    for name in ("one", "two"):
        export_parquet([path], tmp_path / name)
        contents.append((tmp_path / name / "turns.parquet").read_bytes())
    assert contents[0] == contents[1]
    turns = pl.read_parquet(tmp_path / "one" / "turns.parquet")
    assert turns["turn"].to_list() == list(range(10)) * 4
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["rollouts.parquet", "turns.parquet"]


def test_a_damaged_rollout_is_left_out_and_listed(tmp_path, make_db, play, change):
    path = make_db([play("a"), play("b")])
    change(path, "UPDATE events SET metadata = '{' WHERE session_id = 'a'")
    exported = export_parquet([path], tmp_path / "out")
    assert exported.rollouts == 1 and [d.session_id for d in exported.damaged] == ["a"]


def test_older_files_stay_when_it_fails(tmp_path, make_db, play, bad_input):
    from crafter_pipeline.traces.catalog import resolve

    good = make_db([play()], "good.db")
    export_parquet([good], tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(DataError):
        export_parquet(resolve([good, bad_input]), tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
