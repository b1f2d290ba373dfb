"""Reading goes on past damage, reads the original and its eval, and says in one line what is no trace database."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.catalog import resolve
from crafter_pipeline.traces.reader import find_rollout, list_attempts, list_sessions, read_rollouts, read_stored
from crafter_pipeline.traces.store import TraceStore


def test_a_damaged_rollout_is_told_and_the_others_are_read(make_db, make_rollout, change):
    path = make_db([make_rollout("a"), make_rollout("b"), make_rollout("c")])
    change(path, "UPDATE events SET call_records = '[{' WHERE session_id = 'b' AND event_type = 'cais'")
    damaged = []
    assert [r.run_id for r in read_rollouts(path, damaged=damaged.append)] == ["a", "c"]
    assert [d.session_id for d in damaged] == ["b"] and "turn 0, cais event's call_records is no JSON" in damaged[
        0
    ].what
    with pytest.raises(DataError, match="rollout b is damaged"):
        list(read_rollouts(path))


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("UPDATE session_traces SET metadata = '{' WHERE session_id = 'b'", "metadata is no JSON"),
        ("UPDATE session_traces SET metadata = '[]' WHERE session_id = 'b'", "no JSON object"),
        ("UPDATE messages SET content = '[' WHERE session_id = 'b' AND message_type = 'assistant'", "messages.content"),
        ("UPDATE event_rewards SET annotation = '{' WHERE session_id = 'b'", "event_rewards.annotation"),
        ("UPDATE session_timesteps SET turn_number = 'x' WHERE session_id = 'b'", "another shape"),
    ],
)
def test_every_column_that_is_read_is_checked(make_db, make_rollout, change, sql, says):
    path = make_db([make_rollout("a"), make_rollout("b")])
    change(path, sql)
    stored = {s.session_id: s for s in read_stored(path)}
    assert stored["a"].problems == () and says in "; ".join(stored["b"].problems)


def test_the_original_s_sample_is_read_with_one_broken_row(sample_db, change):
    whole = list(read_rollouts(sample_db))
    assert len(whole) == 3 and sum(bool(turn.reply.thinking) for r in whole for turn in r.turns) == 20
    change(sample_db, "UPDATE events SET call_records = substr(call_records, 9) WHERE id = 1")
    damaged = []
    rest = list(read_rollouts(sample_db, damaged=damaged.append))
    assert rest == [r for r in whole if r.run_id != damaged[0].session_id] and len(damaged) == 1
    assert whole[0].turns[0].reply.prompt_tokens == 728  # of the event: its call record says null


def test_a_database_of_the_original_s_eval_is_read(eval_db):
    (rollout,) = read_rollouts(eval_db)
    assert (rollout.environment, rollout.seed, rollout.model) == ("crafter", 5, "qwen/qwen3-32b")
    assert rollout.achievements == ("collect_wood",) and rollout.turns[0].actions == ("do",)
    assert rollout.turns[0].reply.thinking == "wood!" and rollout.turns[0].reply.prompt_tokens == 11
    assert rollout.metadata["task_split"] == "train" and rollout.metadata["judge_scores"] == {"style": 0.5}
    (info,) = list_sessions(eval_db)
    assert (info.environment, info.seed, info.reward, info.achievements) == ("crafter", 5, None, ("collect_wood",))


def test_the_beginning_of_a_run_id_is_enough(make_db, make_rollout):
    paths = [make_db([make_rollout("abc-1"), make_rollout("abc-12")]), make_db([make_rollout("b-1")], "b.db")]
    assert find_rollout(paths, "b").session_id == "b-1"
    assert find_rollout(paths, "abc-1").session_id == "abc-1"
    with pytest.raises(DataError, match="2 run ids: abc-1, abc-12"):
        find_rollout(paths, "abc")
    with pytest.raises(DataError, match="None of the 2 databases"):
        find_rollout(paths, "z")
    with pytest.raises(DataError, match="holds no rollout 'z'"):
        find_rollout(paths[:1], "z")


def test_failed_attempts_are_listed_and_the_original_has_none(tmp_path, sample_db):
    with TraceStore(tmp_path / "t.db") as store:
        store.add_attempt("run-1", "ModelError: gone", 1_790_000_000.0)
    (attempt,) = list_attempts(tmp_path / "t.db")
    assert (attempt.run_id, attempt.attempt, attempt.error) == ("run-1", 1, "ModelError: gone")
    assert list_attempts(sample_db) == []


def test_what_is_no_trace_database_is_one_clear_line(bad_input):
    with pytest.raises(DataError) as raised:
        for path in resolve([bad_input]):
            list(read_rollouts(path))
    assert "\n" not in str(raised.value) and len(str(raised.value)) > 30


def test_a_locked_database_is_one_clear_line(make_db, make_rollout, monkeypatch):
    monkeypatch.setattr("crafter_pipeline.traces.connect.BUSY_SECONDS", 0.05)
    path = make_db([make_rollout()])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DataError, match="Another process holds it"):
        list_sessions(path)
    other.close()


BREAKS_OFF = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
db.execute("DELETE FROM events")
db.execute("UPDATE session_traces SET metadata = 'gone'")
db.execute("UPDATE messages SET content = content || 'x'")
os._exit(0)
"""


def test_a_write_that_broke_off_is_undone_before_anything_is_read(make_db, make_rollout):
    path = make_db([make_rollout(f"run-{i}") for i in range(30)])
    before = list(read_rollouts(path))
    subprocess.run([sys.executable, "-c", BREAKS_OFF, str(path)], check=True)
    assert path.with_name(path.name + "-journal").exists()
    assert list(read_rollouts(path)) == before
