from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import orjson
import pytest

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.contracts import Reply
from crafter_pipeline.dataset.duck import attach
from crafter_pipeline.dataset.filtering import build_dataset, card_path, manifest_path
from crafter_pipeline.errors import DataError, EmptyDatasetError
from crafter_pipeline.traces import ledger
from crafter_pipeline.traces.store import TraceStore

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def build(tmp_path, make_db):
    """`build([rollout, …], min_reward=2)` -> (manifest, rows)."""

    def run(rollouts, *, name="d.jsonl", **config):
        manifest = build_dataset([make_db(rollouts)], FilterConfig(**config), tmp_path / name)
        return manifest, [orjson.loads(line) for line in (tmp_path / name).read_bytes().splitlines()]

    return run


@pytest.fixture
def four(make_rollout, make_turn):
    """Four rollouts on seeds 0-3 that differ in everything a rule looks at; the return is the seed."""
    change = [
        {"achievements": (), "turns": (make_turn(0), make_turn(1, reward=1.0))},
        {"model": "gpt"},
        {"environment": "math"},
        {"achievements": ("collect_wood", "place_table")},
    ]
    return [make_rollout(f"run-{i}", seed=i, total_reward=float(i), **c) for i, c in enumerate(change)]


def test_a_row_is_the_prompt_as_seen_and_the_answer(build, make_rollout):
    manifest, rows = build([make_rollout()])
    assert rows[1] == {
        "messages": [
            {"role": "system", "content": "You play Crafter. Answer with one action."},
            {"role": "user", "content": "tree east, step 1"},
            {"role": "assistant", "content": "do", "reasoning_content": "collect wood"},
        ],
        "metadata": {
            "session_id": "run-0",
            "turn": 1,
            "model": "crafter-expert",
            "provider": "custom",
            "environment": "crafter",
            "seed": 0,
            "reward": 1.0,
            "achievements": ["collect_wood"],
            "turn_reward": 1.0,
            "unlocked": ["collect_wood"],
        },
    }
    assert (manifest.rows, manifest.rollouts, manifest.turns, manifest.mean_reward) == (2, 1, 2, 1.0)


@pytest.mark.parametrize("rule", [{}, {"select": "turns"}])
def test_rows_hold_the_earlier_turns_that_the_model_was_shown(build, make_rollout, make_turn, rule):
    """Also those of turns that are not exported themselves: unreadable, or worth too little."""
    system, turns, shown = make_turn().messages[0], [], []
    for i, (failure, reward) in enumerate([(None, 0.0), ("unreadable", 0.0), (None, 0.0), (None, 1.0)]):
        user = {"role": "user", "content": f"step {i}"}
        messages = (system, *shown[-4:], user)
        turns.append(make_turn(i, messages=messages, reply=Reply(f"do {i}"), parse_failure=failure, reward=reward))
        shown += [user, {"role": "assistant", "content": f"do {i}"}]
    _, rows = build([make_rollout("run-0", turns=tuple(turns)), make_rollout("run-1", seed=1)], **rule)
    prompts = {
        row["metadata"]["turn"]: row["messages"][:-1] for row in rows if row["metadata"]["session_id"] == "run-0"
    }
    assert prompts == {i: list(turns[i].messages) for i in ([3] if rule else [0, 2, 3])}


def test_a_row_may_hold_a_picture(build, make_rollout, make_turn):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    message = {"role": "user", "content": [{"type": "text", "text": "look"}, picture]}
    _, (row,) = build([make_rollout(turns=(make_turn(0, messages=(message,)),))])
    assert row["messages"][0] == message


