"""Uploaded datasets, line by line: what cannot be trained on is told with its line."""

import hashlib
import io
import json

import pytest

from crafter_pipeline.dataset import training_file
from crafter_pipeline.dataset.training_file import BadDataset, check_row, store_dataset

ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "noop"}]}
GOOD = json.dumps(ROW)


def bad_lines(text: str | bytes) -> list[tuple[int, str]]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(BadDataset) as caught:
        store_dataset(io.BytesIO(data), io.BytesIO())
    return list(caught.value.lines)


def test_what_is_stored_is_what_was_sent():
    data, output = f"{GOOD}\n\n{GOOD}".encode(), io.BytesIO()
    stored = store_dataset(io.BytesIO(data), output)
    assert output.getvalue() == data
    assert (stored.bytes, stored.rows, stored.sha256) == (len(data), 2, hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("not json", "not valid JSON"),
        ("[]", "non-empty list `messages`"),
        ('{"messages": []}', "non-empty list `messages`"),
        ('{"messages": ["x"]}', "messages[0] is not an object"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "role 'robot'"),
        ('{"messages": [{"role": "user", "content": null}]}', "neither content nor tool calls"),
        ('{"messages": [{"role": "user", "content": 7}]}', "content must be"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "assistant"}]}', "neither content nor tool calls"),
        ('{"messages": [{"role": "assistant", "tool_calls": "x"}]}', "tool_calls must be a list"),
        ('{"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}', "no function.name"),
        (
            '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 3}}]}]}',
            "function.arguments must be",
        ),
        ('{"messages": [{"role": "assistant", "content": "x"}], "tools": 1}', "tools must be a list"),
        ('{"messages": [{"role": "assistant", "content": "x"}], "reward": NaN}', "NaN is no JSON"),
        ("\ufeff{}", "byte order mark"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "must be the assistant's"),
        ('{"messages": [{"role": "assistant", "content": ""}]}', "is empty"),
        ('{"prompt": "x", "completion": "y"}', "or lists `prompt` and `completion`"),
        ('{"prompt": [{"role": "user", "content": "x"}], "completion": "y"}', "must be the assistant's"),
        ('{"prompt": [{"role": "user", "content": "x"}], "completion": []}', "must be the assistant's"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_told_with_its_line(line, complaint):
    ((number, told),) = bad_lines(f"{GOOD}\n{line}\n")
    assert number == 2 and complaint in told


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "x"}], "tool_calls": None},
    ],
)
def test_a_turn_of_content_or_of_calls_is_taken(message):
    check_row(json.dumps({"messages": [{"role": "tool", "content": ""}, message]}).encode())


def test_up_to_twenty_bad_lines_are_told_at_once():
    lines = bad_lines("\n".join([GOOD, "x", GOOD, "[]", *["{}"] * 30]))
    assert [number for number, _ in lines] == [2, 4, *range(5, 23)]


def test_bytes_that_are_no_utf8_are_told_with_their_place():
    assert bad_lines(b'{"messages": "\xff"}\n') == [(1, "not UTF-8 (byte 14 is 0xff)")]


def test_a_line_that_is_too_long_is_refused_without_being_read_whole(monkeypatch):
    monkeypatch.setattr(training_file, "MAX_LINE_BYTES", 1000)
    lines = bad_lines(f"{GOOD}\n{'x' * 5000}\n{'y' * 1001}\n{'z' * 2002}\n[]")
    assert [number for number, _ in lines] == [2, 3, 4, 5] and "longer than" in lines[0][1]


def test_a_file_without_examples_is_refused():
    assert bad_lines("\n\n") == bad_lines("") == [(1, "the file holds no examples")]
