"""What a model is shown each turn: observation, events, earlier turns in both forms, pictures."""

from __future__ import annotations

import base64

import orjson
import pytest

from crafter_pipeline.answers import Answer
from crafter_pipeline.contracts import PolicySpec, Reply
from crafter_pipeline.environments import CRAFTER
from task_app.environments import Step, environment_of
from task_app.policies import read_policy
from task_app.prompts import Prompter, event_line

PNG = b"\x89PNG made up"
TOOLS = ({"type": "function", "function": {"name": "interact_many"}},)


def prompter(tools=TOOLS, **policy) -> Prompter:
    config = {"model": "m", "inference_url": "http://m.test/v1", "use_tools": bool(tools), **policy}
    return Prompter(read_policy(PolicySpec(config=config)), "run", "You play.", tools)


def called(actions, id_="c1") -> tuple[dict, ...]:
    arguments = orjson.dumps({"actions": actions}).decode()
    return ({"id": id_, "type": "function", "function": {"name": "interact_many", "arguments": arguments}},)


def take(prompter: Prompter, observation: str, reply: Reply, *steps: Step, answer=None, picture=None):
    """One turn; returns its messages."""
    payload = prompter.request(observation, picture)
    answer = answer or Answer(tuple(step.action for step in steps))
    prompter.remember(payload["messages"][-1], reply, answer, steps)
    return payload["messages"]


# ------------------------------------------------------------------ events


def test_the_event_line_tells_what_each_action_did():
    steps = (Step("move_right", 0, event="moved"), Step("do", 1, event="+1 wood"), Step("noop", 0))
    assert event_line(Answer(("move_right", "do", "noop")), steps) == "did: move_right moved, do +1 wood, noop"


def test_the_event_line_names_what_was_not_played():
    answer = Answer(("do", "sleep", "noop"), dropped=("do",))
    assert event_line(answer, (Step("do", 0, event="-2 health"),)) == "did: do -2 health; not played: sleep, noop, do"


def test_the_event_line_says_why_an_answer_was_a_noop():
    answer = Answer((), "the answer is empty")
    assert event_line(answer, (Step("noop", 0),)) == "did: noop because the answer is empty"


def test_the_event_line_stands_between_observation_and_history():
    p = prompter()
    take(p, "one", Reply("", tool_calls=called(["do"])), Step("do", 0, event="+1 wood"))
    assert p.request("two")["messages"][-1]["content"] == "two\ndid: do +1 wood\nbefore: - do"


def test_the_tiny_student_s_prompt_has_no_event_line_unless_asked():
    for asked, lines in (({}, 2), ({"event_line": True}, 3)):
        p = prompter(tools=(), observation="sparse", **asked)
        take(p, "one", Reply("do"), Step("do", 0, event="+1 wood"))
        assert len(p.request("two")["messages"][-1]["content"].splitlines()) == lines


def test_without_events_and_history_the_observation_stands_alone():
    p = prompter(event_line=False, history=0)
    take(p, "one", Reply("do"), Step("do", 0, event="+1 wood"))
    assert p.request("two")["messages"][-1]["content"] == "two"


# ------------------------------------------------------------------ earlier turns


def test_thoughts_in_the_line_can_be_dropped():
    p = prompter(event_line=False, keep_thoughts=False)
    take(p, "one", Reply("do", thinking="collect_wood"), Step("do", 0))
    assert p.request("two")["messages"][-1]["content"] == "two\nbefore: - do"