def test_tool_calls_keep_their_arguments_as_json_text(build, make_rollout, make_turn):
    call = {"id": "c", "type": "function", "function": {"name": "interact_many", "arguments": '{"actions": ["do"]}'}}
    tool = {"type": "function", "function": {"name": "interact_many", "parameters": {}}}
    rollout = make_rollout(turns=(make_turn(reply=Reply("", tool_calls=(call,))),), tools=(tool,))
    _, (row,) = build([rollout])
    assert row["messages"][-1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert row["tools"] == [{**tool, "name": "interact_many"}]


@pytest.mark.parametrize(
    ("reply", "thinking", "answer"),
    [
        (Reply("do", thinking="why"), "keep", {"content": "do", "reasoning_content": "why"}),
        (Reply("<think>why</think>do"), "keep", {"content": "do", "reasoning_content": "why"}),
        (Reply("<think>why</think>do"), "strip", {"content": "do"}),
        (Reply("do", thinking="why"), "strip", {"content": "do"}),
    ],
)
def test_thoughts_are_kept_unless_stripped(build, make_rollout, make_turn, reply, thinking, answer):
    _, (row,) = build([make_rollout(turns=(make_turn(reply=reply),))], thinking=thinking)
    assert row["messages"][-1] == {"role": "assistant", **answer}


@pytest.mark.parametrize(
    ("rule", "seeds"),
    [
        ({}, [0, 1, 2, 3]),
        ({"model": "gpt"}, [1]),
        ({"environment": "math"}, [2]),
        ({"min_reward": 2}, [2, 3]),
        ({"max_reward": 1}, [0, 1]),
        ({"min_reward": 1, "max_reward": 2}, [1, 2]),
        ({"min_achievements": 1}, [1, 2, 3]),
        ({"min_achievements": 2}, [3]),
        ({"require_achievements": ("collect_wood", "place_table")}, [3]),
        ({"require_achievements": ("collect_wood",)}, [1, 2, 3]),
        ({"limit": 2}, [2, 3]),
        ({"limit": 1, "max_reward": 2}, [2]),
        ({"max_examples": 3}, [0, 1]),
        ({"select": "turns", "limit": 1}, [3]),
    ],
    ids=str,
)
def test_each_rule_keeps_what_it_says(build, four, rule, seeds):
    _, rows = build(four, **rule)
    assert sorted({row["metadata"]["seed"] for row in rows}) == seeds


def test_turns_are_selected_by_their_own_reward(build, make_rollout):
    manifest, rows = build([make_rollout()], select="turns")
    assert [row["metadata"]["turn"] for row in rows] == [1]
    assert (manifest.turns, manifest.turns_below_reward) == (2, 1)


def test_achievements_count_under_both_spellings(tmp_path, make_db, make_rollout):
    path = make_db([make_rollout()])
    for spelling in ("final_achievements", "achievements"):
        db = sqlite3.connect(path)
        db.execute("UPDATE outcome_rewards SET reward_metadata = ?", (f'{{"{spelling}": ["eat_cow"]}}',))
        db.execute("UPDATE session_traces SET metadata = json_remove(metadata, '$.final_achievements')")
        db.commit()
        db.close()
        manifest = build_dataset([path], FilterConfig(require_achievements=("eat_cow",)), tmp_path / "d.jsonl")
        assert manifest.achievements["eat_cow"] == 1


def test_unreadable_answers_are_never_exported(build, make_rollout, make_turn):
    turns = (make_turn(0, parse_failure="what?"), make_turn(1, reply=Reply("  ")), make_turn(2))
    manifest, rows = build([make_rollout(turns=turns)])
    assert [row["metadata"]["turn"] for row in rows] == [2]
    assert manifest.parse_failures == 2


def test_rows_are_ordered_and_equal_inputs_give_equal_bytes(tmp_path, make_db, make_rollout):
    rollouts = [make_rollout(f"run-{i % 7}-{i}", seed=i % 5) for i in range(30)]
    one = make_db(rollouts, "one.db")
    parts = [make_db(rollouts[20:], "b.db"), make_db(rollouts[:20][::-1], "c.db")]
    outs = [tmp_path / f"{i}.jsonl" for i in range(3)]
    for out, dbs in zip(outs, ([one], parts, parts[::-1]), strict=True):
        build_dataset(dbs, FilterConfig(), out)
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()
    keys = [
        (m["seed"], m["session_id"], m["turn"])
        for m in (orjson.loads(line)["metadata"] for line in outs[0].read_bytes().splitlines())
    ]
    assert keys == sorted(keys) and len(keys) == 60


def test_a_rollout_in_two_databases_counts_once(tmp_path, make_db, make_rollout):
    dbs = [make_db([make_rollout()], f"{i}.db") for i in range(2)]
    manifest = build_dataset([*dbs, dbs[0]], FilterConfig(), tmp_path / "d.jsonl")
    assert (manifest.rows, manifest.removed) == (2, {"stored_twice": 1})


def test_equal_examples_are_counted_and_kept(build, make_rollout):
    manifest, rows = build([make_rollout("run-0", seed=0), make_rollout("run-1", seed=1)])
    assert (len(rows), manifest.duplicates) == (4, 2)


def test_the_manifest_and_the_card_lie_beside_the_dataset(tmp_path, build, make_rollout):
    manifest, rows = build([make_rollout(f"run-{s}", seed=s) for s in (1, 2, 5)], min_reward=1, name="sft.v1.jsonl")
    out = tmp_path / "sft.v1.jsonl"
    written = orjson.loads(manifest_path(out).read_bytes())
    assert written == orjson.loads(manifest.to_json())
    assert written["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert written["seeds"] == {"count": 3, "min": 1, "max": 5, "ranges": [[1, 2], [5, 5]]}
    assert written["removed"] == {"min_reward": 0}
    assert written["sources"][0]["rollouts"] == 3
    assert written["tokens"] == sum(len(_words(row)) for row in rows)
    card = card_path(out).read_text()
    assert "min_reward = 1.0" in card and "collect_wood | 3 | 100%" in card
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["traces.db", "sft.v1.jsonl", "sft.v1.manifest.json", "sft.v1.card.md"]
    )


def _words(row):
    return " ".join(m["content"] + " " + m.get("reasoning_content", "") for m in row["messages"]).split()


def test_tokens_are_counted_as_asked(tmp_path, make_db, make_rollout):
    manifest = build_dataset(
        [make_db([make_rollout()])], FilterConfig(), tmp_path / "d.jsonl", count_tokens=lambda _: 1
    )
    assert manifest.tokens == 2 * 4


def test_an_empty_dataset_says_which_rule_removed_how_many(tmp_path, build, four):
    with pytest.raises(EmptyDatasetError) as caught:
        build(four, environment="crafter", min_reward=1, require_achievements=("eat_cow",))
    message = str(caught.value)
    assert "of 4 rollouts" in message
    assert "environment=crafter removed 1; min_reward=1.0 removed 1; require_achievements=eat_cow removed 2" in message
    assert [p.name for p in tmp_path.iterdir()] == ["traces.db"]


@pytest.mark.parametrize(
    ("rollouts", "config", "sentence"),
    [
        (0, {}, "hold no rollouts"),
        (1, {"select": "turns", "min_turn_reward": 3}, "min_turn_reward=3 removed 2 of 2 turns"),
    ],
)
def test_other_ways_to_be_empty(build, make_rollout, rollouts, config, sentence):
    with pytest.raises(EmptyDatasetError, match=sentence):
        build([make_rollout()] * rollouts, **config)


def test_held_out_seeds_are_refused(tmp_path, build, make_rollout):
    rollouts = [make_rollout("run-a", seed=5), make_rollout("run-b", seed=1_000_003, model="gpt")]
    with pytest.raises(DataError, match="held-out seed 1000003"):
        build(rollouts)
    assert not (tmp_path / "d.jsonl").exists()


def test_held_out_seeds_that_no_rule_selects_do_no_harm(build, make_rollout):
    rollouts = [make_rollout("run-a", seed=5), make_rollout("run-b", seed=1_000_003, model="gpt")]
    assert build(rollouts, model="crafter-expert")[0].rows == 2


def test_dev_and_gate_seeds_are_a_warning(tmp_path, build, make_rollout):
    manifest, _ = build([make_rollout("run-a", seed=950_001)])
    assert "dev or gate seeds" in manifest.warnings[0]
    assert "Warning" in card_path(tmp_path / "d.jsonl").read_text()


def test_the_original_s_database_is_filtered(tmp_path, sample_db):
    manifest = build_dataset([sample_db], FilterConfig(min_reward=4), tmp_path / "d.jsonl")
    assert (manifest.rows, manifest.rollouts, manifest.removed) == (40, 2, {"min_reward": 1})
    row = orjson.loads((tmp_path / "d.jsonl").read_bytes().splitlines()[-1])
    assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][2]["reasoning_content"] == "I look around and then I act."
    assert orjson.loads(row["messages"][2]["tool_calls"][0]["function"]["arguments"])["actions"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "no such trace database"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("this is not a database"), "not a SQLite database"),
        (lambda path: path.touch(), "not a v3 trace database"),
    ],
    ids=["missing", "folder", "text", "no v3 tables"],
)
def test_a_database_that_cannot_be_used_is_one_clear_line(tmp_path, make, sentence):
    make(tmp_path / "x.db")
    with pytest.raises(DataError, match=sentence) as caught:
        build_dataset([tmp_path / "x.db"], FilterConfig(), tmp_path / "d.jsonl")
    assert "\n" not in str(caught.value) and not (tmp_path / "d.jsonl").exists()


