"""What is in trace databases, in numbers: by model and environment, over any number of files.

DuckDB reads the files (`stats_*.sql`), so they may not be open in this process; a server elsewhere may go on writing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from crafter_pipeline.config import split_of
from crafter_pipeline.traces.reader import list_attempts

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """Rollouts of one model in one environment."""

    model: str
    """Empty: nobody said."""
    environment: str
    rollouts: int
    turns: int
    mean_return: float | None
    """Over the rollouts whose return is recorded; None: none."""
    return_stdev: float | None
    """Sample standard deviation; None: fewer than two."""
    mean_achievements: float
    """Different achievements of a rollout."""
    success_rates: dict[str, float]
    """Achievement -> share of the rollouts that unlocked it, 0..1; the most frequent first."""
    parse_failures: int
    """Turns whose answer could not be read."""
    stop_reasons: dict[str, int]
    """`unknown`: the writer did not say (the original)."""
    input_tokens: int
    output_tokens: int
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    seeds: dict[str, int]
    """Suite -> different world seeds."""


@dataclass(frozen=True, slots=True)
class TraceStatistics:
    """All databases together."""

    databases: int
    rollouts: int
    turns: int
    models: tuple[ModelStatistics, ...]
    """By environment, then model."""
    failed_attempts: dict[str, int]
    """Kind of error -> attempts, the most frequent first."""

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return asdict(self)


def statistics(paths: Sequence[Path]) -> TraceStatistics:
    """Count and average. DataError if a file is no trace database, is damaged, or is open in this process."""
    import duckdb

    from crafter_pipeline.traces import duck

    error: duckdb.Error | None = None
    with closing(duckdb.connect()) as connection:
        duck.attach(connection, paths)
        try:
            connection.execute(_sql("stats_rollouts.sql"))
            rollouts = _rows(connection, "SELECT * FROM rollouts ORDER BY source, session_id")
            calls = {(c["model"], c["environment"]): c for c in _rows(connection, _sql("stats_models.sql"))}
        except duckdb.Error as e:
            error = e
    if error is not None:
        raise duck.damage(paths, error) from error
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for rollout in rollouts:
        groups.setdefault((rollout["environment"], rollout["model"]), []).append(rollout)
    models = tuple(
        _of_model(model, environment, group, calls.get((model, environment)))
        for (environment, model), group in sorted(groups.items())
    )
    reasons = Counter(_kind(attempt.error) for path in paths for attempt in list_attempts(path))
    return TraceStatistics(
        databases=len(paths),
        rollouts=len(rollouts),
        turns=sum(model.turns for model in models),
        models=models,
        failed_attempts=_ordered(reasons),
    )


def _of_model(
    model: str, environment: str, rollouts: Sequence[dict[str, Any]], calls: dict[str, Any] | None
) -> ModelStatistics:
    returns = [rollout["reward"] for rollout in rollouts if rollout["reward"] is not None]
    unlocked = Counter(name for rollout in rollouts for name in rollout["achievements"])
    seeds = {rollout["seed"] for rollout in rollouts if rollout["seed"] is not None}
    calls = calls or {}
    return ModelStatistics(
        model=model,
        environment=environment,
        rollouts=len(rollouts),
        turns=calls.get("turns", 0),
        mean_return=fmean(returns) if returns else None,
        return_stdev=stdev(returns) if len(returns) > 1 else None,
        mean_achievements=fmean(len(rollout["achievements"]) for rollout in rollouts),
        success_rates={name: count / len(rollouts) for name, count in _ordered(unlocked).items()},
        parse_failures=calls.get("parse_failures", 0),
        stop_reasons=_ordered(Counter(rollout["stop_reason"] or "unknown" for rollout in rollouts)),
        input_tokens=int(calls.get("input_tokens", 0)),
        output_tokens=int(calls.get("output_tokens", 0)),
        latency_p50_ms=_finite(calls.get("latency_p50")),
        latency_p95_ms=_finite(calls.get("latency_p95")),
        seeds=_ordered(Counter(split_of(seed) for seed in seeds)),
    )


def _kind(error: str) -> str:
    """The error without what differs from attempt to attempt: its type, or its first words."""
    kind, separator, _ = error.partition(":")
    return kind if separator and kind.isidentifier() else error.partition("\n")[0][:80]


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _sql(name: str) -> str:
    return files(__package__).joinpath(name).read_text()


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    result = connection.execute(sql)
    names: Iterable[str] = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
