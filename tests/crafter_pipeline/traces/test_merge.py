"""A merge holds every rollout once, with answers and attempts, and is there whole or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.merge import merge
from crafter_pipeline.traces.reader import list_attempts, read_rollouts
from crafter_pipeline.traces.store import TraceStore
from crafter_pipeline.traces.verify import verify


def test_rollouts_of_ours_and_the_original_s_are_merged_exactly(tmp_path, make_db, play, sample_db, eval_db):
    ours = make_db([play("a"), play("b")])
    merged = merge([ours, sample_db, eval_db], tmp_path / "new" / "all.db")
    assert (merged.rollouts, merged.same, merged.conflicts, merged.damaged) == (6, 0, [], [])
    before = {r.run_id: r for path in (ours, sample_db, eval_db) for r in read_rollouts(path)}
    assert {r.run_id: r for r in read_rollouts(merged.out)} == before
    assert verify([merged.out]).findings == []


def test_equal_rollouts_are_kept_once_and_different_ones_are_listed(tmp_path, make_db, play):
    first, second = make_db([play("a"), play("b")]), make_db([play("a"), play("b", seed=8)], "second.db")
    merged = merge([first, second], tmp_path / "all.db")
    assert (merged.rollouts, merged.same) == (2, 1)
    assert [(c.run_id, c.kept, c.left_out) for c in merged.conflicts] == [("b", first, second)]
    assert next(read_rollouts(merged.out, ["b"])).seed == 3


def test_answers_and_attempts_come_along_once(tmp_path, play):
    for name in ("one.db", "two.db"):
        with TraceStore(tmp_path / name) as store:
            store.add(play("a"), b'{"run_id": "a"}', "digest")
            store.add_attempt("b", "ModelError: gone", 1_790_000_000.0)
    merged = merge([tmp_path / "one.db", tmp_path / "two.db"], tmp_path / "all.db")
    assert (merged.answers, merged.attempts) == (1, 1)
    assert list_attempts(merged.out) == list_attempts(tmp_path / "one.db")
    with TraceStore(merged.out) as store:
        assert store.answer("a") == b'{"run_id": "a"}'


def test_a_damaged_rollout_is_left_out_and_listed(tmp_path, make_db, play, change):
    path = make_db([play("a"), play("b")])
    change(path, "UPDATE events SET metadata = '{' WHERE session_id = 'a'")
    merged = merge([path], tmp_path / "all.db")
    assert merged.rollouts == 1 and [d.session_id for d in merged.damaged] == ["a"]


def test_nothing_is_left_when_it_fails(tmp_path, make_db, play, bad_input):
    whole, out = make_db([play()], "good.db"), tmp_path / "out" / "all.db"
    from crafter_pipeline.traces.catalog import resolve

    with pytest.raises(DataError):
        merge(resolve([whole, bad_input]), out)
    assert not out.parent.exists() or not any(out.parent.iterdir())


def test_an_existing_file_is_never_replaced(tmp_path, make_db, play):
    path = make_db([play()])
    before = path.read_bytes()
    with pytest.raises(DataError, match="exists already"):
        merge([path], path)
    assert path.read_bytes() == before


def test_what_an_eval_wrote_stands_where_filters_read_it(tmp_path, eval_db):
    import json
    import sqlite3

    merge([eval_db], tmp_path / "all.db")
    ((text,),) = sqlite3.connect(tmp_path / "all.db").execute("SELECT metadata FROM session_traces")
    metadata = json.loads(text)
    assert (metadata["task_split"], metadata["official_score"]) == ("train", 1.0)
    assert replace(next(read_rollouts(tmp_path / "all.db"))) == next(read_rollouts(eval_db))
