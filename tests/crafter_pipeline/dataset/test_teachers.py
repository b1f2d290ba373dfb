"""A chat model as the teacher of another player's states."""

from __future__ import annotations

import asyncio

import httpx
import orjson
import pytest

from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.config import FilterConfig
from crafter_pipeline.contracts import Reply
from crafter_pipeline.dataset import build as building
from crafter_pipeline.dataset import teachers
from crafter_pipeline.dataset.build import build_dataset
from crafter_pipeline.dataset.label_store import LabelStore, labels_path
from crafter_pipeline.environments import CRAFTER
from crafter_pipeline.errors import ConfigError, EmptyDatasetError, ModelError
from crafter_pipeline.settings import Settings
from tests.standins.chat_model import ScriptedChat, tool_call

TOOL = CRAFTER.tool("Act.", {"type": "array", "items": {"type": "string"}})
URL = "http://teacher/v1"


@pytest.fixture
def label(tmp_path, make_db, make_rollout, monkeypatch):
    """`label(chat, rollout, …)` -> (manifest, rows), with the labels of `chat` as what is taught."""

    def run(chat, *rollouts, **export):
        monkeypatch.setattr(
            building, "ChatClient", lambda s: ChatClient(s, transport=chat.transport(), tries=1, first_wait_seconds=0)
        )
        asked = {"label": "big-model", "target": "label", **export}
        path = tmp_path / "traces.db"
        path = path if path.exists() else make_db(rollouts or [make_rollout()])
        manifest = build_dataset([path], FilterConfig(export=asked), tmp_path / "d.jsonl", inference_url=URL)
        return manifest, [orjson.loads(line) for line in (tmp_path / "d.jsonl").read_bytes().splitlines()]

    return run


def test_it_is_shown_what_the_player_was_shown_and_its_thoughts_are_kept(label, make_rollout):
    chat = ScriptedChat({"content": "Action: Move Right.", "reasoning_content": "the tree is east"})
    manifest, rows = label(chat)
    assert [body["messages"] for body in chat.bodies] == [list(t.messages) for t in make_rollout().turns]
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in chat.bodies} == {
        ("big-model", 0.0, 1024)
    }
    taught = "<think>\nthe tree is east\n</think>\n\nmove_right"
    assert [row["messages"][-1]["content"] for row in rows] == [taught] * 2, "in the player's words"
    assert rows[0]["answer"]["content"].endswith("do") and rows[0]["metadata"]["label_model"] == "big-model"
    assert manifest.labels == {"big-model": 2}
    assert manifest.label_usage == {"answers": 2, "prompt_tokens": 22, "completion_tokens": 4}


def test_where_tools_were_offered_the_label_is_a_call(label, make_rollout, make_turn):
    turn = make_turn(0)
    chat = ScriptedChat(tool_call({"actions": ["do", "do"]}))
    _, rows = label(chat, make_rollout(turns=(turn,), tools=(TOOL,)))
    assert chat.bodies[0]["tool_choice"] == {"type": "function", "function": {"name": CRAFTER.tool_name}}
    (call,) = rows[0]["messages"][-1]["tool_calls"]
    assert orjson.loads(call["function"]["arguments"]) == {"actions": ["do", "do"]}


def test_what_cannot_be_read_or_failed_leaves_its_turn_out_and_is_listed(label, make_rollout, make_turn):
    said = ["do", "I had rather not", httpx.Response(400, json={"error": "maximum context length is 12"})]
    turns = tuple(make_turn(i) for i in range(3))
    manifest, rows = label(ScriptedChat(lambda body, n: said[int(body["messages"][-1]["content"][-1])]),
                           make_rollout(turns=turns))  # fmt: skip
    assert [row["metadata"]["turn"] for row in rows] == [0]
    reasons = {row.turn: row.reason for row in manifest.skipped}
    assert "the label of big-model cannot be read: no known action" in reasons[1]
    assert "big-model gave no label" in reasons[2]
    assert any("2 stored rows cannot be read or labelled" in w for w in manifest.warnings)


