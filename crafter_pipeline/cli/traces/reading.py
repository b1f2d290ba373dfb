"""`traces list`, `stats`: what there is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from crafter_pipeline.cli.common import AsJson, console, many, number, print_json, say, short
from crafter_pipeline.cli.traces.common import NO_INPUTS, Inputs, tell_damage
from crafter_pipeline.errors import DataError

if TYPE_CHECKING:
    from crafter_pipeline.traces.catalog import DatabaseInfo
    from crafter_pipeline.traces.reader import Damage, SessionInfo
    from crafter_pipeline.traces.statistics import ModelStatistics, TraceStatistics

Sort = Literal["created", "reward", "achievements", "turns", "seed", "model"]
_KEYS: dict[str, Any] = {
    "created": lambda s: s.created_at,
    "reward": lambda s: float("-inf") if s.reward is None else s.reward,
    "achievements": lambda s: len(s.achievements),
    "turns": lambda s: s.turns,
    "seed": lambda s: -1 if s.seed is None else s.seed,
    "model": lambda s: s.model,
}
_ASCENDING = ("seed", "model")
Count = Annotated[int, Parameter(validator=Number(gte=0))]


def list_(
    *,
    inputs: Inputs = NO_INPUTS,
    model: str | None = None,
    environment: str | None = None,
    sort: Sort = "created",
    limit: Count = 40,
    as_json: AsJson = False,
) -> int:
    """List trace databases; with --in the rollouts in them.

    Parameters
    ----------
    model:
        Only rollouts of this model.
    environment:
        Only rollouts of this environment.
    sort:
        Order of the rollouts: the newest, highest or longest first; seed and model ascending.
    limit:
        Rows at most; 0: all.
    as_json:
        Print the list as JSON.
    """
    if not inputs.named and model is None and environment is None:
        return _list_databases(limit, as_json)
    from crafter_pipeline.traces.reader import list_sessions

    paths = inputs.databases()
    damaged: list[Damage] = []
    found = [(path, session) for path in paths for session in list_sessions(path, damaged.append)]
    chosen = [
        (path, s)
        for path, s in found
        if (model is None or s.model == model) and (environment is None or s.environment == environment)
    ]
    if found and not chosen:
        known = sorted({s.model for _, s in found}), sorted({s.environment for _, s in found})
        raise DataError(
            f"None of the {len(found)} rollouts fits. Models: {', '.join(known[0])}; environments: "
            f"{', '.join(known[1])}."
        )
    chosen.sort(key=lambda pair: pair[1].session_id)
    chosen.sort(key=lambda pair: _KEYS[sort](pair[1]), reverse=sort not in _ASCENDING)
    shown = chosen[:limit] if limit else chosen
    if as_json:
        print_json([_session_json(path, session) for path, session in shown])
    else:
        _session_table(shown, len(paths) > 1)
        say(many(len(chosen), "rollout") + (f"; {len(shown)} are shown, --limit shows more" if shown != chosen else ""))
    tell_damage(damaged)
    return 0


def _list_databases(limit: int, as_json: bool) -> int:
    from crafter_pipeline.traces.catalog import databases_below, describe

    found = databases_below(Path("."))
    infos = [describe(path) for path in (found[:limit] if limit else found)]
    if as_json:
        print_json([info.to_json() for info in infos])
        return 0
    _database_table(infos)
    if len(found) > len(infos):
        say(f"{len(found)} databases; {len(infos)} are shown, --limit shows more")
    say("`crafter-pipeline traces list --in PATH` lists what is in one.")
    return 0


def _database_table(infos: Sequence[DatabaseInfo]) -> None:
    from rich.table import Table
    from rich.text import Text

    from crafter_pipeline.cli.trace_inputs import age, size

    table = Table(box=None)
    for name in ("database", "size", "age", "rollouts", "turns", "failed", "models", ""):
        left = name in ("database", "models", "")
        table.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for i, info in enumerate(infos):
        mark = "← most recent" if i == 0 else ""
        if info.problem:
            table.add_row(
                Text(str(info.path)), size(info.bytes), age(time.time() - info.modified), "–", "–", "–", "", mark
            )
            continue
        writer = "" if info.writer == "ours" else f" ({info.writer})" if info.writer == "original" else ""
        table.add_row(
            Text(str(info.path)),
            size(info.bytes),
            age(time.time() - info.modified),
            f"{info.rollouts:,}",
            f"{info.turns:,}",
            f"{info.failed_attempts:,}",
            Text(", ".join(short(model) for model in info.models) + writer),
            mark,
        )
    console().print(table, highlight=False)
    for info in infos:
        if info.problem:
            say(f"Cannot be read: {info.problem}")


def _session_table(sessions: Sequence[tuple[Path, SessionInfo]], several: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    columns = ("run id", "created", "environment", "seed", "model", "turns", "return", "achievements", "end")
    for name in (*(("database",) if several else ()), *columns):
        table.add_column(
            name,
            justify="right" if name in ("seed", "turns", "return") else "left",
            no_wrap=True,
            overflow="fold" if name == "run id" else "ellipsis",
        )
    for path, s in sessions:
        table.add_row(
            *((Text(path.name),) if several else ()),
            Text(s.session_id),
            s.created_at[:19].replace("T", " "),
            Text(s.environment or "–"),
            "–" if s.seed is None else str(s.seed),
            Text(short(s.model) or "–"),
            str(s.turns),
            number(s.reward, "g"),
            Text(f"{len(s.achievements)} {', '.join(s.achievements)}" if s.achievements else "0"),
            s.stop_reason or "–",
        )
    console().print(table, highlight=False)


def _session_json(path: Path, s: SessionInfo) -> dict[str, Any]:
    return {
        "database": str(path),
        "session_id": s.session_id,
        "created_at": s.created_at,
        "environment": s.environment,
        "seed": s.seed,
        "model": s.model,
        "provider": s.provider,
        "turns": s.turns,
        "reward": s.reward,
        "achievements": list(s.achievements),
        "stop_reason": s.stop_reason or None,
    }


# --------------------------------------------------------------------------- stats


def stats(*, inputs: Inputs = NO_INPUTS, as_json: AsJson = False) -> int:
    """Count and average by model: returns, achievements, parse failures, tokens, latencies, seeds.

    Parameters
    ----------
    as_json:
        Print the numbers as JSON.
    """
    from crafter_pipeline.traces.statistics import statistics

    numbers = statistics(inputs.databases())
    if as_json:
        print_json(numbers.to_json())
    else:
        _show_statistics(numbers)
    return 0


def _show_statistics(numbers: TraceStatistics) -> None:
    from rich.table import Table
    from rich.text import Text

    say(f"{many(numbers.rollouts, 'rollout')}, {many(numbers.turns, 'turn')} in {many(numbers.databases, 'database')}")
    if numbers.models:
        table = Table(box=None)
        columns = ("model", "environment", "rollouts", "turns", "return", "achievements", "parse failures", "tokens in")
        for name in (*columns, "out", "ms p50", "p95", "seeds"):
            left = name in ("model", "environment", "seeds")
            table.add_column(name, justify="left" if left else "right", no_wrap=not left)
        for m in numbers.models:
            spread = "" if m.return_stdev is None else f" ± {m.return_stdev:.2f}"
            table.add_row(
                Text(m.model or "unknown"),
                Text(m.environment or "–"),
                f"{m.rollouts:,}",
                f"{m.turns:,}",
                number(m.mean_return) + spread,
                f"{m.mean_achievements:.2f}",
                f"{m.parse_failures:,}",
                f"{m.input_tokens:,}",
                f"{m.output_tokens:,}",
                number(m.latency_p50_ms, ",.0f"),
                number(m.latency_p95_ms, ",.0f"),
                ", ".join(f"{count:,} {suite}" for suite, count in m.seeds.items()),
            )
        console().print(table, highlight=False)
        for m in numbers.models:
            _show_rates(m)
    if numbers.failed_attempts:
        say("failed attempts: " + ", ".join(f"{count} {kind}" for kind, count in numbers.failed_attempts.items()))


def _show_rates(m: ModelStatistics) -> None:
    name = f"{m.model or 'unknown'} ({m.environment or '–'})"
    say(f"{name} ended by: " + ", ".join(f"{count:,} {reason}" for reason, count in m.stop_reasons.items()))
    if m.success_rates:
        say("  unlocked by: " + ", ".join(f"{key} {rate:.0%}" for key, rate in m.success_rates.items()))
