"""What a row looks like, in its three forms, and that every row is valid chat."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest
from PIL import Image

from crafter_pipeline.config import ExportConfig, FilterConfig
from crafter_pipeline.contracts import Reply
from crafter_pipeline.conversation import answer_again, tool_results
from crafter_pipeline.dataset.chat_form import is_conversation, problems
from crafter_pipeline.dataset.pictures import Pictures
from crafter_pipeline.dataset.rows import conversation_row, duplicate_key, texts_of, turn_row
from crafter_pipeline.dataset.selection import SelectedRollout, SelectedTurn, select
from crafter_pipeline.errors import DataError

SYSTEM = {"role": "system", "content": "You play Crafter."}
TOOL = {"type": "function", "function": {"name": "interact_many", "parameters": {"type": "object"}}}
REPLY = Reply("do", thinking="collect wood")
FORMS = ("chat", "completion", "conversation")


def user(text):
    return {"role": "user", "content": text}


def call(arguments='{"actions":["do"]}', id_="call_1", **function):
    function = {"name": "interact_many", "arguments": arguments, **function}
    return {"id": id_, "type": "function", "function": function}


@dataclass
class FakeCall:
    prompt: Any
    reply: Any
    tools: Any


def make_selected(index=0, *, prompt=None, reply=REPLY, tools=(), achievements=("collect_wood",), **changes):
    """A selected turn that collected wood, but for what the test names."""
    rollout = SelectedRollout(0, "run-0", 7, "crafter", "gpt", "openai", 1.0, achievements, 2)
    facts = dict(
        rollout=rollout,
        index=index,
        model="gpt",
        provider="openai",
        reward=1.0,
        unlocked=("collect_wood",),
        goal="collect_wood",
        parse_failure=None,
        removed_by=None,
        call=FakeCall(prompt or [SYSTEM, user(f"step {index}")], reply, list(tools)),
    )
    turn = SelectedTurn(**{name: facts[name] for name in SelectedTurn.__dataclass_fields__ if name in facts})
    return replace(turn, **changes)


def row_of(form, *turns, labels=(), pictures=None, **export):
    """The row of the turns in a form; the forms of one turn take the last one."""
    config = ExportConfig(form=form, **export)
    if form == "conversation":
        return conversation_row(turns, config, labels, pictures)
    return turn_row(turns[-1], config, labels[-1] if labels else None, pictures)


# --------------------------------------------------------------------------- the forms


def test_chat_is_the_prompt_as_served_and_the_answer():
    row = row_of("chat", make_selected(3, tools=[TOOL]))
    assert row == {
        "messages": [
            SYSTEM,
            user("step 3"),
            {"role": "assistant", "content": "<think>\ncollect wood\n</think>\n\ndo"},
        ],
        "tools": [{**TOOL, "name": "interact_many"}],
        "metadata": {
            "session_id": "run-0",
            "turn": 3,
            "model": "gpt",
            "provider": "openai",
            "environment": "crafter",
            "seed": 7,
            "reward": 1.0,
            "achievements": ["collect_wood"],
            "turn_reward": 1.0,
            "unlocked": ["collect_wood"],
            "goal": "collect_wood",
            "parse_failure": "",
        },
    }
    assert list(row)[-1] == "metadata"


def test_completion_splits_it_after_the_prompt():
    turn = make_selected(3, tools=[TOOL])
    chat, completion = row_of("chat", turn), row_of("completion", turn)
    assert [*completion["prompt"], *completion["completion"]] == chat["messages"]
    assert completion["tools"] == chat["tools"] and completion["metadata"] == chat["metadata"]


def test_a_conversation_has_the_system_prompt_once_and_then_user_and_assistant_in_turn():
    row = row_of("conversation", *(make_selected(i) for i in range(3)))
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["system", *["user", "assistant"] * 3]
    assert [m["content"] for m in row["messages"] if m["role"] == "user"] == ["step 0", "step 1", "step 2"]
    assert (row["metadata"]["turns"], row["metadata"]["turn_rewards"]) == (3, [1.0, 1.0, 1.0])
    assert is_conversation(row) and not is_conversation(row_of("chat", make_selected()))


def test_in_a_conversation_the_result_of_a_tool_call_follows_it():
    reply = Reply("", tool_calls=(call(id_="a"), call(id_="b")))
    row = row_of("conversation", *(make_selected(i, reply=reply, tools=[TOOL]) for i in range(2)))
    assert [m["role"] for m in row["messages"]][2:6] == ["assistant", "tool", "tool", "user"]
    assert [m["tool_call_id"] for m in row["messages"] if m["role"] == "tool"] == ["a", "b"]
    assert problems(row) == []


@pytest.mark.parametrize("window", [1, 2, 20])
@pytest.mark.parametrize("tools", [(), (TOOL,)])
def test_prompts_that_repeat_earlier_turns_do_not_repeat_them_in_a_conversation(window, tools):
    """As the task app sends them with history_form = "turns": with the results that told what came of the calls."""
    turns, earlier = [], []
    for i in range(5):
        reply = Reply(f"go {i}", thinking="why", tool_calls=(call(id_=f"call_{i}"),) if tools else ())
        prompt = [SYSTEM, *(m for turn in earlier[-window:] for m in turn), user(f"step {i}")]
        turns.append(make_selected(i, prompt=prompt, reply=reply, tools=tools))
        said = answer_again(reply, thoughts=True, tools=bool(tools))
        earlier.append([prompt[-1], said, *tool_results(said, f"did {i}")])
    row = row_of("conversation", *turns)
    assert [m["content"] for m in row["messages"] if m["role"] == "user"] == [f"step {i}" for i in range(5)]
    assert [m["content"] for m in row["messages"] if m["role"] == "tool"] == [f"did {i}" for i in range(4 * len(tools))]
    assert sum(m["role"] == "assistant" for m in row["messages"]) == 5
    assert problems(row) == []


def test_a_conversation_cannot_change_its_system_prompt_or_tools():
    other = [{"role": "system", "content": "You are tired."}, user("step 1")]
    with pytest.raises(DataError, match="turn 1: its system prompt differs"):
        row_of("conversation", make_selected(0), make_selected(1, prompt=other))
    with pytest.raises(DataError, match="turn 1: it was offered other tools"):
        row_of("conversation", make_selected(0), make_selected(1, tools=[TOOL]))


@pytest.mark.parametrize("form", FORMS)
def test_metadata_has_the_same_keys_and_types_in_every_row(form):
    """A loader takes its schema from the first rows: what is null there is refused when it is a text later."""
    bare = make_selected(goal=None, provider=None, model=None)
    full = make_selected(parse_failure="no action in it")
    one, other = row_of(form, bare)["metadata"], row_of(form, full)["metadata"]
    assert {k: type(v) for k, v in one.items()} == {k: type(v) for k, v in other.items()}
    assert row_of(form, make_selected(), labels=[REPLY], label="crafter-expert")["metadata"]["label_model"] == (
        "crafter-expert"
    )


# --------------------------------------------------------------------------- thoughts


@pytest.mark.parametrize(
    "reply",
    [REPLY, Reply("<think>collect wood</think>do"), Reply("collect wood</think>\ndo"), Reply("do", "collect wood")],
)
def test_thoughts_stand_in_the_content_or_apart_or_nowhere(reply):
    said = {
        mode: row_of("chat", make_selected(reply=reply), thinking=mode)["messages"][-1]
        for mode in ("keep", "strip", "separate")
    }
    assert said["keep"] == {"role": "assistant", "content": "<think>\ncollect wood\n</think>\n\ndo"}
    assert said["strip"] == {"role": "assistant", "content": "do"}
    assert said["separate"] == {"role": "assistant", "content": "do", "reasoning_content": "collect wood"}


@pytest.mark.parametrize("mode", ["keep", "strip", "separate"])
def test_thoughts_in_prompts_stay_as_served(mode):
    served = [SYSTEM, user("a"), {"role": "assistant", "content": "<think>\nx\n</think>\n\ndo"}, user("b")]
    assert row_of("chat", make_selected(prompt=served), thinking=mode)["messages"][:-1] == served


@pytest.mark.parametrize("form", FORMS)
def test_a_share_of_the_worlds_keeps_its_thoughts(form):
    def thinks(share, seed):
        turn = make_selected()
        turn = replace(turn, rollout=replace(turn.rollout, seed=seed))
        told = list(texts_of(row_of(form, turn, thinking="separate", thinking_share=share)))
        assert "do" in told
        return "collect wood" in told

    kept = {share: {seed for seed in range(200) if thinks(share, seed)} for share in (0.3, 0.7)}
    assert 40 <= len(kept[0.3]) <= 80 and 120 <= len(kept[0.7]) <= 160
    assert kept[0.3] < kept[0.7]  # a larger share takes none away
    assert thinks(0.3, None) and all(thinks(1.0, seed) for seed in range(20))


def test_no_share_of_thoughts_that_are_stripped():
    with pytest.raises(ValueError, match="thinking_share: no row keeps"):
        ExportConfig(thinking="strip", thinking_share=0.5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reply", [Reply(""), Reply(" \n"), Reply("", thinking="hm"), Reply("<think>hm</think>")])
def test_an_answer_without_text_or_call_is_no_example(form, reply):
    with pytest.raises(DataError, match="the answer is empty"):
        row_of(form, make_selected(reply=reply))


# --------------------------------------------------------------------------- valid form


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"actions": ["do"]}', '{"actions": ["do"]}'),
        ({"actions": ["do"]}, '{"actions":["do"]}'),
        (None, "{}"),
        ("", "{}"),
    ],
)
def test_tool_arguments_are_text_in_answers_and_in_prompts(arguments, text):
    earlier = [user("a"), {"role": "assistant", "content": None, "tool_calls": [call(arguments)]}]
    prompt = [SYSTEM, *earlier, {"role": "tool", "tool_call_id": "call_1", "content": "done"}, user("b")]
    row = row_of("chat", make_selected(prompt=prompt, reply=Reply("", tool_calls=(call(arguments),))))
    for message in (row["messages"][2], row["messages"][-1]):
        assert message["tool_calls"][0]["function"]["arguments"] == text and message["content"] == ""
    assert problems(row) == []


@pytest.mark.parametrize(
    "calls",
    [
        (call("{broken"),),
        (call("[1]"),),
        (call(["do"]),),
        (call(name=None),),
        ({"id": "a", "type": "function", "function": "interact_many"},),
        ({"id": "a", "type": "function", "function": None},),
        ("do",),
        "do",
    ],
)
def test_calls_that_are_no_calls_are_named(calls):
    with pytest.raises(DataError, match="a tool call has no name, or arguments"):
        row_of("chat", make_selected(reply=Reply("", tool_calls=calls)))


def test_calls_get_ids_of_their_own():
    reply = Reply("", tool_calls=(call(id_=None), call(id_="x"), call(id_="x")))
    said = row_of("chat", make_selected(reply=reply))["messages"][-1]
    assert [c["id"] for c in said["tool_calls"]] == ["call_0", "x", "call_2"]


@pytest.mark.parametrize(
    ("message", "valid"),
    [
        ({"role": "user", "content": None}, {"role": "user", "content": ""}),
        ({"role": "user"}, {"role": "user", "content": ""}),
        (
            {"role": "user", "content": "a", "name": "bob", "audio": None},
            {"role": "user", "content": "a", "name": "bob"},
        ),
        ({"role": "user", "content": ["a"]}, {"role": "user", "content": [{"type": "text", "text": "a"}]}),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "https://x/y.png"}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
        ),
        ({"role": "assistant", "content": "a", "tool_calls": []}, {"role": "assistant", "content": "a"}),
    ],
)
def test_what_servers_leave_out_or_shorten_is_brought_into_form(message, valid):
    row = row_of("chat", make_selected(prompt=[message, user("b")]))
    assert row["messages"][0] == valid and problems(row) == []


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("hello", "its prompt holds no messages"),
        (["hello"], "message 1 of its prompt: it is no object"),
        ([{"role": "bot", "content": "a"}], "message 1 of its prompt: its role is 'bot', not one of system"),
        ([{"role": ["user"], "content": "a"}], "its role is"),
        ([user("a"), {"role": "user", "content": 5}], "message 2 of its prompt: its content is neither text nor"),
        ([{"role": "user", "content": {"text": "a"}}], "its content is neither"),
        ([{"role": "user", "content": [{"type": "video"}]}], "a part of its content is neither text nor a picture"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "a picture in it has no URL"),
        ([{"role": "user", "content": "a", "name": 5}], "its name is no text"),
        ([{"role": "tool", "content": "a", "tool_call_id": "x"}], "the result of a tool call that was not made"),
        ([{"role": "assistant", "content": "", "tool_calls": [call()]}, user("a")], "has no result"),
        ([user("a"), {"role": "assistant", "content": "", "tool_calls": [call()]}], "has no result"),
        ([{"role": "assistant", "content": "", "tool_calls": "do"}], "a tool call has no name"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_prompts_that_are_no_chat_are_named(form, prompt, reason):
    with pytest.raises(DataError, match=reason):
        row_of(form, make_selected(prompt=prompt))


@pytest.mark.parametrize(
    "tools", [["x"], [{"type": "function"}], [{"type": "function", "function": "x"}], [{"name": 5}]]
)
def test_tools_without_a_name_are_named(tools):
    with pytest.raises(DataError, match="one of its tools has no name"):
        row_of("chat", make_selected(tools=tools))


def test_a_flat_tool_is_brought_into_form():
    row = row_of("chat", make_selected(tools=[{"type": "function", "name": "go", "parameters": {}}]))
    assert row["tools"] == [{"type": "function", "function": {"name": "go", "parameters": {}}, "name": "go"}]


@pytest.mark.parametrize("thinking", ["keep", "strip", "separate"])
@pytest.mark.parametrize("form", FORMS)
def test_every_row_of_the_originals_database_is_valid(sample_db, tmp_path, form, thinking):
    config = FilterConfig(export=ExportConfig(form=form, thinking=thinking))
    rows = []
    with select([sample_db], config, tmp_path) as selection:
        rollouts: dict[str, list[SelectedTurn]] = {}
        for turn in selection.turns():
            turn.call.prompt  # noqa: B018  to be read in order
            rollouts.setdefault(turn.rollout.session_id, []).append(turn)
    for turns in rollouts.values():
        for group in [turns] if form == "conversation" else [[turn] for turn in turns]:
            rows.append(row_of(form, *group, thinking=thinking))
    assert [problem for row in rows for problem in problems(orjson.loads(orjson.dumps(row)))] == []
    assert len(rows) == (3 if form == "conversation" else 50)


@pytest.mark.parametrize("form", FORMS)
def test_the_originals_pictures_tell_their_true_type_in_the_row_or_lie_beside_it(tmp_path, form):
    """It calls its PNGs JPEG. A row names its files in the order of their placeholders, none twice written."""
    out = io.BytesIO()
    Image.new("RGB", (2, 2)).save(out, "PNG")
    data = base64.b64encode(out.getvalue()).decode()
    shown = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}},
    ]
    turns = [make_selected(i, prompt=[SYSTEM, user(shown)]) for i in range(2)]
    inside = row_of(form, *turns)
    pictures = Pictures(tmp_path / "work", "d.images")
    beside, bare = (row_of(form, *t, pictures=pictures) for t in (turns, [make_selected()]))
    assert f'"data:image/png;base64,{data}"' in orjson.dumps(inside).decode() and "images" not in inside
    (file,) = (tmp_path / "work").iterdir()
    assert beside["images"] == [f"d.images/{file.name}"] * (2 if form == "conversation" else 1)
    assert bare["images"] == [] and list(bare)[-1] == "metadata"
    assert not any(map(problems, (inside, beside, bare)))


# --------------------------------------------------------------------------- the check itself


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"messages": []}, "holds no messages"),
        ({"messages": [user("a")]}, "does not end with an assistant's message"),
        ({"messages": [user("a"), {"role": "assistant", "content": ""}]}, "its answer is empty"),
        ({"messages": [user(None), {"role": "assistant", "content": "a"}]}, "content is NoneType"),
        ({"messages": [{"role": "bot", "content": "a"}, {"role": "assistant", "content": "a"}]}, "role 'bot'"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [call({})]}]}, "no JSON text"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [call("[]")]}]}, "no JSON text"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [call(name="")]}]}, "without a name"),
        ({"tools": [TOOL]}, "without a top-level name"),
        ({"tools": []}, "no filled list"),
        ({"metadata": None}, "metadata is no object"),
        ({"label": {"role": "assistant", "content": None}}, "label: content is NoneType"),
    ],
)
def test_the_check_finds_what_is_wrong(change, problem):
    row = row_of("chat", make_selected())
    assert problems(row) == []
    metadata = row.pop("metadata")
    found = problems({**row, **change} if "metadata" in change else {**row, **change, "metadata": metadata})
    assert any(problem in one for one in found), found


def test_the_check_sees_a_call_without_its_result():
    said = {"role": "assistant", "content": "", "tool_calls": [call()]}
    row = {"messages": [user("a"), said, user("b"), {"role": "assistant", "content": "c"}], "metadata": {}}
    assert problems(row) == ["message 2: a call before it has no result"]


# --------------------------------------------------------------------------- labels


LABEL = Reply("noop", thinking="rest")


def test_a_label_is_a_column_of_the_same_form():
    own, told = (
        {"role": "assistant", "content": f"<think>\n{t}\n</think>\n\n{a}"}
        for a, t in (("do", "collect wood"), ("noop", "rest"))
    )
    export = {"labels": [LABEL], "label": "crafter-expert"}
    chat, completion, whole = (row_of(form, make_selected(), **export) for form in FORMS)
    assert (chat["messages"][-1], chat["label"]) == (own, told)
    assert (completion["completion"], completion["label"]) == ([own], [told])
    assert (whole["messages"][-1], whole["label"]) == (own, [told])

    chat, completion, whole = (row_of(form, make_selected(), target="label", **export) for form in FORMS)
    assert (chat["messages"][-1], chat["answer"]) == (told, own)
    assert (completion["completion"], completion["answer"]) == ([told], [own])
    assert (whole["messages"][-1], whole["answer"]) == (told, [own])
    assert not any(problems(row) or "label" in row for row in (chat, completion, whole))


@pytest.mark.parametrize("thinking", ["keep", "separate"])
def test_a_state_whose_own_answer_is_empty_is_taught_by_its_label_all_the_same(thinking):
    empty = make_selected(reply=Reply("", thinking="lost"))
    export = {"labels": [LABEL], "label": "crafter-expert", "thinking": thinking}
    chat, whole = (row_of(form, empty, target="label", **export) for form in ("chat", "conversation"))
    assert chat["messages"][-1]["content"].endswith("noop") and chat["answer"]["content"] == ""
    assert set(chat["answer"]) == set(chat["messages"][-1]), "columns are alike"
    assert whole["answer"] == [chat["answer"]] and not problems(chat) and not problems(whole)
    with pytest.raises(DataError, match="the answer is empty"):
        row_of("chat", empty, **export)


def test_a_conversation_of_labels_answers_the_calls_of_the_labels():
    labels = [Reply("", tool_calls=(call(id_=f"label_{i}"),)) for i in range(2)]
    turns = [make_selected(i, tools=[TOOL], reply=Reply("", tool_calls=(call(id_=f"own_{i}"),))) for i in range(2)]
    row = row_of("conversation", *turns, labels=labels, label="crafter-expert", target="label")
    assert [m["tool_call_id"] for m in row["messages"] if m["role"] == "tool"] == ["label_0"]
    assert problems(row) == []


# --------------------------------------------------------------------------- reading rows


def test_texts_of_a_row_are_what_a_model_reads_and_writes():
    reply = Reply("", thinking="why", tool_calls=(call(),))
    for form in FORMS:
        row = row_of(form, make_selected(reply=reply, tools=[TOOL]), thinking="separate")
        assert list(texts_of(row)) == ["You play Crafter.", "step 0", "", "why", 'interact_many {"actions":["do"]}']


def test_rows_are_equal_when_only_metadata_and_call_ids_differ():
    def key(id_="call_1", arguments="{}", **changes):
        reply = Reply("", tool_calls=(call(arguments, id_),))
        return duplicate_key(row_of("chat", make_selected(reply=reply, prompt=[user("a")], **changes)))

    assert key() == key("call_2", index=5, reward=3.0)
    assert key() != key(arguments='{"actions":["do"]}')
    assert key() != key(tools=[TOOL])
