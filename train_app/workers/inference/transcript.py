"""Tokens to text while they are sampled: no half characters, stop texts cut exactly, thoughts and calls told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from crafter_pipeline.thinking import split_thinking
from train_app.workers.inference.tool_calls import STARTS, Call, may_be_json, parse_tool_calls
from train_app.workers.text import decode

HALF = "\ufffd"
"""What decoders write for a character whose bytes are not complete."""
THINK, THINK_END = "<think>", "</think>"


class Transcript:
    """The text of a growing list of tokens.

    Args:
        stop: Texts that end the answer; they are no part of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._before, self._read = 0, 0
        """Tokens from `_before` on are decoded anew: those up to `_read` give the next ones their context."""
        self.text = ""
        """Without the stop text, and without a character that is not complete."""
        self.stopped = False

    def push(self, token: int) -> bool:
        """Append a token; True when the text has come to a stop text."""
        self._ids.append(token)
        known = decode(self._tokenizer, self._ids[self._before : self._read])
        now = decode(self._tokenizer, self._ids[self._before :])
        if len(now) <= len(known) or now.endswith(HALF):
            return False
        added = now[len(known) :]
        self._before, self._read = self._read, len(self._ids)
        searched = len(self.text) - max(map(len, self._stop), default=1) + 1
        self.text += added
        cut = first_of(self.text, self._stop, max(0, searched))
        if cut is not None:
            self.text, self.stopped = self.text[:cut], True
        return self.stopped

    def end(self) -> str:
        """The whole text: what is left of it, too."""
        if not self.stopped:
            self.text = text_of(self._tokenizer, self._ids, self._stop)
        return self.text

    @property
    def certain(self) -> str:
        """The text but for an end that may yet become a stop text."""
        return self.text if self.stopped else self.text[: len(self.text) - beginning_of(self.text, self._stop)]


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
    """Text of an answer up to its first stop text."""
    text = decode(tokenizer, ids)
    return text[: first_of(text, stop)]


def first_of(text: str, stop: Sequence[str], start: int = 0) -> int | None:
    """Where the first of the stop texts begins."""
    return min((at for s in stop if (at := text.find(s, start)) >= 0), default=None)


def beginning_of(text: str, markers: Sequence[str]) -> int:
    """Length of the longest end of the text with which one of the markers begins."""
    longest = max((len(m) - 1 for m in markers), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(m.startswith(text[-length:]) for m in markers):
            return length
    return 0


@dataclass(frozen=True, slots=True)
class Parts:
    """An answer as a chat message has it."""

    content: str
    thinking: str
    calls: tuple[Call, ...] = ()


def parts_of(text: str, *, thinks: bool, tools: bool) -> Parts:
    """An answer taken apart.

    Args:
        thinks: The prompt ended inside a thought: the text goes on with it.
        tools: Look for calls.
    """
    content, thinking = split_thinking(THINK + text if thinks and THINK not in text else text)
    if not tools:
        return Parts(content, thinking)
    calls, content = parse_tool_calls(content)
    return Parts(content, thinking, tuple(calls))


def certain_parts(text: str, *, thinks: bool, tools: bool) -> Parts:
    """What is certain of an unfinished answer: nothing that further text could turn into something else."""
    markers = (THINK, THINK_END, *(STARTS if tools else ()))
    text = text[: len(text) - beginning_of(text, markers)]
    parts = parts_of(text, thinks=thinks, tools=False)
    content = parts.content
    if tools:
        content = "" if may_be_json(content) else content.lstrip()[: first_of(content.lstrip(), STARTS)]
    # Blanks at the end may be cut when more comes.
    return Parts(content.rstrip(), parts.thinking.rstrip())


class Deltas:
    """What is new of an answer, part by part."""

    def __init__(self) -> None:
        self._told = {"reasoning_content": "", "content": ""}

    def of(self, parts: Parts) -> dict[str, str]:
        """The fields of a delta; empty when nothing is new."""
        new = {"reasoning_content": parts.thinking, "content": parts.content}
        return {name: delta for name, text in new.items() if (delta := self._new(name, text))}

    def _new(self, name: str, text: str) -> str:
        told = self._told[name]
        if told.startswith(text):
            return ""
        self._told[name] = text
        return text[len(told) :] if text.startswith(told) else text
