"""JSONL → training rows: prompt exactly as inference renders it, labels on the answer alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from transformers import PreTrainedTokenizerBase

from crafter_pipeline.errors import DataError
from train_app.workers.text import render

IGNORED = -100
CHUNK = 2_000


def read_examples(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, example) of a JSONL file."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, orjson.loads(line)


def training_rows(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int, train_thinking: bool = True
) -> dict[str, list[np.ndarray]]:
    """Token rows of a chat JSONL file whose last message is the assistant's.

    Returns:
        {"input_ids": rows of int32 [T], "labels": the same with `IGNORED` wherever nothing is trained}.

    Raises:
        DataError: a row is longer than `max_length` (never cut: the answer stands at the end), or trains nothing.
    """
    columns: dict[str, list[np.ndarray]] = {"input_ids": [], "labels": []}
    batch: list[tuple[int, str, str]] = []

    def flush() -> None:
        prompts = tokenizer([p for _, p, _ in batch], add_special_tokens=False)["input_ids"]
        answers = tokenizer([a for _, _, a in batch], add_special_tokens=False)["input_ids"]
        for (number, _, _), prompt, answer in zip(batch, prompts, answers, strict=True):
            if len(prompt) + len(answer) > max_length:
                raise DataError(
                    f"{path}, line {number}: {len(prompt) + len(answer)} tokens, more than sequence_length = "
                    f"{max_length}. Raise it, or shorten the observation."
                )
            labels = [IGNORED] * len(prompt) + (answer if train_thinking else without_thinking(tokenizer, answer))
            columns["input_ids"].append(np.array(prompt + answer, dtype=np.int32))
            columns["labels"].append(np.array(labels, dtype=np.int32))
        batch.clear()

    for number, example in read_examples(path):
        batch.append((number, *prompt_and_answer(example, tokenizer, f"{path}, line {number}")))
        if len(batch) == CHUNK:
            flush()
    if batch:
        flush()
    if not columns["input_ids"]:
        raise DataError(f"{path} holds no examples.")
    return columns


def prompt_and_answer(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[str, str]:
    """The text the model will see, and the text it shall say, end of turn included."""
    messages, tools = example["messages"], [tool_as_served(t) for t in example.get("tools") or ()] or None
    prompt = render(tokenizer, messages[:-1], tools, answer_next=True)
    whole = render(tokenizer, messages, tools, answer_next=False)
    if not whole.startswith(prompt):
        raise DataError(f"{where}: the chat template renders the prompt differently with and without the answer.")
    return prompt, whole[len(prompt) :].rstrip("\n")


def without_thinking(tokenizer: PreTrainedTokenizerBase, answer: list[int]) -> list[int]:
    """Labels of an answer whose thoughts are masked, tags included."""
    end = tokenizer.convert_tokens_to_ids("</think>")
    cut = answer.index(end) + 1 if end in answer else 0
    return [IGNORED] * cut + answer[cut:]


def tool_as_served(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool as the model saw it: exported files also carry a top-level `name`, which published clients ask for."""
    return {k: v for k, v in tool.items() if k != "name"} if "function" in tool else tool
