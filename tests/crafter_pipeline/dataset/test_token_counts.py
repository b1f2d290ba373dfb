"""Tokens of rows without torch. That the counts equal the trainer's is shown in tests/train_app/workers."""

from __future__ import annotations

import json

import pytest

from crafter_pipeline.dataset.token_counts import REMEMBERED, TokenCounter
from crafter_pipeline.errors import DataError
from crafter_pipeline.tokens import (
    TINY_CONTEXT,
    build_tokenizer,
    chat_template,
    load_chat_tokenizer,
    render_chat,
    tiny_tokenizer,
)

PROMPT = [{"role": "system", "content": "play crafter"}, {"role": "user", "content": "step 3 tree@-2,1 facing:left"}]
ANSWER = {"role": "assistant", "content": "<think>\ncollect_wood\n</think>\n\ndo"}
CHAT = {"messages": [*PROMPT, ANSWER], "metadata": {"session_id": "run-0", "turn": 3}}
COMPLETION = {"prompt": PROMPT, "completion": [ANSWER], "metadata": {}}
CONVERSATION = {"messages": [*PROMPT, ANSWER, PROMPT[1], ANSWER], "metadata": {"turns": 2}}
TOKENS = (
    *("<|im_start|>", "system", "play", "crafter", "<|im_end|>"),
    *("<|im_start|>", "user", "step", "3", "tree@-2,1", "facing:left", "<|im_end|>"),
    *("<|im_start|>", "assistant", "<think>", "collect_wood", "</think>", "do", "<|im_end|>"),
)


@pytest.fixture
def folder(tmp_path):
    """A model's folder with a tokenizer of a few words."""
    build_tokenizer(["play", "crafter"]).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(chat_template())
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 77}))
    return tmp_path


def test_a_row_counts_its_words_and_markup():
    counter = TokenCounter("crafter-tiny")
    assert counter.count([CHAT, COMPLETION]) == [len(TOKENS)] * 2
    assert counter.context == TINY_CONTEXT


def test_a_conversation_counts_the_thoughts_of_every_turn():
    """As it is trained; Qwen3's own template shows the thoughts of the last turn alone."""
    assert TokenCounter("crafter-tiny").count([CONVERSATION]) == [len(TOKENS) + 14]


def test_what_is_remembered_changes_no_count():
    counter = TokenCounter("crafter-tiny")
    rows = [
        {**CHAT, "messages": [PROMPT[0], {"role": "user", "content": f"step {i} x{i}"}, ANSWER]} for i in range(5000)
    ]
    one = [n for i in range(0, len(rows), 500) for n in counter.count(rows[i : i + 500])]
    whole = [len(tiny_tokenizer().encode(render_chat(row["messages"])).ids) for row in rows[::999]]
    assert one[::999] == whole
    assert len(counter._known) <= REMEMBERED + 600


def test_a_folder_s_tokenizer_template_and_context(folder):
    counter = TokenCounter(str(folder))
    assert counter.context == 77
    assert counter.count([CHAT])[0] > len(TOKENS)  # its words are not known to it: characters


def test_an_adapter_without_a_tokenizer_takes_that_of_its_base(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    assert TokenCounter(str(adapter)).context == 77


def test_templates_in_the_tokenizer_s_config_and_one_for_tools(folder):
    (folder / "chat_template.jinja").unlink()
    config = {
        "chat_template": [
            {"name": "default", "template": "plain"},
            {"name": "tool_use", "template": "{{ bos_token }}"},
        ],
        "bos_token": {"content": "<s>"},
        "model_max_length": 1e30,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").unlink()
    chat = load_chat_tokenizer(str(folder))
    assert (chat.template, chat.tool_template, chat.variables) == ("plain", "{{ bos_token }}", {"bos_token": "<s>"})
    assert chat.context is None


def test_a_model_in_the_hub_s_cache_is_found_and_none_is_fetched(folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--org--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("tokenizer.json", "chat_template.jinja"):
        (snapshot / name).write_bytes((folder / name).read_bytes())
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert TokenCounter("org/model").count([CHAT]) == TokenCounter(str(folder)).count([CHAT])
    with pytest.raises(
        DataError, match=r"no tokenizer for 'org/other': .* nothing is downloaded .* `hf download org/other"
    ):
        TokenCounter("org/other")


@pytest.mark.parametrize("name", ["no such model", "a/b/c", "", "-"])
def test_a_name_that_is_none_is_told_so(name):
    with pytest.raises(DataError, match="There is no tokenizer for"):
        TokenCounter(name)


def test_damaged_and_missing_files_are_named(folder, tmp_path):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="no tokenizer that can be read"):
        TokenCounter(str(folder))
    (folder / "config.json").write_text("{")
    build_tokenizer([]).save(str(folder / "tokenizer.json"))
    with pytest.raises(DataError, match="config.json: cannot be read"):
        TokenCounter(str(folder))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="has no chat template"):
        TokenCounter(str(folder))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="the folder holds no tokenizer.json"):
        TokenCounter(str(empty))


def test_a_template_that_refuses_a_row_is_named_with_the_row(folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system prompts here') }}")
    with pytest.raises(DataError, match="refuses session run-0, turn 3: no system prompts here"):
        TokenCounter(str(folder)).count([CHAT])