def test_a_damaged_database_is_one_clear_line(tmp_path, make_db, make_rollout):
    path = make_db([make_rollout(f"run-{i}", seed=i) for i in range(50)])
    data = bytearray(path.read_bytes())
    data[8192 : len(data) - 8192] = b"\xff" * (len(data) - 16384)
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        build_dataset([path], FilterConfig(), tmp_path / "d.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("out", ["folder", "traces.db/d.jsonl"])
def test_an_output_path_that_cannot_be_written_is_one_clear_line(tmp_path, make_db, make_rollout, out):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="Name a file in it|Choose another output path"):
        build_dataset([make_db([make_rollout()])], FilterConfig(), tmp_path / out)


def test_a_database_that_this_process_has_open_is_refused(tmp_path, make_rollout):
    with TraceStore(tmp_path / "t.db") as store:
        store.add(make_rollout())
        with pytest.raises(DataError, match="open in this process"):
            build_dataset([tmp_path / "t.db"], FilterConfig(), tmp_path / "d.jsonl")


def test_the_ledger_makes_way(tmp_path, make_db, make_rollout):
    path = make_db([make_rollout()])
    ledger.find_answer(tmp_path, "run-0")
    assert build_dataset([path], FilterConfig(), tmp_path / "d.jsonl").rows == 2


