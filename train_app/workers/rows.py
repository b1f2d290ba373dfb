"""JSONL → training rows: prompt exactly as inference renders it, labels on the answer alone.

Rows come in the forms that the pipeline exports (`crafter_pipeline.dataset.rows`) and published clients upload: chat
(`messages`, the answer last), `prompt` and `completion` as lists of messages, and whole conversations, of which every
answer is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template

from crafter_pipeline.dataset.chat_form import is_conversation, tool_as_served
from crafter_pipeline.errors import DataError
from crafter_pipeline.tokens import in_one_text, training_template
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
    """Token rows of a chat JSONL file.

    Returns:
        {"input_ids": rows of int32 [T], "labels": the same with `IGNORED` wherever nothing is trained}.

    Raises:
        DataError: a row is longer than `max_length` (never cut: the answer stands at the end), trains nothing, or is of
            no known form.
    """
    columns: dict[str, list[np.ndarray]] = {"input_ids": [], "labels": []}
    batch: list[tuple[int, str, str]] = []

    def add(number: int, ids: list[int], labels: list[int]) -> None:
        if len(ids) > max_length:
            raise DataError(
                f"{path}, line {number}: {len(ids)} tokens, more than sequence_length = {max_length}. Raise it, or "
                "shorten the observation."
            )
        columns["input_ids"].append(np.array(ids, dtype=np.int32))
        columns["labels"].append(np.array(labels, dtype=np.int32))

    def flush() -> None:
        if not batch:
            return
        prompts = tokenizer([p for _, p, _ in batch], add_special_tokens=False)["input_ids"]
        answers = tokenizer([a for _, _, a in batch], add_special_tokens=False)["input_ids"]
        for (number, _, _), prompt, answer in zip(batch, prompts, answers, strict=True):
            labels = answer if train_thinking else without_thinking(tokenizer, answer)
            add(number, prompt + answer, [IGNORED] * len(prompt) + labels)
        batch.clear()

    for number, example in read_examples(path):
        where = f"{path}, line {number}"
        if is_conversation(example):
            flush()
            ids, labels = conversation_tokens(example, tokenizer, where, train_thinking=train_thinking)
            add(number, ids, labels)
            continue
        batch.append((number, *prompt_and_answer(example, tokenizer, where)))
        if len(batch) == CHUNK:
            flush()
    flush()
    if not columns["input_ids"]:
        raise DataError(f"{path} holds no examples.")
    return columns


def prompt_and_answer(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[str, str]:
    """The text the model will see, and the text it shall say, end of turn included."""
    messages, tools = messages_and_tools(example, where)
    prompt = render(tokenizer, messages[:-1], tools, answer_next=True)
    whole = render(tokenizer, messages, tools, answer_next=False)
    if not whole.startswith(prompt):
        raise DataError(f"{where}: the chat template renders the prompt differently with and without the answer.")
    return prompt, whole[len(prompt) :].rstrip("\n")


def conversation_tokens(
    example: dict[str, Any], tokenizer: PreTrainedTokenizerBase, where: str, *, train_thinking: bool = True
) -> tuple[list[int], list[int]]:
    """(ids, labels) of a conversation, in the variant of the tokenizer's chat template that marks every answer."""
    messages, tools = messages_and_tools(example, where)
    try:
        template = training_template(str(tokenizer.chat_template)) or get_training_chat_template(tokenizer)
    except ValueError as e:
        raise DataError(
            f"{where}: a whole conversation, but this model's chat template does not mark which part the model said. "
            "Export the form chat or completion."
        ) from e
    encoded: Any = tokenizer.apply_chat_template(
        messages,
        tools=list(tools) if tools else None,
        chat_template=template,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids: list[int] = list(encoded["input_ids"])
    said = list(encoded["assistant_masks"])
    labels = [IGNORED] * len(ids)
    start = 0
    while 1 in said[start:]:
        start = said.index(1, start)
        end = said.index(0, start) if 0 in said[start:] else len(said)
        labels[start:end] = ids[start:end] if train_thinking else without_thinking(tokenizer, ids[start:end])
        start = end
    if all(label == IGNORED for label in labels):
        raise DataError(f"{where}: a conversation without an answer: there is nothing to train.")
    return ids, labels


def messages_and_tools(example: dict[str, Any], where: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """The messages of a row, its answer last, and its tools as the model saw them."""
    messages = example.get("messages")
    if messages is None and isinstance(example.get("prompt"), list) and isinstance(example.get("completion"), list):
        messages = [*example["prompt"], *example["completion"]]
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: it needs `messages`, or `prompt` and `completion` as lists of messages.")
    parts = (part for message in messages if isinstance(message["content"], list) for part in message["content"])
    if any(part.get("type") != "text" for part in parts):
        raise DataError(f"{where}: it holds a picture, and the models trained here read text alone. Collect with text.")
    return in_one_text(messages), [tool_as_served(tool) for tool in example.get("tools") or ()] or None


def without_thinking(tokenizer: PreTrainedTokenizerBase, answer: list[int]) -> list[int]:
    """Labels of an answer whose thoughts are masked, tags included."""
    end = tokenizer.convert_tokens_to_ids("</think>")
    cut = answer.index(end) + 1 if end in answer else 0
    return [IGNORED] * cut + answer[cut:]