def test_nothing_is_asked_twice(label):
    chat = ScriptedChat("do")
    first = label(chat)
    assert len(chat.requests) == 2
    assert label(chat) == first and len(chat.requests) == 2
    label(chat, label_max_tokens=9)
    assert len(chat.requests) == 4, "another question is asked"


def test_a_teacher_that_is_gone_ends_it_and_its_answers_are_kept(label, make_rollout, make_turn, monkeypatch, tmp_path):
    monkeypatch.setattr(teachers, "FAILURES_IN_A_ROW", 3)
    rollout = make_rollout(turns=tuple(make_turn(i) for i in range(9)))
    down = httpx.Response(401, json={"error": "wrong key"})
    with pytest.raises(ModelError, match="failed 3 times in a row.*wrong key"):
        label(ScriptedChat(lambda body, n: "do" if n < 4 else down), rollout)
    assert not (tmp_path / "d.jsonl").exists()
    chat = ScriptedChat("do")
    _, rows = label(chat)
    assert len(rows) == 9 and len(chat.requests) == 5


def test_calls_wait_together_and_rows_keep_their_order(label, make_rollout, make_turn):
    async def late(body, n):
        await asyncio.sleep(0)

    chat = ScriptedChat("do", latency_s=0.05)
    _, rows = label(chat, make_rollout(turns=tuple(make_turn(i) for i in range(12))))
    assert chat.most_at_once > 4
    assert [row["metadata"]["turn"] for row in rows] == list(range(12))


def test_turns_that_no_row_is_made_of_are_not_asked_about(tmp_path, make_db, make_rollout, make_turn, monkeypatch):
    chat = ScriptedChat("do")
    monkeypatch.setattr(building, "ChatClient", lambda s: ChatClient(s, transport=chat.transport()))
    config = FilterConfig(turns={"min_reward": 1.0}, export={"label": "m", "label_url": URL})
    assert build_dataset([make_db([make_rollout()])], config, tmp_path / "d.jsonl").rows == 1
    assert len(chat.requests) == 1


def test_without_an_address_a_name_can_only_be_an_experts(tmp_path, make_db, make_rollout):
    with pytest.raises(ConfigError, match="did you mean 'crafter-expert'.*label_url"):
        build_dataset(
            [make_db([make_rollout()])], FilterConfig(export={"label": "crafter-exprt"}), tmp_path / "d.jsonl"
        )


def test_no_label_at_all_is_no_dataset(label):
    with pytest.raises(EmptyDatasetError, match="unreadable removed 2 rows"):
        label(ScriptedChat("what a nice world"))


def test_free_text_is_taken_as_it_is(label, make_rollout):
    _, rows = label(ScriptedChat("85"), make_rollout(environment="math"))
    assert rows[0]["messages"][-1]["content"] == "85"


def test_an_answer_survives_the_store(tmp_path):
    reply = Reply("a", "b\ud800", ({"id": "c", "function": {"name": "f", "arguments": "{}"}},), "stop", 3, 4)
    for _ in range(2):
        with LabelStore(labels_path(tmp_path / "d.jsonl")) as store:
            store.add("key", "run-0", 1, "m", reply)
            found = store.find("key")
    assert (found.content, found.thinking, found.tool_calls) == ("a", "b?", reply.tool_calls)
    assert (found.prompt_tokens, found.completion_tokens) == (3, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["d.labels.sqlite"]


def test_the_key_of_a_backend_that_was_started_here_goes_along(monkeypatch):
    from crafter_pipeline import connections

    monkeypatch.setattr(connections, "load_settings", lambda: Settings(_env_file=None))
    monkeypatch.setitem(connections._keys, "http://127.0.0.1:9", "minted")
    assert connections.chat_settings("http://127.0.0.1:9/v1").inference_key("http://127.0.0.1:9/v1") == "minted"
    assert connections.chat_settings("http://127.0.0.1:8/v1").inference_key("http://127.0.0.1:8/v1") != "minted"
