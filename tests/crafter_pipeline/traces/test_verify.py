"""Every kind of damage is found, and a whole database, ours or the original's, has no finding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from crafter_pipeline.traces.store import TraceStore
from crafter_pipeline.traces.verify import verify


@pytest.fixture
def whole(tmp_path, play) -> Path:
    with TraceStore(tmp_path / "t.db") as store:
        for i in range(3):
            store.add(play(f"run-{i}", seed=i), json.dumps({"run_id": f"run-{i}"}).encode())
    return tmp_path / "t.db"


def test_whole_databases_have_no_finding(whole, sample_db, eval_db):
    result = verify([whole, sample_db, eval_db])
    assert result.findings == [] and (result.databases, result.rollouts, result.turns) == (3, 7, 81)


def test_a_database_that_is_being_written_is_read_as_of_one_moment(whole, play):
    with TraceStore(whole) as store:
        store.add(play("run-4"))
        assert verify([whole]).findings == []


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("DELETE FROM events WHERE id = 2", "it says 20 events, and 19 are there"),
        ("DELETE FROM messages WHERE id = 1", "it says 30 messages, and 29 are there"),
        ("DELETE FROM session_timesteps WHERE id = 1", "belong to no row of session_timesteps"),
        ("DELETE FROM session_traces WHERE session_id = 'run-0'", "an answer is stored, and its rollout is not"),
        ("UPDATE session_timesteps SET step_index = 7 WHERE id = 2", "has the index 7 instead of"),
        ("DELETE FROM outcome_rewards WHERE id = 1", "0 rows of outcome_rewards"),
        ("UPDATE outcome_rewards SET total_reward = 9 WHERE id = 1", "outcome_rewards says a return of 9"),
        ("UPDATE events SET reward = 7.5 WHERE id = 2", "its turns' rewards sum to"),
        ("UPDATE events SET call_records = '{' WHERE id = 1", "call_records is no JSON"),
        ("UPDATE rollout_answers SET answer = x'00ff' WHERE session_id = 'run-0'", "cannot be unpacked"),
        ("DROP TABLE rollout_attempts", "table rollout_attempts"),
    ],
)
def test_damage_is_an_error(whole, change, sql, says):
    change(whole, sql)
    result = verify([whole])
    assert says in " | ".join(f.what for f in result.findings if f.severity == "error")


@pytest.mark.parametrize("sql", ["DROP INDEX idx_event_type", "DROP VIEW session_summary"])
def test_a_missing_index_or_view_is_a_warning(whole, change, sql):
    change(whole, sql)
    (finding,) = verify([whole]).findings
    assert finding.severity == "warning" and sql.split()[-1] in finding.what


def test_an_answer_of_another_rollout_is_an_error(tmp_path, play):
    with TraceStore(tmp_path / "t.db") as store:
        store.add(play("run-1"), b'{"run_id": "run-2"}')
    assert "its stored answer is that of rollout 'run-2'" in verify([tmp_path / "t.db"]).findings[0].what


def test_a_prompt_that_builds_on_a_lost_one_is_an_error(tmp_path, play, change):
    rollout = play()
    system, user = rollout.turns[0].messages
    longer = ({"role": "system", "content": "Play."}, user, {"role": "assistant", "content": "do"}, user)
    turns = (rollout.turns[0], replace(rollout.turns[1], messages=longer), *rollout.turns[2:])
    with TraceStore(tmp_path / "t.db") as store:
        store.add(replace(rollout, turns=turns))
    assert verify([tmp_path / "t.db"]).findings == []
    change(tmp_path / "t.db", "UPDATE events SET call_records = '[{}]' WHERE id = 1")
    assert "goes on from a call that the trace lacks" in verify([tmp_path / "t.db"]).findings[0].what


def test_a_run_id_in_two_databases_is_told(make_db, play):
    paths = [make_db([play("a"), play("b")]), make_db([play("a"), play("b", seed=9)], "b.db")]
    told = {(f.session_id, f.severity) for f in verify(paths).findings}
    assert told == {("a", "warning"), ("b", "error")}


def test_a_file_that_cannot_be_read_is_one_finding_and_the_others_are_checked(bad_input, whole):
    path = Path(bad_input)
    result = verify([path, whole])
    assert result.rollouts >= 3 and result.errors >= 1
    assert all("\n" not in f.what for f in result.findings)


def test_a_page_that_is_overwritten_is_found(whole):
    content = bytearray(whole.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = b"\xff" * 3000
    whole.write_bytes(content)
    assert verify([whole]).errors
