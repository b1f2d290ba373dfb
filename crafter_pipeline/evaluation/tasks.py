"""Which seeds an evaluation plays, by what the task set says of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from crafter_pipeline.errors import ConfigError, suggest

COLUMNS = ("scenario_id", "loop_id", "thread_id", "difficulty")
_LISTS = {"scenario_id": "scenario_ids", "loop_id": "loop_ids", "thread_id": "thread_ids"}


def select_seeds(
    taskset: Mapping[str, Any], seeds: Sequence[int] | None, facts: Mapping[str, str], query: str | None
) -> tuple[int, ...]:
    """The seeds whose task has these facts, and that the query finds in the table `tasks`.

    Args:
        taskset: Of `GET /task_info`; a seed is a position in its lists scenario_ids, loop_ids and thread_ids,
            difficulty_map has the difficulty of a scenario or a seed.
        seeds: Those asked for; None: all that the lists have.
        facts: Column -> value, whatever its case.
        query: SQL (SQLite) over tasks(seed, scenario_id, loop_id, thread_id, difficulty); its column seed, or the
            first one.

    ConfigError when the task set has no such lists, the query is not valid, or nothing matches.
    """
    rows = _rows(taskset)
    if not rows:
        raise ConfigError(
            "The task app's task set tells nothing of its tasks (scenario_ids, loop_ids, thread_ids, difficulty_map), "
            "so metadata and metadata_sql cannot choose among them. Name seeds."
        )
    for key in facts:
        if key not in COLUMNS:
            raise ConfigError(f"metadata: there is no {key!r}; {suggest(key, COLUMNS)}")
    asked = sorted(rows) if seeds is None else list(seeds)
    if query:
        found = _query(rows, asked, query)
        asked = [seed for seed in asked if seed in found]
    for key, value in facts.items():
        asked = [s for s in asked if (told := rows.get(s, {}).get(key)) is not None and told.lower() == value.lower()]
    if not asked:
        words = ", ".join([*(f"{k}={v}" for k, v in facts.items()), *([query] if query else [])])
        raise ConfigError(f"No seed matches {words}.")
    return tuple(asked)


def _rows(taskset: Mapping[str, Any]) -> dict[int, dict[str, str | None]]:
    """{seed: {column: value or None}}."""
    told = {column: taskset.get(name) or [] for column, name in _LISTS.items()}
    lists: dict[str, list[Any]] = {column: v if isinstance(v, list) else [] for column, v in told.items()}
    difficulty = taskset.get("difficulty_map")
    difficulty = difficulty if isinstance(difficulty, Mapping) else {}
    numbers = {int(key) for key in difficulty if str(key).isdecimal()}
    rows: dict[int, dict[str, str | None]] = {}
    for seed in sorted({*range(max(len(values) for values in lists.values())), *numbers}):
        row = {column: str(values[seed]) if seed < len(values) else None for column, values in lists.items()}
        hard = difficulty.get(row["scenario_id"], difficulty.get(str(seed)))
        rows[seed] = {**row, "difficulty": None if hard is None else str(hard)}
    return rows


def _query(rows: Mapping[int, Mapping[str, str | None]], seeds: Sequence[int], query: str) -> set[int]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE tasks (seed INTEGER, scenario_id TEXT, loop_id TEXT, thread_id TEXT, difficulty TEXT)")
        db.executemany(
            "INSERT INTO tasks VALUES (?,?,?,?,?)",
            [(seed, *(rows.get(seed, {}).get(column) for column in COLUMNS)) for seed in seeds],
        )
        try:
            cursor = db.execute(query)
            names = [column[0].lower() for column in cursor.description or ()]
            at = names.index("seed") if "seed" in names else 0
            return {int(row[at]) for row in cursor}
        except sqlite3.Error as e:
            raise ConfigError(
                f"metadata_sql: {e}. Select seeds from tasks(seed, scenario_id, loop_id, thread_id, difficulty)."
            ) from None
        except (TypeError, ValueError, IndexError):
            raise ConfigError("metadata_sql: its first column is no seed; select seed from tasks.") from None
