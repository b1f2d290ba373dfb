"""JSONL → training rows: prompt exactly as inference renders it, labels on the answer alone.

Rows come in the forms that the pipeline exports (`crafter_pipeline.dataset.rows`) and published clients upload: chat
(`messages`, the answer last), `prompt` and `completion` as lists of messages, and whole conversations, of which every
answer is trained.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import orjson
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template

from crafter_pipeline.dataset.chat_form import ROLES, is_conversation, tool_as_served, with_its_calls
from crafter_pipeline.errors import DataError
from crafter_pipeline.tokens import in_one_text, training_template
from train_app.workers.sft.packing import IGNORED
from train_app.workers.text import decode, render

CHUNK = 2_000


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One row as the model sees it."""

    line: int
    """In the file, from 1."""
    ids: np.ndarray
    """int32 [T]."""
    labels: np.ndarray
    """int32 [T]: the id where it is trained, `IGNORED` elsewhere."""
    draw: float
    """A number in [0, 1) made of the row's bytes: equal rows fall on one side of every split."""


def read_lines(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """(line number from 1, line, example) of a JSONL file. DataError names a line that is none."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                example = orjson.loads(line)
            except orjson.JSONDecodeError as e:
                raise DataError(f"{path}, line {number}: not JSON ({e}).") from None
            if not isinstance(example, dict):
                raise DataError(f"{path}, line {number}: not a JSON object.")
            yield number, line.strip(), example


def token_rows(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int, train_thinking: bool = True
) -> Iterator[TokenRow]:
    """The rows of a JSONL file, in its order.

    Raises:
        DataError: a row trains nothing or is of no known form; at the end of the file: rows are longer than
            `max_length` (never cut: the answer stands at the end).
    """
    batch: list[tuple[int, float, str, str]] = []
    too_long: list[tuple[int, int]] = []

    def fit(rows: Iterable[TokenRow]) -> Iterator[TokenRow]:
        for row in rows:
            if (row.labels == IGNORED).all():
                raise DataError(f"{path}, line {row.line}: its answer is empty: there is nothing to train.")
            if len(row.ids) > max_length:
                too_long.append((row.line, len(row.ids)))
            else:
                yield row

    def encoded() -> list[TokenRow]:
        """The collected rows, tokenised together: four times as fast as one by one."""
        prompts = tokenizer([p for *_, p, _ in batch], add_special_tokens=False)["input_ids"] if batch else []
        answers = tokenizer([a for *_, a in batch], add_special_tokens=False)["input_ids"] if batch else []
        rows = []
        for (number, draw, _, _), prompt, answer in zip(batch, prompts, answers, strict=True):
            said = answer if train_thinking else without_thinking(tokenizer, answer)
            rows.append(_row(number, draw, prompt + answer, [IGNORED] * len(prompt) + said))
        batch.clear()
        return rows

    found = 0
    for number, line, example in read_lines(path):
        found += 1
        where, draw = f"{path}, line {number}", _draw(line)
        if is_conversation(example):
            yield from fit(encoded())
            ids, labels = conversation_tokens(example, tokenizer, where, train_thinking=train_thinking)
            yield from fit([_row(number, draw, ids, labels)])
            continue
        batch.append((number, draw, *prompt_and_answer(example, tokenizer, where)))
        if len(batch) == CHUNK:
            yield from fit(encoded())
    yield from fit(encoded())
    if too_long:
        first, length = too_long[0]
        more = f" ({len(too_long)} rows are, the longest has {max(n for _, n in too_long)})" if too_long[1:] else ""
        raise DataError(
            f"{path}, line {first}: {length} tokens, more than sequence_length = {max_length}{more}. Raise it, or "
            "shorten the observation."
        )
    if not found:
        raise DataError(f"{path} holds no examples.")


def split_rows(
    rows: Iterable[TokenRow], share: float, count: int | None = None
) -> tuple[list[TokenRow], list[TokenRow]]:
    """(trained, held back): rows whose draw is below `share` are held back, until `count` rows are trained."""
    trained: list[TokenRow] = []
    held_back: list[TokenRow] = []
    for row in rows:
        (held_back if row.draw < share else trained).append(row)
        if len(trained) == count:
            break
    return trained, held_back


def columns_of(rows: Sequence[TokenRow]) -> dict[str, list[np.ndarray]]:
    """{"input_ids": rows of int32 [T], "labels": the same with `IGNORED` wherever nothing is trained}."""
    return {"input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows]}


def training_rows(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int, train_thinking: bool = True
) -> dict[str, list[np.ndarray]]:
    """All rows of a file as columns, see `token_rows` and `columns_of`."""
    return columns_of(list(token_rows(path, tokenizer, max_length=max_length, train_thinking=train_thinking)))


def marked(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[dict[str, Any]]]:
    """A row's text with what is trained in ⟦…⟧, and its parts as [{text, trained}]."""
    trained = row.labels != IGNORED
    cuts = [0, *(np.flatnonzero(trained[1:] != trained[:-1]) + 1).tolist(), len(trained)]
    parts = [
        {"text": decode(tokenizer, row.ids[a:b].tolist(), skip_special_tokens=False), "trained": bool(trained[a])}
        for a, b in itertools.pairwise(cuts)
    ]
    return "".join(f"⟦{part['text']}⟧" if part["trained"] else str(part["text"]) for part in parts), parts


def _row(line: int, draw: float, ids: list[int], labels: list[int]) -> TokenRow:
    return TokenRow(line, np.array(ids, dtype=np.int32), np.array(labels, dtype=np.int32), draw)


def _draw(line: bytes) -> float:
    return int.from_bytes(hashlib.sha256(line).digest()[:8]) / 2**64


def prompt_and_answer(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[str, str]:
    """The text the model will see, and the text it shall say, end of turn included."""
    messages, tools = messages_and_tools(example, where)
    with _rendering(where):
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
    with _rendering(where):
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
    whole, messages = is_conversation(example), [with_its_calls(message) for message in messages]
    for index, message in enumerate(messages):
        is_trained = whole or index == len(messages) - 1
        _check_message(message, example, f"{where}, message {index + 1}", is_trained=is_trained)
    return in_one_text(messages), [tool_as_served(tool) for tool in example.get("tools") or ()] or None


def _check_message(message: Any, example: Mapping[str, Any], where: str, *, is_trained: bool) -> None:
    """DataError about what a chat template would render as something that nobody said."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, dict) else message
        raise DataError(f"{where}: its role is {role!r}; a message has one of {', '.join(ROLES)}.")
    content, calls = message.get("content"), message.get("tool_calls") or []
    if isinstance(content, list) and any(part.get("type") != "text" for part in content):
        raise DataError(f"{where}: it holds a picture, and the models trained here read text alone. Collect with text.")
    if is_trained and message["role"] == "assistant" and not content and not calls:
        raise DataError(f"{where}: an answer with neither content nor tool calls. Leave the row out.")
    for call in calls:
        function = call.get("function") or {}
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = orjson.loads(arguments)
            except orjson.JSONDecodeError:
                continue  # what a model really said; trained as it is
        empty = [name for name, value in arguments.items() if value is None] if isinstance(arguments, dict) else []
        known = _properties(example, function.get("name"))
        strange = [name for name in empty if known is not None and name not in known]
        if strange:
            raise DataError(
                f"{where}: {function.get('name')} is called with {strange[0]} = null, which it does not take: a table "
                "library filled it in from another tool's arguments. Write them as JSON text, and the rows as JSONL."
            )


def _properties(example: Mapping[str, Any], name: Any) -> Mapping[str, Any] | None:
    """The parameters of a tool of the row; None: the row does not say."""
    for tool in map(tool_as_served, example.get("tools") or ()):
        function = tool.get("function") or {}
        if function.get("name") == name:
            properties = (function.get("parameters") or {}).get("properties")
            return properties if isinstance(properties, Mapping) else None
    return None


@contextmanager
def _rendering(where: str) -> Iterator[None]:
    try:
        yield
    except (jinja2.TemplateError, TypeError, KeyError) as e:
        raise DataError(f"{where}: the model's chat template cannot render it: {e}") from e


def without_thinking(tokenizer: PreTrainedTokenizerBase, answer: list[int]) -> list[int]:
    """Labels of an answer whose thoughts are masked, tags included."""
    end = tokenizer.convert_tokens_to_ids("</think>")
    cut = answer.index(end) + 1 if end in answer else 0
    return [IGNORED] * cut + answer[cut:]
