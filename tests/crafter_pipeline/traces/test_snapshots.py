"""Snapshots: exact if nobody touched them, read as far as they go if somebody did, and clear if they cannot be."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest

from crafter_pipeline.contracts import Reply, StopReason
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.snapshots import read_snapshot, write_snapshot


@pytest.fixture
def edited(tmp_path, make_rollout):
    """`edited(change)`: the snapshot of make_rollout() after `change(payload)`, read again."""

    def read(change, rollout=None):
        path = write_snapshot(rollout or make_rollout(), tmp_path)
        payload = json.loads(path.read_text())
        path.write_text(json.dumps(change(payload) or payload))
        return read_snapshot(path)

    return read


def test_a_snapshot_comes_back_as_it_was(tmp_path, make_rollout, make_turn):
    reply = Reply("do", "why", prompt_token_ids=(1, 2), token_ids=(3,), logprobs=(-0.1234567890123,))
    history = (*make_turn().messages, {"role": "assistant", "content": "do"}, {"role": "user", "content": "é\ud800"})
    turns = (make_turn(0, reply=reply), make_turn(1, messages=history, info={"stepwise": {"big": 2**70}}))
    rollout = make_rollout("a/b:c", turns=turns, stop_reason=StopReason.DEATH, metadata={"policy_config": {"top_p": 1}})
    path = write_snapshot(rollout, tmp_path / "new")
    assert path.parent == tmp_path / "new" and path.name.startswith("a_b_c-") and path.name.endswith("_trace.json")
    back = read_snapshot(path)
    surrogate = back.turns[1].messages[-1]["content"]
    assert surrogate in ("é\ud800", "é?")
    assert replace(back, turns=rollout.turns) == rollout and back.turns[0] == rollout.turns[0]


def test_a_plain_run_id_is_the_file_s_name_and_its_lines_are_readable(tmp_path, make_rollout):
    path = write_snapshot(make_rollout("run-7"), tmp_path)
    assert path.name == "run-7_trace.json" and len(path.read_text().splitlines()) > 50
    assert read_snapshot(path) == make_rollout("run-7")


def test_run_ids_that_look_alike_have_files_of_their_own(tmp_path, make_rollout):
    paths = {write_snapshot(make_rollout(run_id), tmp_path) for run_id in ("a/b", "a:b", "a_b", "../a_b", ".a_b")}
    assert len(paths) == 5 and all(path.parent == tmp_path for path in paths)


def test_an_answer_with_the_trace_in_it_is_one_too(edited, make_rollout):
    assert edited(lambda payload: {"run_id": "run-0", "trace": payload, "trajectories": []}) == make_rollout()


def test_the_order_of_keys_and_further_keys_do_not_matter(edited, make_rollout):
    def shuffle(value):
        if isinstance(value, dict):
            return {"my note": 1} | {key: shuffle(value[key]) for key in sorted(value, reverse=True)}
        return [shuffle(each) for each in value] if isinstance(value, list) else value

    def change(payload):
        shuffled = shuffle({key: payload[key] for key in payload if key != "metadata"})
        return shuffled | {"metadata": payload["metadata"]}

    turn = edited(change).turns[1]
    assert (turn.reward, turn.unlocked, turn.reply) == (1.0, ("collect_wood",), make_rollout().turns[1].reply)


def test_edited_text_reward_and_achievements_are_read(edited):
    def change(payload):
        environment = payload["event_history"][1]
        environment |= {"reward": 2, "system_state_before": {"text": "a diamond"}}
        environment["metadata"]["unlocked"] = ["collect_diamond"]
        payload["event_history"][0]["call_records"][0]["output_text"] = "sleep"
        payload["metadata"] |= {"total_reward": 3, "final_achievements": ["collect_diamond", "collect_wood"]}

    rollout = edited(change)
    assert rollout.turns[0].observation == "a diamond" and rollout.turns[0].reply.content == "sleep"
    assert rollout.turns[0].reward == 2.0 and rollout.turns[0].unlocked == ("collect_diamond",)
    assert rollout.total_reward == 3.0 and rollout.achievements == ("collect_diamond", "collect_wood")


def test_stated_totals_count_and_disagreement_is_said(edited, caplog):
    def change(payload):
        payload["event_history"][1]["reward"] = 5.0

    with caplog.at_level(logging.WARNING):
        assert edited(change).total_reward == 1.0
    assert "states total_reward 1, but its turns make 6" in caplog.text


def test_totals_that_are_gone_are_computed(edited, caplog):
    def change(payload):
        payload["event_history"][1]["reward"] = 5.0
        for key in ("total_reward", "env_steps", "stop_reason", "final_achievements", "created_unix", "env_seed"):
            del payload["metadata"][key]

    rollout = edited(change)
    assert (rollout.total_reward, rollout.env_steps, rollout.achievements) == (6.0, 2, ("collect_wood",))
    assert rollout.stop_reason == "turn_limit" and rollout.created_at == pytest.approx(1_790_000_000.1)
    assert not caplog.text


def test_steps_and_messages_that_are_gone_are_not_missed(edited, make_rollout):
    def change(payload):
        del payload["session_time_steps"], payload["markov_blanket_message_history"]

    assert edited(change) == make_rollout()


def test_a_turn_that_is_cut_out_is_gone(edited):
    def change(payload):
        payload["event_history"] = payload["event_history"][2:]

    assert [turn.index for turn in edited(change).turns] == [1]


def test_the_original_s_times_are_read(edited):
    def change(payload):
        payload["metadata"] = {"env_name": "crafter", "seed": 3}  # no writer: the original's
        payload["created_at"] = "datetime.datetime(2026, 11, 20, 12, 27, 42, 5, tzinfo=datetime.timezone.utc)"
        for event in payload["event_history"]:
            event.pop("event_type")

    rollout = edited(change)
    assert rollout.created_at == pytest.approx(1795177662.000005) and rollout.seed == 3
    assert rollout.total_reward == 1.0 and len(rollout.turns) == 2


def put(path, value):
    """A change that sets what `path`, keys and positions, leads to."""

    def change(payload):
        target = payload
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(["event_history", 1, "reward"], "lots"), r"event_history\[1\]\.reward: it should .*number, not 'lots'"),
        (put(["event_history", 0], "a string"), r"event_history\[0\]"),
        (put(["event_history"], None), r"event_history: it should be a valid list, not None"),
        (put(["event_history", 0, "event_type"], "modell"), r"event_history\[0\]\.event_type: .*'cais', 'environment'"),
        (put(["event_history", 1, "metadata", "actions"], "do"), r"event_history\[1\]\.metadata\.actions"),
        (put(["event_history", 1, "metadata", "unlocked"], [1]), r"metadata\.unlocked\[0\]: .*string, not 1"),
        (put(["event_history", 0, "call_records", 0, "input_messages", 0, "parts"], 1), r"input_messages\[0\]\.parts"),
        (put(["metadata", "stop_reason"], "bored"), r"metadata\.stop_reason: .*death, env_limit.*not 'bored'"),
        (put(["metadata", "total_reward"], None), None),
        (put(["metadata", "env_steps"], 1.5), r"metadata\.env_steps"),
        (put(["session_id"], ""), "session_id"),
        (lambda payload: payload.pop("session_id") and None, "session_id: Field required$"),
        (lambda payload: {"trace": None}, "no event_history: ask the task app for trace_format structured"),
        (lambda payload: [payload], "no JSON object"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(edited, tmp_path, change, words):
    if words is None:
        assert edited(change).total_reward == 1.0
        return
    with pytest.raises(DataError, match=words) as caught:
        edited(change)
    assert str(tmp_path / "run-0_trace.json") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{\n  "session_id": "x",\n  "event_history": [}\n', "line 3, column 21: .*not valid JSON"),
        (b'{\n"reward": NaN}', "line 2: NaN is no number"),
        (b"", "line 1, column 1"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "digits"),
    ],
)
def test_what_is_no_json_is_named_with_its_line(tmp_path, text, words):
    path = tmp_path / "x_trace.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match=words) as caught:
        read_snapshot(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_snapshot_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="No such file.*_trace.json"):
        read_snapshot(tmp_path / "no.json")
