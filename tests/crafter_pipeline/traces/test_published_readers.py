"""What the published exporter and filter read in our databases: the questions that these tools ask.

The tools themselves are run in `tests/interop`.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from crafter_pipeline.contracts import Reply

CALL = {"id": "c1", "type": "function", "function": {"name": "interact_many", "arguments": '{"actions":["do"]}'}}


@pytest.fixture
def path(make_db, make_rollout, make_turn) -> Path:
    """`one` unlocked an achievement in its second turn, `two` unlocked two at once."""
    answer = Reply("", "a thought", (CALL,), "tool_calls")

    def rollout(run_id, *unlocked):
        turns = (make_turn(0, reply=answer), make_turn(1, reply=answer, reward=len(unlocked), unlocked=unlocked))
        return make_rollout(run_id, turns=turns, achievements=unlocked, total_reward=float(len(unlocked)))

    return make_db([rollout("one", "collect_wood"), rollout("two", "collect_wood", "place_table")])


def rows(path: Path, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def test_the_exporter_finds_unlocks_by_event(path):
    sql = """
        SELECT r.session_id, e.metadata ->> '$.turn', r.annotation -> '$.{}' FROM event_rewards r
        JOIN events e ON e.id = r.event_id WHERE r.reward_type = '{}' AND r.reward_value > 0 ORDER BY r.id
    """
    expected = [("one", 1, '["collect_wood"]'), ("two", 1, '["collect_wood","place_table"]')]
    assert rows(path, sql.format("new_unique", "unique_achievement_delta")) == expected
    assert rows(path, sql.format("turned_true", "achievement_delta")) == expected


def test_the_exporter_finds_totals_and_models(path):
    totals = "SELECT session_id, total_reward, reward_metadata -> '$.achievements' FROM outcome_rewards ORDER BY 1"
    assert rows(path, totals) == [("one", 1.0, '["collect_wood"]'), ("two", 2.0, '["collect_wood","place_table"]')]
    models = "SELECT DISTINCT session_id, model_name, provider FROM events WHERE event_type = 'cais' ORDER BY 1"
    assert rows(path, models) == [(name, "crafter-expert", "custom") for name in ("one", "two")]


def test_the_exporter_finds_prompt_and_call_in_every_record(path):
    for text, metadata in rows(path, "SELECT call_records, metadata FROM events WHERE event_type = 'cais'"):
        (record,) = json.loads(text)
        roles = [(m["role"], m["parts"][0]["text"]) for m in record["input_messages"]]
        assert [role for role, _ in roles] == ["system", "user"] and all(content for _, content in roles)
        (call,) = record["output_tool_calls"]
        assert (call["name"], call["arguments_json"], call["call_id"]) == ("interact_many", '{"actions":["do"]}', "c1")
        assert json.loads(metadata)["turn"] in (0, 1)


def test_the_filter_pairs_each_user_message_with_an_assistant_s(path):
    messages = rows(path, "SELECT message_type, content FROM messages WHERE session_id = 'one' ORDER BY timestamp, id")
    assert [kind for kind, _ in messages] == ["system", "user", "assistant"] * 2
    assert json.loads(messages[1][1])["content"] == "tree east, step 0"
    assert json.loads(messages[2][1]) == [{"tool_name": "interact_many", "arguments": {"actions": ["do"]}}]
    assert rows(path, "SELECT DISTINCT metadata ->> '$.model' FROM session_traces") == [("crafter-expert",)]
