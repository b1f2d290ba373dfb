"""Thoughts and answers told apart: every place that reads a model's text uses this one function."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"<think>(.*?)(?:</think>|\Z)\s*", re.DOTALL)


def split_thinking(text: str, known: str = "") -> tuple[str, str]:
    """(answer, thinking) of a text with `<think>…</think>`; text without tags is left exactly as it is.

    A missing `<think>` (the template wrote it) and a missing `</think>` (the tokens ran out) are understood; several
    blocks are joined by line breaks.

    Args:
        text: A model's content.
        known: Thoughts that came beside it (`reasoning_content`); they stand first and are not repeated.
    """
    before, closed, _ = text.partition("</think>")
    if closed and "<think>" not in before:
        text = "<think>" + text
    if "<think>" not in text:
        return text, known
    found = [block.strip() for block in _BLOCK.findall(text)]
    thoughts = ([known] if known else []) + [t for t in found if t and t != known.strip()]
    return _BLOCK.sub("", text).strip(), "\n".join(thoughts)
