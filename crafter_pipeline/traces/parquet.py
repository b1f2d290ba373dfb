"""Trace databases as two Parquet files, for notebooks and other tools: a row a rollout, and a row a turn.

Every column has a type, whatever the writer kept; prompts and the like are JSON text. The order is that of the
databases given, then of time, then of turns; equal input gives equal bytes. One block of rows is in memory at a time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from crafter_pipeline.contracts import Rollout, Turn
from crafter_pipeline.errors import DataError
from crafter_pipeline.traces import records as r
from crafter_pipeline.traces.reader import Damage, read_rollouts

ROLLOUTS, TURNS = "rollouts.parquet", "turns.parquet"
BLOCK = 4096
"""Rows that are held in memory, and rows of a row group."""

_NAMES = pl.List(pl.String)
ROLLOUT_SCHEMA: dict[str, Any] = {
    "database": pl.String,
    "session_id": pl.String,
    "created_at": pl.Datetime("us", "UTC"),
    "environment": pl.String,
    "seed": pl.Int64,
    "policy": pl.String,
    "model": pl.String,
    "provider": pl.String,
    "turns": pl.Int32,
    "env_steps": pl.Int32,
    "reward": pl.Float64,
    "achievements": _NAMES,
    "stop_reason": pl.String,
    "tools": pl.String,
    "metadata": pl.String,
}
TURN_SCHEMA: dict[str, Any] = {
    "database": pl.String,
    "session_id": pl.String,
    "turn": pl.Int32,
    "environment": pl.String,
    "seed": pl.Int64,
    "model": pl.String,
    "provider": pl.String,
    "goal": pl.String,
    "observation": pl.String,
    "messages": pl.String,
    "thinking": pl.String,
    "content": pl.String,
    "tool_calls": pl.String,
    "actions": _NAMES,
    "parse_failure": pl.String,
    "reward": pl.Float64,
    "unlocked": _NAMES,
    "next_observation": pl.String,
    "finish_reason": pl.String,
    "prompt_tokens": pl.Int32,
    "completion_tokens": pl.Int32,
    "latency_ms": pl.Float64,
    "started_at": pl.Datetime("us", "UTC"),
    "ended_at": pl.Datetime("us", "UTC"),
    "info": pl.String,
}


@dataclass(slots=True)
class Exported:
    """What was written."""

    folder: Path
    rollouts: int = 0
    turns: int = 0
    damaged: list[Damage] = field(default_factory=list)
    """Rollouts that cannot be read, left out."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "rollouts_file": str(self.folder / ROLLOUTS),
            "turns_file": str(self.folder / TURNS),
            "rollouts": self.rollouts,
            "turns": self.turns,
            "damaged": [str(damage) for damage in self.damaged],
        }


def export_parquet(dbs: Sequence[Path], folder: Path, advance: Callable[[], None] = lambda: None) -> Exported:
    """Write `rollouts.parquet` and `turns.parquet` into a folder; older ones are replaced when both are whole.

    Args:
        advance: Called after each rollout.

    Raises:
        DataError: a file is no trace database, nothing can be read, or the folder cannot be written.
    """
    exported = Exported(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export.") as work:
            rollouts, turns = _Blocks(Path(work), "rollouts", ROLLOUT_SCHEMA), _Blocks(Path(work), "turns", TURN_SCHEMA)
            for path in dbs:
                for rollout in read_rollouts(path, damaged=exported.damaged.append):
                    rollouts.add(_rollout_row(path, rollout))
                    for turn in rollout.turns:
                        turns.add(_turn_row(path, rollout, turn))
                    exported.rollouts, exported.turns = exported.rollouts + 1, exported.turns + len(rollout.turns)
                    advance()
            if not exported.rollouts:
                why = f" {exported.damaged[0]}." if exported.damaged else " Collect some first."
                raise DataError(f"There is no rollout in the {len(dbs)} databases that can be read.{why}")
            written = [(blocks.join(), folder / name) for blocks, name in ((rollouts, ROLLOUTS), (turns, TURNS))]
            for whole, final in written:
                os.replace(whole, final)
    except OSError as e:
        raise DataError(f"{folder} cannot be written ({e.strerror or e}). Free space, or choose another folder.") from e
    except (duckdb.IOException, pl.exceptions.PolarsError) as e:
        why = str(e).splitlines()[0]
        raise DataError(f"{folder} cannot be written ({why}). Free space, or choose another folder.") from e
    return exported


class _Blocks:
    """Rows that become one Parquet file, a block at a time."""

    def __init__(self, folder: Path, name: str, schema: dict[str, Any]) -> None:
        self._folder, self._name, self._schema = folder, name, schema
        self._rows: list[tuple[Any, ...]] = []
        self._files: list[Path] = []

    def add(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) >= BLOCK:
            self._write()

    def join(self) -> Path:
        """The whole file. DuckDB copies block after block: polars cannot append to a file."""
        if self._rows or not self._files:
            self._write()
        out = self._folder / f"{self._name}.parquet"
        with closing(duckdb.connect(config={"threads": 1})) as connection:  # one thread: one order of bytes
            connection.execute("SET enable_progress_bar = false")
            blocks = connection.read_parquet([str(path) for path in self._files])
            blocks.write_parquet(str(out), compression="zstd", row_group_size=BLOCK)
        with out.open("rb") as f:
            os.fsync(f.fileno())
        return out

    def _write(self) -> None:
        path = self._folder / f"{self._name}-{len(self._files):06}.parquet"
        frame = pl.DataFrame(self._rows, schema=self._schema, orient="row")
        frame.write_parquet(path, compression="lz4")
        self._files.append(path)
        self._rows = []


def _rollout_row(path: Path, rollout: Rollout) -> tuple[Any, ...]:
    return (
        str(path),
        rollout.run_id,
        _moment(rollout.created_at),
        rollout.environment,
        rollout.seed,
        rollout.policy,
        rollout.model,
        rollout.provider,
        len(rollout.turns),
        rollout.env_steps,
        rollout.total_reward,
        list(rollout.achievements),
        str(rollout.stop_reason),
        r.dumps(rollout.tools),
        r.dumps(rollout.metadata),
    )


def _turn_row(path: Path, rollout: Rollout, turn: Turn) -> tuple[Any, ...]:
    reply = turn.reply
    return (
        str(path),
        rollout.run_id,
        turn.index,
        rollout.environment,
        rollout.seed,
        rollout.model,
        rollout.provider,
        (rollout.metadata.get("setup") or {}).get("task"),
        _text(turn.observation),
        r.dumps(turn.messages),
        _text(reply.thinking),
        _text(reply.content),
        r.dumps(reply.tool_calls),
        [_text(action) for action in turn.actions],
        None if turn.parse_failure is None else _text(turn.parse_failure),
        turn.reward,
        list(turn.unlocked),
        _text(turn.next_observation),
        reply.finish_reason,
        reply.prompt_tokens,
        reply.completion_tokens,
        reply.latency_ms,
        _moment(turn.started_at),
        _moment(turn.ended_at),
        r.dumps(turn.info),
    )


def _moment(unix_seconds: float) -> datetime:
    return datetime.fromtimestamp(unix_seconds, UTC)


def _text(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()
