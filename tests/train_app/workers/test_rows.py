"""JSONL → token rows: the prompt is inference's prompt, and the answer alone is trained."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from crafter_pipeline.errors import DataError  # noqa: E402
from train_app.workers.rows import IGNORED, training_rows  # noqa: E402
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


def test_an_empty_file_is_refused(write, tokenizer):
    with pytest.raises(DataError, match="holds no examples"):
        training_rows(write(), tokenizer, max_length=128)
