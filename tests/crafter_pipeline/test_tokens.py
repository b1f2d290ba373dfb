"""The word tokenizer and Qwen3's template."""

from __future__ import annotations

import pytest

from crafter_pipeline.tokens import build_tokenizer, render_chat

MESSAGES = [
    {"role": "system", "content": "crafter"},
    {"role": "user", "content": "step 3\ntree@-2,1  facing:left"},
    {"role": "assistant", "content": "do", "reasoning_content": "collect_wood"},
]
WORDS = ("crafter", "step", "tree@-2,1", "facing:left", "do", "collect_wood")


def test_a_known_word_is_one_token_and_whitespace_costs_none():
    tokens = build_tokenizer(WORDS).encode(render_chat(MESSAGES)).tokens
    assert tokens == [
        *("<|im_start|>", "▁system", "▁crafter", "<|im_end|>"),
        *("<|im_start|>", "▁user", "▁step", "▁3", "▁tree@-2,1", "▁facing:left", "<|im_end|>"),
        *("<|im_start|>", "▁assistant", "<think>", "▁collect_wood", "</think>", "▁do", "<|im_end|>"),
    ]


@pytest.mark.parametrize("text", ["hello", "12+34=46", "naïve ☃ 日本", "tree@99,99 unknown", "1000000"])
def test_any_text_survives_by_characters_and_bytes(text):
    tokenizer = build_tokenizer(WORDS)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_prompt_is_a_prefix_of_the_conversation():
    prompt = render_chat(MESSAGES[:2], add_generation_prompt=True)
    tokenizer = build_tokenizer(WORDS)
    whole = tokenizer.encode(render_chat(MESSAGES)).ids
    ids = tokenizer.encode(prompt).ids
    assert whole[: len(ids)] == ids
    assert tokenizer.decode(whole[len(ids) :], skip_special_tokens=True) == "<think> collect_wood</think> do"


def test_the_template_is_the_one_that_trl_recognises_as_qwen3():
    trl = pytest.importorskip("trl.chat_template_utils")
    from crafter_pipeline.tokens import chat_template

    assert chat_template() == trl.qwen3_chat_template


def test_our_training_variant_is_trl_s_but_for_the_line_break_after_an_answer():
    trl = pytest.importorskip("trl.chat_template_utils")
    from crafter_pipeline.tokens import chat_template, training_template

    ours = training_template(chat_template())
    marked = "{{- '<|im_end|>\\n' }}\n        {%- endgeneration %}"
    outside = "{{- '<|im_end|>' }}\n        {%- endgeneration %}\n        {{- '\\n' }}"
    assert ours.split("-#}")[1].replace(outside, marked) == trl.qwen3_training_chat_template.split("-#}")[1]


def test_a_template_is_its_own_training_variant_if_it_has_marks():
    from crafter_pipeline.tokens import training_template

    marked = "{% generation %}{{ m.content }}{% endgeneration %}"
    assert (training_template(marked), training_template("{{ m.content }}")) == (marked, None)
