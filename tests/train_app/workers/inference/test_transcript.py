"""Tokens to text: what a stream may tell is certain, and the whole is what the stream told."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from train_app.workers.inference.transcript import Deltas, Transcript, certain_parts, parts_of  # noqa: E402
from train_app.workers.students import tiny_tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def streamed(text, *, thinks=False, tools=False):
    """What a stream of the text, character by character, tells: its fields, joined, and the final parts."""
    deltas, told = Deltas(), {"content": "", "reasoning_content": ""}
    for end in range(len(text) + 1):
        for name, delta in deltas.of(certain_parts(text[:end], thinks=thinks, tools=tools)).items():
            told[name] += delta
    parts = parts_of(text, thinks=thinks, tools=tools)
    for name, delta in deltas.of(parts).items():
        told[name] += delta
    return told, parts


@pytest.mark.parametrize("tools", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "place_table",
        "  leading and trailing  ",
        "<think>need wood</think>place_table",
        "<think> a </think> b <think> c </think> d",
        "<think>never closed",
        "2 < 3 and <thin air>",
        "hello <tool_call>{} and more",
        'go <tool_call>{"name": "act", "arguments": {}}</tool_call>',
        '{"name": "act", "arguments": {}}',
        "{not json",
        "",
    ],
)
def test_a_stream_tells_what_the_whole_answer_says(text, tools):
    told, parts = streamed(text, tools=tools)
    blank = str.strip if tools else str  # with tools, blanks at the start are dropped
    assert blank(told["content"]) == blank(parts.content)
    assert told["reasoning_content"] == parts.thinking


def test_a_thought_that_the_template_opened_goes_on(tokenizer):
    told, parts = streamed("need wood</think>place_table", thinks=True)
    assert (parts.thinking, parts.content) == ("need wood", "place_table")
    assert told == {"content": "place_table", "reasoning_content": "need wood"}


def test_characters_of_several_tokens_are_told_whole(tokenizer):
    text = "grüße ✓ 你好"
    transcript, told = Transcript(tokenizer), []
    for token in tokenizer(text).input_ids:
        transcript.push(token)
        told.append(transcript.certain)
    assert transcript.end() == text == told[-1]
    assert all(text.startswith(part) for part in told) and len(set(told)) > 5


def test_a_stop_text_is_found_across_tokens_and_never_told_in_part(tokenizer):
    transcript = Transcript(tokenizer, ("wood stone",))
    told, pushed = [], 0
    for token in tokenizer("tree wood wood stone cow").input_ids:
        pushed += 1
        if transcript.push(token):
            break
        told.append(transcript.certain)
    assert transcript.stopped and transcript.end() == "tree wood "
    assert pushed < len(tokenizer("tree wood wood stone cow").input_ids)
    assert all("tree wood ".startswith(part) for part in told)


def test_an_end_that_only_looked_like_a_stop_text_is_told_after_all(tokenizer):
    transcript = Transcript(tokenizer, ("wood stone",))
    for token in tokenizer("tree wood").input_ids:
        transcript.push(token)
    assert transcript.certain == "tree " and transcript.end() == "tree wood"
