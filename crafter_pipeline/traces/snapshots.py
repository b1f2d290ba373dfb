"""Snapshots: a rollout as one JSON file that people can read, edit and store again.

A snapshot is the structured trace of an answer (`wire.trace_payload`), so that the trace which a client saved from an
answer, or the whole answer, is one as well. What an edited file does not state is computed from its turns; what it
states counts. So after changing the reward of a turn, change `metadata.total_reward` too, or delete it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from math import isclose
from pathlib import Path
from typing import Any, NoReturn

import orjson

from crafter_pipeline.contracts import Rollout
from crafter_pipeline.errors import DataError
from crafter_pipeline.files import safe_name, write_whole
from crafter_pipeline.traces.wire import rollout_from_document, trace_payload

log = logging.getLogger(__name__)

ENDING = "_trace.json"


def write_snapshot(rollout: Rollout, folder: Path) -> Path:
    """Write `<folder>/<run_id>_trace.json`, whole or not at all; one that is there is replaced. DataError if it cannot
    be written."""
    return write_payload(trace_payload(rollout, "structured"), folder / snapshot_name(rollout.run_id))


def snapshot_name(run_id: str) -> str:
    """The name of a rollout's file."""
    return f"{safe_name(run_id)}{ENDING}"


def write_payload(payload: Mapping[str, Any], path: Path) -> Path:
    """Write the trace of an answer as readable JSON, whole or not at all. DataError if it cannot be written."""
    try:
        text = orjson.dumps(payload, option=orjson.OPT_INDENT_2).decode()
    except TypeError:  # what only the standard library writes: large integers, lone surrogates
        text = json.dumps(payload, ensure_ascii=False, indent=2, default=str)
    return write_whole(path, text + "\n")


def read_snapshot(path: Path) -> Rollout:
    """The rollout of a snapshot: exact for one that nobody edited.

    Takes the structured trace, or the whole answer to `POST /rollout` with the trace in it; ours and the original's.
    Totals that do not agree with the turns are logged and kept. DataError, in one line, says what is wrong and where.
    """
    document = _json(path)
    try:
        rollout = rollout_from_document(document)
    except DataError as e:
        raise DataError(f"{path}: {e}") from e
    for what, stated, told in (
        ("total_reward", rollout.total_reward, sum(turn.reward for turn in rollout.turns)),
        ("env_steps", rollout.env_steps, sum(len(turn.actions) for turn in rollout.turns)),
    ):
        if not isclose(stated, told, abs_tol=1e-6):
            log.warning("%s states %s %g, but its turns make %g; what is stated is kept.", path, what, stated, told)
    return rollout


def _json(path: Path) -> Any:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is no text in UTF-8 (byte {e.start}): it is no snapshot.") from e
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}). Name a file like <run_id>{ENDING}.") from e
    try:
        return json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as e:
        raise DataError(f"{path}: line {e.lineno}, column {e.colno}: {e.msg}. It is not valid JSON.") from e
    except _NoNumber as e:
        line = next(i for i, each in enumerate(text.splitlines(), 1) if str(e) in each)
        raise DataError(f"{path}: line {line}: {e} is no number in JSON.") from e
    except ValueError as e:  # a number of thousands of digits
        raise DataError(f"{path}: {e}.") from e
    except RecursionError:
        raise DataError(f"{path} is nested too deeply for a trace.") from None


class _NoNumber(ValueError):
    """NaN or Infinity, which JSON does not know."""


def _no_number(word: str) -> NoReturn:
    raise _NoNumber(word)
