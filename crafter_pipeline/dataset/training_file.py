"""What a training backend takes as a dataset: JSONL, checked line by line before it is sent and while it is stored."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import orjson

from crafter_pipeline.errors import DataError

ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_BAD_LINES = 20
"""That many are told; then the reading ends."""


class BadDataset(DataError):
    """Lines of a dataset cannot be trained on.

    Args:
        lines: (number from 1, what is wrong), at least one.
    """

    def __init__(self, lines: Sequence[tuple[int, str]]) -> None:
        number, complaint = lines[0]
        more = f" ({len(lines) - 1} more bad line{'s' if len(lines) > 2 else ''})" if len(lines) > 1 else ""
        super().__init__(f"line {number}: {complaint}{more}")
        self.lines = tuple(lines)


@dataclass(frozen=True, slots=True)
class Stored:
    """What was copied."""

    bytes: int
    rows: int
    sha256: str


def check_dataset(path: Path) -> Stored:
    """What a dataset holds. DataError names the file, and the first line that cannot be trained on."""
    try:
        with path.open("rb") as source, open(os.devnull, "wb") as nowhere:
            return store_dataset(source, nowhere)
    except BadDataset as e:
        raise DataError(f"{path}, {e}.") from None
    except OSError as e:
        raise DataError(f"{path} cannot be read ({e.strerror}).") from e


def store_dataset(source: BinaryIO, output: BinaryIO) -> Stored:
    """Copy a JSONL dataset while checking it.

    Raises:
        BadDataset: the lines that are wrong, each with its number and the reason, MAX_BAD_LINES at most.
    """
    digest, size, rows = hashlib.sha256(), 0, 0
    bad: list[tuple[int, str]] = []
    for number, line in enumerate(_lines(source), start=1):
        output.write(line)
        digest.update(line)
        size += len(line)
        if not line.strip():
            continue
        try:
            check_row(line)
            rows += 1
        except ValueError as e:
            bad.append((number, str(e)))
            if len(bad) == MAX_BAD_LINES:
                break
    if not rows and not bad:
        bad.append((1, "the file holds no examples"))
    if bad:
        raise BadDataset(bad)
    return Stored(size, rows, digest.hexdigest())


def _lines(source: BinaryIO) -> Iterator[bytes]:
    """The lines; of one that is too long its beginning, one byte longer than allowed."""
    while line := source.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = source.readline(MAX_LINE_BYTES + 1)
            if len(line) <= MAX_LINE_BYTES:
                break


def check_row(line: bytes) -> None:
    """One training example: an object with `messages`, or with `prompt` and `completion` as lists of messages, the last
    of them the assistant's. ValueError says what is wrong."""
    row = _parse(line)
    messages = row.get("messages")
    if messages is None and isinstance(row.get("prompt"), list):
        messages = [*row["prompt"], *(row["completion"] if isinstance(row.get("completion"), list) else ())]
    if not isinstance(messages, list) or not messages:
        raise ValueError("needs a non-empty list `messages`, or lists `prompt` and `completion`")
    for i, message in enumerate(messages):
        _check_message(f"messages[{i}]", message)
    last = messages[-1]
    if last["role"] != "assistant":
        raise ValueError(f"the last message must be the assistant's, this one is of role {last['role']}")
    if not isinstance(row.get("tools", []), list | None):
        raise ValueError("tools must be a list")


def _parse(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"longer than {MAX_LINE_BYTES // 1024**2} MB; one line is one example")
    try:
        line.decode()
    except UnicodeDecodeError as e:
        raise ValueError(f"not UTF-8 (byte {e.start} is {line[e.start]:#04x})") from None
    if line.startswith(b"\xef\xbb\xbf"):
        raise ValueError("begins with a byte order mark; save the file as plain UTF-8")
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as e:
        _refuse_constants(line)
        raise ValueError(f"not valid JSON: {e}") from None
    if not isinstance(row, dict):
        raise ValueError("not an object: needs a non-empty list `messages`, or lists `prompt` and `completion`")
    return row


def _refuse_constants(line: bytes) -> None:
    """What Python writes for a float that is no number, and nobody else reads."""

    def refuse(name: str) -> NoReturn:
        raise _Constant(f"{name} is no JSON; leave the value out, or write null")

    try:
        json.loads(line, parse_constant=refuse)
    except json.JSONDecodeError:
        return


class _Constant(ValueError):
    """NaN or Infinity."""


def _check_message(where: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise ValueError(f"{where} is not an object")
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where}: role {role!r} is none of {', '.join(sorted(ROLES))}")
    if content is not None and not isinstance(content, str | list):
        raise ValueError(f"{where}: content must be a text or a list of parts")
    if calls is not None:
        _check_calls(where, calls)
    if not calls and (content is None or (role == "assistant" and not content)):
        raise ValueError(f"{where}: neither content nor tool calls, so the turn is empty; content must be a text")


def _check_calls(where: str, calls: Any) -> None:
    if not isinstance(calls, list):
        raise ValueError(f"{where}: tool_calls must be a list")
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        function = function if isinstance(function, Mapping) else call if isinstance(call, Mapping) else {}
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise ValueError(f"{where}: tool_calls[{i}] has no function.name")
        if not isinstance(function.get("arguments", ""), str | Mapping):
            raise ValueError(f"{where}: tool_calls[{i}]: function.arguments must be a JSON text or an object")