def test_earlier_turns_are_messages_with_tool_results():
    p = prompter(history_form="turns")
    reply = Reply("", thinking="A tree.", tool_calls=called(["do"]))
    take(p, "one", reply, Step("do", 1, event="+1 wood"))
    assert p.request("two")["messages"] == (
        {"role": "system", "content": "You play."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\nA tree.\n</think>\n\n", "tool_calls": list(called(["do"]))},
        {"role": "tool", "tool_call_id": "c1", "content": "did: do +1 wood"},
        {"role": "user", "content": "two"},
    )


def test_thoughts_of_earlier_messages_can_be_dropped():
    p = prompter(history_form="turns", keep_thoughts=False)
    take(p, "one", Reply("I go.", thinking="A tree."), Step("do", 0))
    assert p.request("two")["messages"][2] == {"role": "assistant", "content": "I go."}


def test_text_answers_are_followed_by_the_events_in_the_next_message():
    p = prompter(tools=(), history_form="turns")
    take(p, "one", Reply("do"), Step("do", 0, event="+1 wood"))
    assert [m["content"] for m in p.request("two")["messages"][1:]] == ["one", "do", "two\ndid: do +1 wood"]


def test_the_window_slides_over_whole_turns():
    p = prompter(tools=(), history_form="turns", history=2, event_line=False)
    for i in range(5):
        take(p, f"o{i}", Reply(f"a{i}"), Step("do", 0))
    assert [m["content"] for m in p.request("o5")["messages"]] == ["You play.", "o3", "a3", "o4", "a4", "o5"]


def test_every_tool_call_gets_a_result_and_ids_do_not_repeat():
    p = prompter(history_form="turns")
    take(p, "one", Reply("", tool_calls=called(["do"], "x") + called(["noop"], "x")), Step("do", 0), Step("noop", 0))
    _, _, said, *results, _ = p.request("two")["messages"]
    assert [call["id"] for call in said["tool_calls"]] == [r["tool_call_id"] for r in results] == ["x", "call_1"]
    assert results[-1]["content"] == "did: do, noop"


@pytest.mark.parametrize(
    "call",
    [
        {"id": "c", "type": "function", "function": {"name": "interact_many", "arguments": "{broken"}},
        {"id": "c", "type": "function", "function": {"name": "interact_many", "arguments": "[1]"}},
        {"id": "c", "type": "function", "function": {"arguments": "{}"}},
        {"id": "c", "type": "function", "function": "do"},
        {"id": "c", "type": "function", "function": {"name": "interact_many"}},
    ],
)
def test_a_call_that_servers_would_refuse_is_told_as_text(call):
    p = prompter(history_form="turns")
    failure = Answer((), "not JSON")
    take(p, "one", Reply("hm", tool_calls=(call,)), Step("noop", 0), answer=failure)
    _, _, said, asked = p.request("two")["messages"]
    assert "tool_calls" not in said and said["content"].startswith("hm\n")
    assert asked["content"] == "two\ndid: noop because not JSON"


def test_a_simplified_call_is_sent_again_in_openai_s_form():
    p = prompter(history_form="turns")
    take(p, "one", Reply("", tool_calls=({"name": "interact_many", "arguments": {"actions": ["do"]}},)), Step("do", 0))
    assert p.request("two")["messages"][2]["tool_calls"] == list(called(["do"], "call_0"))


# ------------------------------------------------------------------ pictures


def test_a_picture_stands_beside_the_text():
    (user,) = prompter(observation="image", model="gpt-4o", history=0).request("one", PNG)["messages"][1:]
    text, picture = user["content"]
    assert text == {"type": "text", "text": "one"}
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == PNG


def test_image_only_is_the_picture_and_what_was_done():
    p = prompter(observation="image-only", model="gpt-4o", history=0)
    first = take(p, "", Reply("", tool_calls=called(["do"])), Step("do", 0, event="+1 wood"), picture=PNG)
    assert [part["type"] for part in first[-1]["content"]] == ["image_url"]
    text, picture = p.request("", PNG)["messages"][-1]["content"]
    assert text == {"type": "text", "text": "did: do +1 wood"} and picture["type"] == "image_url"


def test_image_only_begins_with_nothing_but_the_picture():
    p = prompter(observation="image-only", model="gpt-4o", event_line=False)
    first = take(p, "", Reply("", tool_calls=called(["do"])), Step("do", 0), picture=PNG)
    assert [part["type"] for part in first[-1]["content"]] == ["image_url"]
    assert p.request("", PNG)["messages"][-1]["content"][0]["text"] == "before: - do"


# ------------------------------------------------------------------ fields of the call


def test_options_are_sent_only_where_asked_for():
    plain = prompter().request("one")
    assert plain.keys() == {"model", "temperature", "top_p", "max_tokens", "user", "tools", "tool_choice", "messages"}
    options = {"reasoning_effort": "low", "tool_choice": "required", "seed": 7, "max_completion_tokens": 99}
    asked = prompter(**options, thinking_mode="think", thinking_budget=50).request("one")
    assert (asked["reasoning_effort"], asked["tool_choice"], asked["seed"], asked["max_tokens"]) == (
        ("low", "required", 7, 99)
    )
    assert asked["chat_template_kwargs"] == {"enable_thinking": True, "thinking_budget": 50}


@pytest.mark.parametrize("provider", ["openai", "groq"])
def test_strict_hosts_get_no_template_options(provider):
    config = {"provider": provider, "model": "m", "inference_url": None, "thinking_mode": "think"}
    assert "chat_template_kwargs" not in prompter(**config).request("one")


def test_a_hint_closes_the_system_prompt():
    system = prompter(system_hint="Mind the lava.").request("one")["messages"][0]["content"]
    assert system == "You play.\n\nMind the lava."


def test_the_system_prompt_explains_the_lines_there_are():
    for config, words in (
        ({}, {"did:", "before:"}),
        ({"event_line": False}, {"before:"}),
        ({"history_form": "turns"}, {"did:"}),
        ({"history": 0, "event_line": False}, set()),
    ):
        policy = read_policy(PolicySpec(config={"model": "m", "inference_url": "http://m/v1", **config}))
        crafter = environment_of("crafter")
        system = crafter.system_prompt(policy, crafter.prepare({}))
        assert {word for word in ("did:", "before:") if f"`{word}`" in system} == words


def test_the_tiny_student_s_prompt_is_as_it_was_trained():
    """A change of one byte here makes every trained tiny student worse."""
    p = prompter(tools=(), observation="sparse", history=3, max_actions_per_turn=1)
    for thought in ("explore_any", "I see a tree."):
        take(p, "step 0", Reply("move_up", thinking=thought), Step("move_up", 0.0, event="moved"))
    assert orjson.dumps(p.request("step 2 of 4\nhealth:9")["messages"][1:]) == (
        b'[{"role":"user","content":"step 2 of 4\\nhealth:9\\nbefore: explore_any move_up - move_up"}]'
    )
    assert CRAFTER.tiny_system_prompt == "play crafter"
