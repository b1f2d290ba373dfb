"""Messages → text and token ids → text: the two tokenizer calls, with the types that they really have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from crafter_pipeline.tokens import chat_template, in_one_text, render_chat


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    answer_next: bool,
    **variables: Any,
) -> str:
    """A conversation in the tokenizer's chat template, text in parts as one text; `answer_next` opens the assistant's
    turn."""
    if tokenizer.chat_template == chat_template():  # transformers' sandbox, for strangers' templates, doubles the time
        known = {**tokenizer.special_tokens_map, **variables}
        return render_chat(in_one_text(messages), tools=tools, add_generation_prompt=answer_next, variables=known)
    text = tokenizer.apply_chat_template(
        in_one_text(messages),
        tools=[dict(t) for t in tools] if tools else None,
        add_generation_prompt=answer_next,
        tokenize=False,
        **variables,
    )
    assert isinstance(text, str)
    return text


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
    """Text of token ids; markup such as `<think>` stays."""
    text = tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
    assert isinstance(text, str)
    return text
