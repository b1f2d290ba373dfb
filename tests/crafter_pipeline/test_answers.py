"""What answers mean: tools, text, and what cannot be read."""

from __future__ import annotations

import time

import pytest

from crafter_pipeline.answers import read_answer
from crafter_pipeline.contracts import PolicySpec, Reply
from crafter_pipeline.environments import CRAFTER
from task_app.environments import environment_of
from task_app.policies import read_policy

ACTIONS = frozenset(CRAFTER.actions)


def read(content: str = "", calls: tuple = (), *, limit: int = 8):
    return read_answer(Reply(content=content, tool_calls=calls), CRAFTER, ACTIONS, limit, use_tools=bool(calls))


@pytest.mark.parametrize(
    ("content", "actions"),
    [
        ("move_left", ["move_left"]),
        ("Move Left.", ["move_left"]),
        ("left", ["move_left"]),
        ("craft_wood_pickaxe", ["make_wood_pickaxe"]),
        ("rest", ["sleep"]),
        ("move_left, do", ["move_left", "do"]),
        ("move_left\ndo\n", ["move_left", "do"]),
        ("1. move_up\n2) do\n- sleep", ["move_up", "do", "sleep"]),
        ("up and do then sleep; noop", ["move_up", "do", "sleep", "noop"]),
        ("ACTION: do", ["do"]),
        ("Actions: do, do", ["do", "do"]),
        ("I see a tree.\n<action>move_left, do</action>", ["move_left", "do"]),
        ("<action>do", ["do"]),
        ("[action]do[/action]", ["do"]),
        ('{"actions": ["move_left", "do"]}', ["move_left", "do"]),
        ('{"action": "do"}', ["do"]),
        ('["do", "up"]', ["do", "move_up"]),
        ('```json\n{"actions": ["do"]}\n```', ["do"]),
        ("The tree is near. My answer:\ndo", ["do"]),
        ("jump, do", ["do"]),
    ],
)
def test_text_answers_are_read_tolerantly(content, actions):
    answer = read(content)
    assert (list(answer.actions), answer.failure) == (actions, None)


@pytest.mark.parametrize("content", ["", "  ", "jump", "I think we should go up", "{}", '{"actions": []}', "{broken"])
def test_nothing_readable_is_a_failure(content):
    answer = read(content)
    assert not answer.actions and answer.failure


def call(arguments, name="interact_many"):
    return ({"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}},)


@pytest.mark.parametrize(
    ("calls", "actions"),
    [
        (call('{"actions": ["move_left", "do"]}'), ["move_left", "do"]),
        (call({"actions": ["do"]}), ["do"]),
        (call('{"actions": "do"}'), ["do"]),
        (({"name": "interact_many", "arguments": {"actions": ["do"]}},), ["do"]),
        (call('{"actions": ["do"]}') + call('{"actions": ["sleep"]}'), ["do", "sleep"]),
        (call('{"actions": ["fly", "do"]}'), ["do"]),
    ],
)
def test_tool_calls_are_read(calls, actions):
    assert list(read(calls=calls).actions) == actions


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        (call("{"), "not JSON"),
        (call('{"actions": []}'), "no list"),
        (call('{"actions": ["fly"]}'), "no known action"),
        (call('{"actions": ["do"]}', name="jump"), "no tool 'jump'"),
    ],
)
def test_an_unusable_tool_call_says_why(calls, reason):
    answer = read(calls=calls)
    assert not answer.actions and reason in answer.failure


def test_move_and_do_are_both_played():
    assert read('["move_right", "do"]').actions == ("move_right", "do")


def test_too_many_actions_are_cut_and_kept_aside():
    answer = read("do, sleep, noop", limit=2)
    assert (answer.actions, answer.dropped) == (("do", "sleep"), ("noop",))


def test_the_tool_offers_exactly_the_17_actions():
    policy = read_policy(PolicySpec(config={"model": "m", "inference_url": "http://m/v1"}))
    (tool,) = environment_of("crafter").tools(policy)
    schema = tool["function"]["parameters"]["properties"]["actions"]
    assert schema["items"]["enum"] == list(CRAFTER.actions) and len(CRAFTER.actions) == 17
    assert (schema["minItems"], schema["maxItems"]) == (1, 8)


@pytest.mark.parametrize(
    ("content", "calls", "kind"),
    [
        ("", (), "unreadable"),
        ("", call("{"), "unreadable"),
        ("", call('{"actions": ["fly"]}'), "unreadable"),
        ("", call('{"actions": ["do"]}', name="jump"), "wrong_tool"),
        ("", call('{"actions": ["do"]}', name="jump") + call("{"), "unreadable"),
    ],
)
def test_a_failure_has_a_kind(content, calls, kind):
    assert read(content, calls).failure_kind == kind


def test_text_where_a_tool_is_offered_and_nothing_in_it_is_no_call():
    reply = Reply("I would rather wait.")
    assert read_answer(reply, CRAFTER, ACTIONS, 8, use_tools=True).failure_kind == "no_call"
    assert read_answer(Reply("do"), CRAFTER, ACTIONS, 8, use_tools=True).actions == ("do",)


@pytest.mark.parametrize(
    ("content", "calls"),
    [
        ("do it " * 200_000, ()),
        ("<action>" + "x," * 500_000, ()),
        ("{" * 1_000_000, ()),
        ("", call('{"actions": [' + ",".join(['"fly"'] * 150_000) + "]}")),
        ("", call("[" * 1_000_000)),
    ],
    ids=["words", "tag", "braces", "names", "nested"],
)
def test_a_million_characters_are_a_failure_in_no_time(content, calls):
    started = time.process_time()
    answer = read(content, calls)
    assert answer.failure and len(answer.failure) < 300 and len(answer.unknown) <= 100
    assert time.process_time() - started < 0.5


def test_a_long_thought_before_a_tag_is_no_hindrance():
    assert read("hm " * 50_000 + "<action>do</action>").actions == ("do",)
