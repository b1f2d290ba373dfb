from __future__ import annotations

import lzma
import os
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import orjson
import pytest

from crafter_pipeline.contracts import Reply, StopReason
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.reader import list_sessions, read_rollouts
from crafter_pipeline.traces.schema import OWN_TABLES, V3_TABLES
from crafter_pipeline.traces.store import TraceStore, default_trace_path

DATA = Path(__file__).parents[2] / "data"


def rows(path, sql):
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def test_a_rollout_is_stored_once(tmp_path, make_rollout):
    with TraceStore(tmp_path / "t.db") as store:
        assert store.add(make_rollout(), b"answer")
        assert not store.add(make_rollout(), b"another answer")
        assert store.answer("run-0") == b"answer"
        assert store.answer("run-1") is None
    assert rows(tmp_path / "t.db", "SELECT count(*) FROM session_timesteps") == [(2,)]


def test_the_rows_of_a_rollout_are_those_of_v3(make_db, make_rollout):
    path = make_db([make_rollout()])
    count = {t: rows(path, f"SELECT count(*) FROM {t}")[0][0] for t in V3_TABLES}
    assert count == dict.fromkeys(V3_TABLES, 0) | {
        "session_traces": 1,
        "session_timesteps": 2,
        "events": 4,
        "messages": 6,
        "outcome_rewards": 1,
        "event_rewards": 5,
    }
    assert rows(path, "SELECT step_id FROM session_timesteps") == [("decision_0",), ("decision_1",)]
    kinds = Counter(kind for (kind,) in rows(path, "SELECT reward_type FROM event_rewards"))
    assert kinds == {"sparse": 2, "achievement_delta": 2, "unique_achievement_delta": 1}
    content = [orjson.loads(c) for (c,) in rows(path, "SELECT content FROM messages ORDER BY id LIMIT 3")]
    assert content[1] == {"role": "user", "content": "tree east, step 0"}
    assert content[2] == [{"tool_name": "interact_many", "arguments": {"actions": ["do"]}}]


def test_old_readers_find_what_the_original_forgot(make_db, make_rollout):
    path = make_db([make_rollout(total_reward=1.5)])
    ((metadata, created_at),) = rows(path, "SELECT metadata, created_at FROM session_traces")
    assert orjson.loads(metadata)["model"] == "crafter-expert"
    assert datetime.fromisoformat(created_at).tzinfo is not None
    ((total, outcome),) = rows(path, "SELECT total_reward, reward_metadata FROM outcome_rewards")
    assert total == 1.5
    assert orjson.loads(outcome)["achievements"] == orjson.loads(outcome)["final_achievements"] == ["collect_wood"]
    ((note,),) = rows(path, "SELECT annotation FROM event_rewards WHERE reward_type = 'unique_achievement_delta'")
    assert orjson.loads(note) == dict.fromkeys(("achievements", "new_unique", "turned_true"), ["collect_wood"])


def test_the_schema_is_that_of_the_originals_database(make_db, sample_db):
    def schema(path):
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            names = db.execute("SELECT type, name, tbl_name FROM sqlite_master ORDER BY type, name").fetchall()
            ours = [n for n in names if n[2] not in OWN_TABLES]
            return ours, {
                name: [
                    db.execute(f"PRAGMA {pragma}({name})").fetchall()
                    for pragma in (("table_xinfo", "foreign_key_list") if kind != "index" else ("index_xinfo",))
                ]
                for kind, name, _ in ours
            }

    (ours, our_columns), (theirs, their_columns) = schema(make_db([])), schema(sample_db)
    assert ours == theirs
    assert our_columns == their_columns