def test_the_extension_writes_nothing_into_the_home_folder(tmp_path, make_db, make_rollout, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    with duckdb.connect() as connection:
        attach(connection, [make_db([make_rollout()])])
        assert connection.execute("SELECT count(*) FROM events").fetchall() == [(4,)]
    assert list((tmp_path / "home").iterdir()) == []


WRITER = """
import sys, sqlite3
from dataclasses import replace
from pathlib import Path
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.store import TraceStore
rollout = next(read_rollouts(sys.argv[1]))
with TraceStore(sys.argv[2]) as store:
    i = 0
    while not Path(sys.argv[3]).exists():
        store.add(replace(rollout, run_id=f"run-{i}", seed=i))
        i += 1
"""


def test_a_server_in_another_process_may_go_on_writing(tmp_path, make_db, make_rollout):
    live, stop = tmp_path / "live.db", tmp_path / "stop"
    command = [sys.executable, "-c", WRITER, str(make_db([make_rollout()])), str(live), str(stop)]
    writer = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        sizes = []
        for attempt in range(5):
            deadline = time.monotonic() + 30
            while attempt == 0 and not (live.exists() and live.stat().st_size > 300_000):
                assert writer.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            manifest = build_dataset([live], FilterConfig(), tmp_path / "d.jsonl")
            assert manifest.rows == 2 * manifest.rollouts == manifest.turns  # whole rollouts, never half of one
            assert manifest.removed == {}
            sizes.append(manifest.rollouts)
        assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    finally:
        stop.touch()
        assert writer.wait(30) == 0
