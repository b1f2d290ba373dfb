"""Side files: a line per turn in the published shape, whole or not at all, and never in the way."""

from __future__ import annotations

import logging
import re

import orjson
import pytest

from crafter_pipeline.contracts import Reply
from crafter_pipeline.traces.sidefiles import try_side_file


def lines(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_per_turn_tells_the_call(tmp_path, make_rollout, make_turn):
    call = {"id": "c", "type": "function", "function": {"name": "interact_many", "arguments": '{"actions":["do"]}'}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    seen = (
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "look"}, picture]},
    )
    turns = (make_turn(0), make_turn(1, messages=seen, reply=Reply("", "why", (call,))))
    path = try_side_file(make_rollout("eval/1", turns=turns), tmp_path / "new")
    assert re.fullmatch(r"eval_1-[0-9a-f]{8}_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.jsonl", path.name)
    first, second = lines(path)
    assert (
        first.keys()
        == second.keys()
        == {*("run_id", "turn", "model", "provider", "dialogue", "dialogue_text", "assistant", "metadata", "timestamp")}
    )
    assert (first["run_id"], first["turn"], second["turn"]) == ("eval/1", 0, 1)
    assert first["metadata"] == dict.fromkeys(("user_has_image", "assistant_has_image", "has_image"), False)
    assert first["assistant"] == {
        **{"content": "do", "content_text": "do", "tool_calls": [], "has_image": False},
        "reasoning_content": "collect wood",
    }
    assert second["dialogue"] == list(seen) and second["dialogue_text"][1] == {
        "role": "user",
        "content": "look\n[image]",
    }
    assert second["assistant"]["tool_calls"] == [call] and second["metadata"]["has_image"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a bug")])
def test_what_goes_wrong_is_logged_and_nothing_is_left(tmp_path, make_rollout, monkeypatch, caplog, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("os.fsync", fail)
    with caplog.at_level(logging.WARNING):
        assert try_side_file(make_rollout("run-0"), tmp_path) is None
    assert "run-0" in caplog.text and str(error).split("] ")[-1] in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_logged(tmp_path, make_rollout, caplog):
    (tmp_path / "file").touch()
    assert try_side_file(make_rollout(), tmp_path / "file" / "folder") is None
    assert "Not a directory" in caplog.text