def test_the_views_say_the_same_about_equal_rows(tmp_path, sample_db):
    path = tmp_path / "t.db"
    TraceStore(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("ATTACH ? AS theirs", (f"{sample_db}",))
        for table in V3_TABLES:
            db.execute(f"INSERT INTO {table} SELECT * FROM theirs.{table}")
        for view in ("model_usage_stats", "session_summary", "experiment_overview"):
            assert (
                db.execute(f"SELECT * FROM {view}").fetchall() == db.execute(f"SELECT * FROM theirs.{view}").fetchall()
            )


def test_a_rollout_comes_back_as_it_was(make_db, make_rollout, make_turn):
    call = {"id": "c1", "type": "function", "function": {"name": "interact_many", "arguments": '{"actions":["do"]}'}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    turns = (
        make_turn(
            0, reply=Reply("", thinking="x", tool_calls=(call, {**call, "extra": 1}), finish_reason="tool_calls")
        ),
        make_turn(1, reply=Reply("<think>a</think> dance"), actions=("noop",), parse_failure="no action in 'dance'"),
        make_turn(2, messages=({"role": "user", "content": [{"type": "text", "text": "look"}, picture]},)),
        make_turn(3, reward=0.25, unlocked=("wake_up",), info={"stepwise": {"indicator": 1}}),
        make_turn(4, messages=(*make_turn().messages, {"role": "assistant", "content": None, "tool_calls": [call]})),
    )
    rollout = make_rollout(
        turns=turns, stop_reason=StopReason.DEATH, total_reward=0.25, tools=({"type": "function"},), metadata={"a": [1]}
    )
    assert list(read_rollouts(make_db([rollout]))) == [rollout]


def test_a_system_prompt_is_told_once_beside_the_calls(make_db, make_rollout, make_turn):
    other = make_turn(2, messages=({"role": "system", "content": "Another."}, {"role": "user", "content": "x"}))
    path = make_db([make_rollout(turns=(make_turn(0), make_turn(1), other))])
    sql = "SELECT content FROM messages WHERE message_type = 'system' ORDER BY id"
    first, same, another = (orjson.loads(content) for (content,) in rows(path, sql))
    assert first["content"].startswith("You play")
    assert same == {"role": "system", "content": "", "same_as": "decision_0"}
    assert another["content"] == "Another."


def test_a_picture_is_stored_once_with_its_type(make_db, make_rollout, make_turn):
    data = "iVBORw0KGgo" * 20
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    content = [{"type": "text", "text": "look"}, picture]
    rollout = make_rollout(turns=(make_turn(0, messages=({"role": "user", "content": content},)),))
    path = make_db([rollout])
    with closing(sqlite3.connect(path)) as db:
        assert "\n".join(db.iterdump()).count(data) == 1
    ((calls,),) = rows(path, "SELECT call_records FROM events WHERE event_type = 'cais'")
    part = orjson.loads(calls)[0]["input_messages"][0]["parts"][1]
    assert part == {"type": "image", "mime_type": "image/png", "base64_data": data}
    assert rows(path, "SELECT json_extract(content, '$.content') FROM messages WHERE message_type = 'user'") == [
        ("look\n[image]",)
    ]
    assert list(read_rollouts(path)) == [rollout]


@pytest.mark.parametrize(
    "content",
    [
        "",
        None,
        [],
        [{"type": "text", "text": "only text"}],
        [{"type": "text", "text": "a", "cache_control": {}}],
        [{"type": "image_url", "image_url": {"url": "https://pictures.test/1.png"}}],
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}}],
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}],
    ],
)
def test_any_content_of_a_message_comes_back(make_db, make_rollout, make_turn, content):
    rollout = make_rollout(turns=(make_turn(0, messages=({"role": "user", "content": content},)),))
    assert list(read_rollouts(make_db([rollout]))) == [rollout]


def test_token_ids_and_logprobs_come_back(make_db, make_rollout, make_turn):
    captured = Reply("do", prompt_token_ids=(1, 2, 3), token_ids=(4, 151_643), logprobs=(-0.12345678901234567, 0.0))
    partly = Reply("do", token_ids=(), logprobs=None)
    rollout = make_rollout(turns=(make_turn(0, reply=captured), make_turn(1, reply=partly), make_turn(2)))
    path = make_db([rollout])
    assert list(read_rollouts(path)) == [rollout]
    ((first,), _, (third,)) = rows(path, "SELECT call_records FROM events WHERE event_type = 'cais' ORDER BY id")
    assert orjson.loads(first)[0]["token_traces"][0]["token_ids"] == [4, 151_643]
    assert "token_traces" not in orjson.loads(third)[0]


def test_a_state_is_stored_once(make_db, make_rollout, make_turn):
    """The state after a turn is the one before the next, unless it is not."""
    turns = (
        make_turn(0, observation="a", next_observation="b"),
        make_turn(1, observation="b", next_observation="c"),
        make_turn(2, observation="another", next_observation=""),
        make_turn(3, observation="e", next_observation="f"),
    )
    rollout = make_rollout(turns=turns)
    path = make_db([rollout])
    sql = "SELECT system_state_{} ->> '$.text' FROM events WHERE event_type = 'environment' ORDER BY id"
    assert rows(path, sql.format("before")) == [("a",), ("b",), ("another",), ("e",)]
    assert rows(path, sql.format("after")) == [(None,), ("c",), ("",), ("f",)]
    assert list(read_rollouts(path)) == [rollout]


