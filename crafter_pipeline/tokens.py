"""The tiny student's tokenizer and Qwen3's chat template, without torch.

One token is one word of the environments' closed vocabulary (`tree@-2,1`, `collect_wood`, `place_table`); any other
text falls back to characters and bytes, so that nothing is ever unknown. Whitespace is normalised: runs of blanks
and line breaks count as one separator and cost no token, which keeps a turn near 70 tokens.

The special tokens and the chat template are Qwen3's own: CPU runs go through the code that Qwen3-4B runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
import jinja2.sandbox
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
"""Cut out of decoded text."""
MARKUP_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Kept in decoded text: they carry thoughts and tool calls."""
ROLES = ("system", "user", "assistant", "tool")
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-*/=().,:;!?@#%&_<>[]{}'\"|^~$\\"
WORD_START = "▁"
NUMBERS = range(0, 256)


def build_tokenizer(words: Iterable[str]) -> Tokenizer:
    """A word tokenizer with character and byte fallback.

    Args:
        words: The environments' vocabulary; order decides ids, duplicates are dropped.
    """
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + [WORD_START, *CHARACTERS]
    pieces += [WORD_START + w for w in (*ROLES, *map(str, NUMBERS), *words)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, ignore_merges=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=WORD_START, prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(WORD_START, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in MARKUP_TOKENS])
    return tokenizer


def chat_template() -> str:
    """Qwen3's chat template, word for word (Apache-2.0, Alibaba Cloud)."""
    return files("crafter_pipeline").joinpath("qwen3.jinja").read_text(encoding="utf-8")


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
    return environment.from_string(template)


def render_chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    template: str | None = None,
    enable_thinking: bool | None = None,
) -> str:
    """Text of a conversation in Qwen3's template, as transformers' `apply_chat_template` gives it."""
    variables: dict[str, Any] = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
    if tools:
        variables["tools"] = list(tools)
    if enable_thinking is not None:
        variables["enable_thinking"] = enable_thinking
    return _compiled(template or chat_template()).render(**variables)
