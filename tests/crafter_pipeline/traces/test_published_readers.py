"""What the published exporter and filter read in our databases.

The quick tests ask the questions that these tools ask. The others run the tools themselves, where SYNTH_AI_VENV names a
virtual environment that has synth-ai 0.2.17.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from crafter_pipeline.contracts import Reply

VENV = Path(os.environ.get("SYNTH_AI_VENV", "no-venv"))
CALL = {"id": "c1", "type": "function", "function": {"name": "interact_many", "arguments": '{"actions":["do"]}'}}

published = pytest.mark.skipif(not (VENV / "bin" / "synth-ai").is_file(), reason="SYNTH_AI_VENV names no synth-ai")


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


def run(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder without traces: the exporter asks a question where there are any."""
    words = list(map(str, command))
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.mark.interop
@published
@pytest.mark.parametrize(
    ("flags", "sessions"),
    [
        ((), {"one", "two"}),
        (("--min-unique", 2), {"two"}),
        (("--require-achievement", "place_table"), {"two"}),
        (("--max-outcome-reward", 1), {"one"}),
        (("--event-reward", "unique_achievement_delta:2"), {"two"}),
        (("--model", "crafter-expert", "--provider", "custom"), {"one", "two"}),
    ],
)
def test_the_published_exporter_selects_and_writes(path, tmp_path, flags, sessions):
    out = tmp_path / "out.jsonl"
    export = (VENV / "bin" / "python", "-m", "examples.warming_up_to_rl.export_trace_sft")
    done = run(tmp_path, *export, "--in", path, "--out", out, *flags)
    assert f"Wrote {2 * len(sessions)} examples from {len(sessions)} session(s)" in done.stderr, done
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {record["metadata"]["session_id"] for record in records} == sessions
    assert [m["role"] for m in records[0]["messages"]] == ["system", "user", "assistant"]
    function = records[0]["messages"][-1]["tool_calls"][0]["function"]
    assert function["name"] == "interact_many" and json.loads(function["arguments"]) == {"actions": ["do"]}
    assert records[1]["metadata"]["achievements"]["new_unique"][0] == "collect_wood"


@pytest.mark.interop
@published
@pytest.mark.parametrize(
    ("rule", "examples"), [("", 4), ("min_official_score = 2", 2), ('models = ["crafter-expert"]\nlimit = 3', 3)]
)
def test_the_published_filter_selects_and_writes(path, tmp_path, rule, examples):
    out, config = tmp_path / "out.jsonl", tmp_path / "filter.toml"
    config.write_text(f'[filter]\ndb = "{path}"\noutput = "{out}"\n{rule}\n')
    done = run(tmp_path, VENV / "bin" / "synth-ai", "filter", "--config", config)
    assert done.returncode == 0 and f"Wrote {examples} examples" in done.stdout, done
    record = json.loads(out.read_text().splitlines()[0])
    assert record["messages"][0]["role"] == "user" and record["messages"][0]["content"].startswith("tree east")
    assert record["messages"][1]["content"][0]["arguments"] == {"actions": ["do"]}
