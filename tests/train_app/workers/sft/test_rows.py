"""JSONL → token rows: the prompt is inference's prompt, and the answer alone is trained."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from crafter_pipeline.errors import DataError  # noqa: E402
from train_app.workers.sft.packing import IGNORED  # noqa: E402
from train_app.workers.sft.rows import marked, split_rows, token_rows, training_rows  # noqa: E402
from train_app.workers.students import tiny_tokenizer  # noqa: E402

EXAMPLE = {
    "messages": [
        {"role": "system", "content": "crafter"},
        {"role": "user", "content": "step 1 of 100 light:9 facing:left front:tree before:"},
        {"role": "assistant", "content": "do", "reasoning_content": "collect_wood"},
    ]
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def write(tmp_path):
    def _write(*examples):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(e) + "\n" for e in examples))
        return path

    return _write


def trained_text(rows, tokenizer, i=0):
    return tokenizer.decode([t for t in rows["labels"][i] if t != IGNORED])


def test_the_answer_is_trained_with_its_thought_and_its_end(write, tokenizer):
    rows = training_rows(write(EXAMPLE), tokenizer, max_length=128)
    assert trained_text(rows, tokenizer).split() == ["<think>", "collect_wood</think>", "do<|im_end|>"]


def test_thoughts_can_be_masked(write, tokenizer):
    rows = training_rows(write(EXAMPLE), tokenizer, max_length=128, train_thinking=False)
    assert trained_text(rows, tokenizer).split() == ["do<|im_end|>"]


def test_the_prompt_is_what_inference_renders(write, tokenizer):
    rows = training_rows(write(EXAMPLE), tokenizer, max_length=128)
    prompt = tokenizer.apply_chat_template(
        EXAMPLE["messages"][:-1], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    assert rows["input_ids"][0][: len(prompt)].tolist() == prompt
    assert (rows["labels"][0][: len(prompt)] == IGNORED).all()


def test_a_row_that_is_too_long_is_refused_with_its_line(write, tokenizer):
    with pytest.raises(DataError, match=r"line 2: \d+ tokens, more than sequence_length = 40"):
        long = {
            "messages": [EXAMPLE["messages"][0], {"role": "user", "content": "tree@1,1 " * 60}, EXAMPLE["messages"][2]]
        }
        training_rows(write(EXAMPLE, long), tokenizer, max_length=40)


def test_an_exported_tool_is_rendered_as_the_model_saw_it(write, tokenizer):
    tool = {"type": "function", "function": {"name": "interact_many", "parameters": {}}}
    one = training_rows(write({**EXAMPLE, "tools": [tool]}), tokenizer, max_length=4096)
    other = training_rows(write({**EXAMPLE, "tools": [{**tool, "name": "interact_many"}]}), tokenizer, max_length=4096)
    assert one["input_ids"][0].tolist() == other["input_ids"][0].tolist()


def test_the_rows_that_are_too_long_are_counted(write, tokenizer):
    long = {"messages": [{"role": "user", "content": "tree@1,1 " * 60}, EXAMPLE["messages"][2]]}
    with pytest.raises(DataError, match=r"line 2: .*\(2 rows are, the longest has \d+\)"):
        training_rows(write(EXAMPLE, long, long), tokenizer, max_length=40)


def test_a_share_is_held_back_by_the_rows_themselves(write, tokenizer):
    rows = [
        {"messages": [{"role": "user", "content": f"step {i}"}, {"role": "assistant", "content": "do"}]}
        for i in range(200)
    ]
    path = write(*rows)
    trained, held_back = split_rows(token_rows(path, tokenizer, max_length=64), 0.25)
    assert 30 < len(held_back) < 70 and len(trained) + len(held_back) == 200
    write(*reversed(rows))  # the same rows elsewhere in the file, as when others join them
    _, again = split_rows(token_rows(path, tokenizer, max_length=64), 0.25)
    assert sorted(row.ids.tolist() for row in again) == sorted(row.ids.tolist() for row in held_back)


def test_examples_counts_the_trained_rows(write, tokenizer):
    rows = [
        {"messages": [{"role": "user", "content": f"step {i}"}, {"role": "assistant", "content": "do"}]}
        for i in range(50)
    ]
    trained, held_back = split_rows(token_rows(write(*rows), tokenizer, max_length=64), 0.5, 10)
    assert len(trained) == 10 and 2 <= len(held_back) <= 25
    assert trained[-1].line < 40


def test_what_is_trained_is_shown_in_its_text(write, tokenizer):
    (row,) = token_rows(write(EXAMPLE), tokenizer, max_length=128)
    text, parts = marked(row, tokenizer)
    assert text.endswith("⟦<think> collect_wood</think> do<|im_end|>⟧") and "⟦" not in text[: text.index("⟦")]
    assert [part["trained"] for part in parts] == [False, True]


CALL = {
    "type": "function",
    "function": {"name": "interact", "arguments": {"actions": ["do"], "radius": None}},
}
TOOL = {
    "type": "function",
    "function": {"name": "interact", "parameters": {"type": "object", "properties": {"actions": {"type": "array"}}}},
}
USER = {"role": "user", "content": "step 1"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": [USER, {"role": "robot", "content": "do"}]}, r"line 2, message 2: its role is 'robot'"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, r"line 2, message 2: an answer with neither"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, r"line 2, message 2: an answer with neither"),
        ({"text": "do"}, "line 2: it needs `messages`"),
        (
            {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}], "tools": [TOOL]},
            r"line 2, message 2: interact is called with radius = null",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url"}]},
                    {"role": "assistant", "content": "do"},
                ]
            },
            r"line 2, message 1: it holds a picture",
        ),
    ],
)
def test_a_row_that_teaches_nonsense_is_refused_with_its_line(write, tokenizer, row, complaint):
    with pytest.raises(DataError, match=complaint):
        training_rows(write(EXAMPLE, row), tokenizer, max_length=256)


def test_calls_that_a_published_filter_writes_as_content_are_trained_as_calls(write, tokenizer):
    kept = [{"tool_name": "interact", "arguments": {"actions": ["do"]}}]
    call = {"id": "a", "type": "function", "function": {"name": "interact", "arguments": '{"actions":["do"]}'}}
    said = [{"role": "assistant", "content": kept}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    ours, theirs = (training_rows(write({"messages": [USER, m]}), tokenizer, max_length=256) for m in said)
    text = tokenizer.decode([i for i in theirs["labels"][0].tolist() if i >= 0])
    assert "<tool_call>" in text and "interact" in text and "do" in text
    assert [len(row) for row in ours["input_ids"]] == [len(row) for row in theirs["input_ids"]]


def test_a_line_that_is_not_json_is_named(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(EXAMPLE) + "\n{broken\n")
    with pytest.raises(DataError, match="line 2: not JSON"):
        training_rows(path, tokenizer, max_length=128)


def test_an_empty_file_is_refused(write, tokenizer):
    with pytest.raises(DataError, match="holds no examples"):
        training_rows(write(), tokenizer, max_length=128)
