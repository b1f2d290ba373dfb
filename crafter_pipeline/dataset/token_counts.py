"""How many tokens a row has for the student that will be trained on it, without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jinja2
import orjson
from tokenizers import Tokenizer

from crafter_pipeline.dataset.chat_form import is_conversation, tool_as_served
from crafter_pipeline.errors import DataError
from crafter_pipeline.tokens import in_one_text, load_chat_tokenizer, render_chat, training_template

Json = dict[str, Any]

REMEMBERED = 4096
"""Pieces of text whose tokens are remembered: system prompts and tools come again in every row."""


class TokenCounter:
    """Counts the tokens of rows as `train_app` renders them.

    Args:
        tokenizer: `crafter-tiny`, a model's folder, or a cached hub name; see `tokens.load_chat_tokenizer`.

    Raises:
        DataError: there is no such tokenizer.
    """

    def __init__(self, tokenizer: str) -> None:
        self.name = tokenizer
        self._chat = load_chat_tokenizer(tokenizer)
        self.context = self._chat.context
        """Longest sequence of the model; None: unknown."""
        self._splits = _splits_at(self._chat.tokenizer)
        self._known: dict[str, int] = {}

    def count(self, rows: Sequence[Json]) -> list[int]:
        """Tokens of each row, prompt and answer together.

        Raises:
            DataError: the model's chat template refuses a row.
        """
        pieces = [[piece for text in self._texts(row) for piece in self._split(text)] for row in rows]
        if len(self._known) > REMEMBERED:
            self._known.clear()
        new = list({piece for row in pieces for piece in row if piece not in self._known})
        encoded = self._chat.tokenizer.encode_batch_fast(new, add_special_tokens=False)
        self._known.update(zip(new, map(len, encoded), strict=True))
        return [sum(self._known[piece] for piece in row) for row in pieces]

    def _texts(self, row: Json) -> tuple[str, ...]:
        """What is encoded on its own: prompt and answer, or a whole conversation."""
        messages = in_one_text(row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]])
        tools = _tools_as_served(orjson.dumps(row["tools"])) if row.get("tools") else None
        template = self._chat.template
        if tools and self._chat.tool_template is not None:
            template = self._chat.tool_template
        try:
            if is_conversation(row):
                return (self._render(messages, tools, training_template(template) or template),)
            prompt = self._render(messages[:-1], tools, template, answer_next=True)
            whole = self._render(messages, tools, template)
        except (jinja2.TemplateError, TypeError, ValueError) as e:
            metadata = row.get("metadata") or {}
            raise DataError(
                f"The chat template of {self.name} refuses session {metadata.get('session_id')}, turn "
                f"{metadata.get('turn')}: {e}. Choose another tokenizer, or another export.form."
            ) from e
        return prompt, whole[len(prompt) :].rstrip("\n")

    def _render(
        self, messages: Sequence[Json], tools: list[Json] | None, template: str, *, answer_next: bool = False
    ) -> str:
        return render_chat(
            messages,
            tools=tools,
            add_generation_prompt=answer_next,
            template=template,
            variables=self._chat.variables,
        )

    def _split(self, text: str) -> list[str]:
        """Pieces whose tokens do not depend on each other."""
        return [piece for piece in self._splits.split(text) if piece] if self._splits is not None else [text]


@lru_cache(maxsize=64)
def _tools_as_served(tools: bytes) -> list[Json]:
    return [tool_as_served(tool) for tool in orjson.loads(tools)]


def _splits_at(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Where a tokenizer always begins anew: at its markup, which it cuts out before anything else. None: it may look
    beyond it, so that only whole texts can be counted."""
    if '"prepend_scheme":"first"' in tokenizer.to_str():
        return None
    markup = [
        token.content
        for token in tokenizer.get_added_tokens_decoder().values()
        if not (token.normalized or token.lstrip or token.rstrip or token.single_word)
    ]
    if not markup:
        return None
    return re.compile(f"({'|'.join(map(re.escape, sorted(markup, key=len, reverse=True)))})")
