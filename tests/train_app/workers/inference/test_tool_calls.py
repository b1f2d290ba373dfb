"""Calls of tools in the dialects that models speak; what is broken stays text."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from train_app.workers.inference.tool_calls import parse_tool_calls  # noqa: E402

ACT = ("act", {"actions": ["noop"]})
JSON = '{"name": "act", "arguments": {"actions": ["noop"]}}'


def read(text):
    calls, rest = parse_tool_calls(text)
    return [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls], rest


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{JSON}\n</tool_call>",
        f"<tool_call>{JSON}",  # the tokens ran out
        '<tool_call>{"name": "act", "parameters": {"actions": ["noop"]}}</tool_call>',
        '<tool_call>{"name": "act", "arguments": "{\\"actions\\": [\\"noop\\"]}"}</tool_call>',
        '<tool_call><function=act>\n<parameter=actions>\n["noop"]\n</parameter>\n</function></tool_call>',
        '<function=act>{"actions": ["noop"]}</function>',
        JSON,
        f"[{JSON}]",
        f"```json\n{JSON}\n```",
        '{"type": "function", "function": {"name": "act", "parameters": {"actions": ["noop"]}}}',
    ],
)
def test_every_dialect_is_read(text):
    assert read(text) == ([ACT], "")


def test_several_calls_and_the_text_around_them():
    assert read(f"I go. <tool_call>{JSON}</tool_call><tool_call>{JSON}</tool_call> Done.") == (
        [ACT, ACT],
        "I go.  Done.",
    )


def test_a_name_that_no_tool_has_is_passed_on_and_text_values_stay_text():
    text = "<function=fly><parameter=to>the moon</parameter><parameter=speed>3</parameter></function>"
    assert read(text) == ([("fly", {"to": "the moon", "speed": 3})], "")


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "act", "arg</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        "<tool_call>42</tool_call>",
        "<function=act>{broken</function>",
        '{"answer": 42}',
        "[1, 2]",
        "{",
        "move_left",
        "```python\nprint()\n```",
    ],
)
def test_what_is_no_call_stays_text(text):
    assert read(text) == ([], text)
