"""Rollouts from files: `<run_id>_trace.json` snapshots (also hand-edited), answers of a task app, JSONL of either."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from crafter_pipeline.contracts import Rollout
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces.merge import rollout_digest
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.snapshots import read_snapshot
from crafter_pipeline.traces.store import TraceStore
from crafter_pipeline.traces.wire import rollout_from_document


@dataclass(frozen=True, slots=True)
class Refused:
    """A file, or a line of one, that holds no rollout that can be stored."""

    where: str
    """`path`, or `path:line`."""
    why: str

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {"where": self.where, "why": self.why}


@dataclass(slots=True)
class Imported:
    """What an import did."""

    into: Path
    stored: list[str] = field(default_factory=list)
    """Run ids."""
    already_there: list[str] = field(default_factory=list)
    """Run ids that the database held before, equal in everything."""
    refused: list[Refused] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "into": str(self.into),
            "stored": self.stored,
            "already_there": self.already_there,
            "refused": [refused.to_json() for refused in self.refused],
        }


def import_files(paths: Sequence[Path], into: Path) -> Imported:
    """Store the rollouts of files in a trace database, which is made if there is none.

    A bad file or line is refused and never stops the rest; so is a rollout whose run_id the database holds with
    another content: what is stored is never replaced. DataError if the database cannot be written.
    """
    imported = Imported(into)
    rollouts: list[tuple[str, Rollout]] = []
    for path in paths:
        rollouts += _rollouts_of(path, imported.refused)
    if not rollouts:
        return imported  # no empty database is left behind
    with TraceStore(into) as store:
        for where, rollout in rollouts:
            try:
                new = store.add(rollout)
            except (TypeError, ValueError, OverflowError) as e:
                imported.refused.append(Refused(where, f"it cannot be stored: {e}"))
                continue
            if new:
                imported.stored.append(rollout.run_id)
            elif _same_is_there(into, rollout):
                imported.already_there.append(rollout.run_id)
            else:
                why = f"{into} holds another rollout {rollout.run_id}: give this one its own session_id"
                imported.refused.append(Refused(where, why))
    return imported


def _same_is_there(path: Path, rollout: Rollout) -> bool:
    stored = next(read_rollouts(path, [rollout.run_id], damaged=lambda _: None), None)
    return stored is not None and rollout_digest(stored) == rollout_digest(rollout)


def _rollouts_of(path: Path, refused: list[Refused]) -> Iterator[tuple[str, Rollout]]:
    """(where, rollout) of a file's traces; what is none of them goes to `refused`."""
    for where, read in _documents(path, refused):
        try:
            rollout = read()
            if not rollout.turns:
                raise DataError("there is no turn in it that a model answered")
            yield where, rollout
        except DataError as e:
            refused.append(Refused(where, str(e).removeprefix(str(path)).lstrip(": ")))


def _documents(path: Path, refused: list[Refused]) -> Iterator[tuple[str, Callable[[], Rollout]]]:
    """The file as one snapshot, or a line each of JSONL."""
    if path.suffix != ".jsonl":
        yield str(path), partial(read_snapshot, path)
        return
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", partial(_of_line, line)
    except OSError as e:
        refused.append(Refused(str(path), f"cannot be read ({e.strerror})"))


def _of_line(line: bytes) -> Rollout:
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError as e:
        raise DataError(f"it is not valid JSON ({e})") from e
    return rollout_from_document(document)