def test_a_database_that_keeps_both_states_is_read_exactly(tmp_path, make_rollout, make_turn):
    """As this package wrote it before a state was stored once, with everything that a turn can hold."""
    path = tmp_path / "old.db"
    path.write_bytes(lzma.decompress((DATA / "traces_both_states.db.xz").read_bytes()))
    call = {"id": "c1", "type": "function", "function": {"name": "interact_many", "arguments": '{"actions":["do"]}'}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    system, reply = make_turn().messages[0], {"role": "assistant", "content": "do"}
    asked = [{"role": "user", "content": f"step {i}"} for i in range(4)]
    everything = (
        make_turn(
            0,
            reply=Reply("", thinking="x", tool_calls=(call, {**call, "extra": 1}), finish_reason="tool_calls"),
            started_at=1_790_000_000.1234567,
        ),
        make_turn(1, reply=Reply("<think>a</think> dance"), actions=("noop",), parse_failure="no action in 'dance'"),
        make_turn(2, messages=({"role": "user", "content": [{"type": "text", "text": "look"}, picture]},)),
        make_turn(3, reward=0.25, unlocked=("wake_up",), info={"stepwise": {"indicator": 1}}),
        make_turn(4, messages=(*make_turn().messages, {"role": "assistant", "content": None, "tool_calls": [call]})),
        make_turn(5, observation="another view than the turn before left", next_observation=""),
    )
    history = tuple(
        make_turn(i, messages=(system, *(m for each in asked[:i] for m in (each, reply)), asked[i])) for i in range(4)
    )
    facts = {"tools": ({"type": "function"},), "metadata": {"policy_config": {"temperature": 0.5}}}
    assert list(read_rollouts(path)) == [
        make_rollout("run-all", turns=everything, stop_reason=StopReason.DEATH, total_reward=0.25, **facts),
        make_rollout("run-history", turns=history, created_at=1_790_000_001.7654321),
        make_rollout("run-empty", turns=(), achievements=(), total_reward=0.0, env_steps=0, created_at=1_790_000_002.0),
    ]
    with TraceStore(path) as store:  # and continued
        assert not store.add(make_rollout("run-all")) and store.add(make_rollout("run-new"))
        assert store.answer("run-all") == b'{"run_id":"0"}' and store.add_attempt("run-x", "again") == 2
    assert [info.session_id for info in list_sessions(path)][0] == "run-all" and len(list_sessions(path)) == 4


def test_the_views_say_when_a_model_was_used(make_db, make_rollout):
    path = make_db([make_rollout()])
    ((first, last),) = rows(path, "SELECT first_used, last_used FROM model_usage_stats")
    assert first == "2026-09-21T14:13:20.135706+00:00" and first < last
    sql = "SELECT count(*) FROM events WHERE event_type = 'cais' AND abs(unixepoch(created_at) - event_time) > 1"
    assert rows(path, sql) == [(0,)]


def test_a_call_that_goes_on_from_a_lost_one_is_damage(make_db, make_rollout, make_turn):
    first, second = make_turn(0), make_turn(1)
    answer = {"role": "assistant", "content": "do"}
    longer = (*first.messages, answer, second.messages[-1])
    path = make_db([make_rollout(turns=(first, make_turn(1, messages=longer)))])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM events WHERE id = 1")
    with pytest.raises(DataError, match="damaged"):
        list(read_rollouts(path))


def test_rollouts_are_read_in_the_order_asked_for(make_db, make_rollout):
    path = make_db([make_rollout(f"run-{i}", seed=i) for i in range(3)])
    assert [r.seed for r in read_rollouts(path, ["run-2", "run-0"])] == [2, 0]
    with pytest.raises(DataError, match="run-9"):
        list(read_rollouts(path, ["run-9"]))


def test_a_rollout_without_turns_is_kept(make_db, make_rollout):
    rollout = make_rollout(turns=(), achievements=(), total_reward=0.0, env_steps=0)
    assert list(read_rollouts(make_db([rollout]))) == [rollout]


def test_a_lone_surrogate_does_not_stop_the_store(make_db, make_rollout, make_turn):
    path = make_db([make_rollout(turns=(make_turn(0, reply=Reply("do \ud800")),))])
    assert next(read_rollouts(path)).turns[0].reply.content == "do ?"


def test_the_original_s_rollouts_are_read(sample_db):
    rollouts = list(read_rollouts(sample_db))
    assert [(r.seed, len(r.turns), r.total_reward, r.env_steps) for r in rollouts] == [
        (0, 20, 4.0, 160),
        (3, 20, 4.0, 160),
        (6, 10, 1.0, 50),
    ]
    assert rollouts[1].turns[0].reply.thinking == "I look around and then I act."
    assert rollouts[0].turns[7].unlocked == ("wake_up",)
    assert rollouts[0].turns[0].reply.content == ""  # its response JSON stood there
    assert [s.achievements for s in list_sessions(sample_db)] == [r.achievements for r in rollouts]


def test_many_threads_store_without_loss(tmp_path, make_rollout):
    with TraceStore(tmp_path / "t.db") as store, ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda i: store.add(make_rollout(f"run-{i % 40}", seed=i % 40)), range(80)))
    assert sum(stored) == 40
    assert [len(r.turns) for r in read_rollouts(tmp_path / "t.db")] == [2] * 40


