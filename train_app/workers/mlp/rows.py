"""JSONL → what the network learns from: the observation of each answer, and the answer's action.

Rows come in the forms that fine-tuning takes: chat (`messages`, the answer last), `prompt` and `completion` as lists of
messages, and whole conversations, of which every answer is learnt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from crafter_pipeline.answers import read_answer
from crafter_pipeline.contracts import Reply
from crafter_pipeline.dataset.chat_form import is_conversation, with_its_calls
from crafter_pipeline.environments import CRAFTER
from crafter_pipeline.errors import DataError
from crafter_pipeline.expert import ACTIONS, View
from crafter_pipeline.scripted import NoObservation, view_of
from crafter_pipeline.thinking import split_thinking
from train_app.mlp import Codes, codes_of

CHUNK = 4096
_ACTION_CODES = {action: code for code, action in enumerate(ACTIONS)}
_KNOWN = frozenset(ACTIONS)


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """Observations, and what was done in each."""

    codes: Codes
    """int16 [rows, CODES], see `train_app.mlp`."""
    actions: np.ndarray
    """int64 [rows]: indices of ACTIONS."""

    def __len__(self) -> int:
        return len(self.actions)


def read_demonstrations(
    path: Path, share: float = 0.0, count: int | None = None
) -> tuple[Demonstrations, Demonstrations]:
    """(learnt, held back): lines whose draw is below `share` are held back, until `count` lines are learnt.

    Raises:
        DataError: a row has no observation that can be read, or no single action; or the file holds no rows.
    """
    learnt, held_back = _Growing(), _Growing()
    lines = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            is_held_back = _draw(line.strip()) < share
            (held_back if is_held_back else learnt).add(_examples(line, f"{path}, line {number}"))
            lines += not is_held_back
            if lines == count:
                break
    if not len(learnt.actions):
        raise DataError(f"{path} leaves no rows to learn from.")
    return learnt.whole(), held_back.whole()


class _Growing:
    """Rows on their way into two arrays; a thousand views would take the room of forty thousand codes."""

    def __init__(self) -> None:
        self.actions: list[int] = []
        self._views: list[View] = []
        self._codes: list[Codes] = []

    def add(self, examples: Iterator[tuple[View, int]]) -> None:
        for view, action in examples:
            self._views.append(view)
            self.actions.append(action)
        if len(self._views) >= CHUNK:
            self._pack()

    def whole(self) -> Demonstrations:
        self._pack()
        return Demonstrations(np.concatenate(self._codes), np.array(self.actions, dtype=np.int64))

    def _pack(self) -> None:
        self._codes.append(codes_of(self._views))
        self._views.clear()


def _examples(line: bytes, where: str) -> Iterator[tuple[View, int]]:
    """(observation, action) of each answer that the row teaches."""
    try:
        row: Any = orjson.loads(line)
        messages = row.get("messages") or [*row["prompt"], *row["completion"]]
        messages = [with_its_calls(message) for message in messages]
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{where}: it is no row of chat messages.") from None
    for i in answers if is_conversation(row) else answers[-1:]:
        yield _view(messages[:i], where), _action(messages[i], where)


def _view(messages: Sequence[dict[str, Any]], where: str) -> View:
    try:
        return view_of(messages)
    except NoObservation as e:
        raise DataError(f"{where}: {e} crafter-mlp learns from these alone.") from None


def _action(message: dict[str, Any], where: str) -> int:
    calls = tuple(message.get("tool_calls") or ())
    content, _ = split_thinking(str(message.get("content") or ""))
    answer = read_answer(Reply(content, tool_calls=calls), CRAFTER, _KNOWN, CRAFTER.max_actions, bool(calls))
    if len(answer.actions) != 1:
        said = answer.failure or f"it does {len(answer.actions)} actions"
        raise DataError(f"{where}: {said}; crafter-mlp learns answers of one action.")
    return _ACTION_CODES[answer.actions[0]]


def _draw(line: bytes) -> float:
    """A number in [0, 1) made of the line: equal lines fall on one side of every split."""
    return int.from_bytes(hashlib.sha256(line).digest()[:8]) / 2**64
