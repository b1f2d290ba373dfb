"""Snapshots, answers and JSONL become rollouts again; a bad file or line never stops the rest."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from crafter_pipeline.traces.import_files import import_files
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.snapshots import write_snapshot
from crafter_pipeline.traces.wire import trace_payload


@pytest.fixture
def answer(play):
    def make(run_id, **changes):
        return {"run_id": run_id, "trajectories": [], "trace": trace_payload(play(run_id), "structured")} | changes

    return make


def test_snapshots_answers_and_lines_are_stored_exactly(tmp_path, play, answer):
    snapshot = write_snapshot(play("a"), tmp_path)
    whole = tmp_path / "answer.json"
    whole.write_text(json.dumps(answer("b")))
    lines = tmp_path / "many.jsonl"
    lines.write_text(
        "".join(json.dumps(x) + "\n" for x in (answer("c"), trace_payload(play("d"), "structured"))) + "\n"
    )
    imported = import_files([snapshot, whole, lines], tmp_path / "t.db")
    assert imported.stored == ["a", "b", "c", "d"] and imported.refused == []
    assert {r.run_id: r for r in read_rollouts(tmp_path / "t.db")} == {x: play(x) for x in "abcd"}


def test_storing_twice_is_storing_once(tmp_path, play):
    snapshot = write_snapshot(play("a"), tmp_path)
    import_files([snapshot], tmp_path / "t.db")
    again = import_files([snapshot, snapshot], tmp_path / "t.db")
    assert (again.stored, again.already_there, again.refused) == ([], ["a", "a"], [])


def test_another_rollout_of_a_stored_run_id_is_refused(tmp_path, play):
    import_files([write_snapshot(play("a"), tmp_path / "one")], tmp_path / "t.db")
    other = import_files([write_snapshot(play("a", seed=9), tmp_path / "two")], tmp_path / "t.db")
    assert other.stored == [] and "another rollout a" in other.refused[0].why
    assert next(read_rollouts(tmp_path / "t.db")).seed == 3


def test_bad_files_and_lines_are_named_and_the_rest_is_stored(tmp_path, play, answer):
    good = write_snapshot(play("a"), tmp_path)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "lines.jsonl").write_text(f"no\n{json.dumps(answer('b'))}\n{json.dumps(answer('c', trace=None))}\n[]\n")
    (tmp_path / "empty_trace.json").write_text(json.dumps(trace_payload(replace(play("e"), turns=()), "structured")))
    names = ["broken.json", "lines.jsonl", "empty_trace.json", "missing.json"]
    imported = import_files([*(tmp_path / name for name in names), good], tmp_path / "t.db")
    assert imported.stored == ["b", "a"]
    wheres = [r.where.rpartition("/")[2] for r in imported.refused]
    assert wheres == [
        "broken.json",
        "lines.jsonl:1",
        "lines.jsonl:3",
        "lines.jsonl:4",
        "empty_trace.json",
        "missing.json",
    ]
    assert all(r.why and "\n" not in r.why for r in imported.refused)


def test_no_database_is_made_for_nothing(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    assert import_files([tmp_path / "x.json"], tmp_path / "t.db").refused
    assert not (tmp_path / "t.db").exists()


def test_a_hand_edited_snapshot_counts_as_it_is(tmp_path, play):
    path = write_snapshot(play("a"), tmp_path)
    payload = json.loads(path.read_text())
    payload["session_id"] = "a-edited"
    path.write_text(json.dumps(payload, indent=2))
    assert import_files([path], tmp_path / "t.db").stored == ["a-edited"]