def test_two_stores_on_one_file_mix_nothing_up(tmp_path, make_rollout):
    with TraceStore(tmp_path / "t.db") as a, TraceStore(tmp_path / "t.db") as b:
        for i in range(10):
            assert (a if i % 2 else b).add(make_rollout(f"run-{i}", seed=i))
    assert sorted(r.seed for r in read_rollouts(tmp_path / "t.db")) == list(range(10))


def test_a_rollout_that_cannot_be_stored_leaves_nothing(tmp_path, make_rollout, make_turn):
    with TraceStore(tmp_path / "t.db") as store:
        with pytest.raises(sqlite3.IntegrityError):
            store.add(make_rollout(turns=(make_turn(0), make_turn(0))))
        assert store.add(make_rollout())
    assert rows(tmp_path / "t.db", "SELECT count(*) FROM events") == [(4,)]


def test_failed_attempts_never_touch_the_v3_tables(tmp_path):
    with TraceStore(tmp_path / "t.db") as store:
        assert [store.add_attempt("run-0", "model timed out") for _ in range(2)] == [1, 2]
    assert rows(tmp_path / "t.db", "SELECT run_id, attempt, error FROM rollout_attempts")[1][1:] == (
        2,
        "model timed out",
    )
    assert rows(tmp_path / "t.db", "SELECT count(*) FROM session_traces") == [(0,)]


def test_the_original_s_database_is_continued(tmp_path, sample_db, make_rollout):
    path = tmp_path / "t.db"
    path.write_bytes(sample_db.read_bytes())
    with TraceStore(path) as store:
        assert store.add(make_rollout())
    assert len(list_sessions(path)) == 4


def test_a_closed_store_is_one_plain_file(tmp_path, make_db, make_rollout):
    path = make_db([make_rollout()])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("no database, but long enough"), "not a SQLite database"),
        (lambda path: path.parent.joinpath("t.db").symlink_to("/proc/nowhere/t.db"), "cannot be"),
    ],
    ids=["folder", "text file", "not writable"],
)
def test_a_path_that_cannot_be_a_store_is_one_clear_line(tmp_path, prepare, sentence):
    prepare(tmp_path / "t.db")
    with pytest.raises(DataError, match=sentence) as caught:
        TraceStore(tmp_path / "t.db")
    assert str(tmp_path / "t.db") in str(caught.value) and "\n" not in str(caught.value)


def test_a_newer_schema_is_refused(make_db):
    path = make_db([])
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(DataError, match="newer crafter-pipeline"):
        TraceStore(path)


def test_default_names_are_unique(tmp_path):
    with ThreadPoolExecutor(8) as pool:  # in the same second, before any of them opens its database
        names = [path.name for path in pool.map(lambda _: default_trace_path(tmp_path / "new"), range(8))]
    assert len(set(names)) == 8 and all(n.startswith("task_app_traces_20") for n in names)


def test_a_turn_is_compact(make_db, make_rollout, make_turn):
    user = {"role": "user", "content": "o" * 250}
    turns = tuple(
        make_turn(i, messages=({"role": "system", "content": "s" * 50}, user), observation="o" * 200)
        for i in range(100)
    )
    empty = os.path.getsize(make_db([], "empty.db"))
    path = make_db([replace(make_rollout(f"run-{i}"), turns=turns) for i in range(10)])
    assert (os.path.getsize(path) - empty) / 1000 < 3700
