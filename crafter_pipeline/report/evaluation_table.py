"""Tables of stored evaluations, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crafter_pipeline.evaluation import Comparison
from crafter_pipeline.evaluation.pool import Row
from crafter_pipeline.evaluation.scores import SMALL_DIFFERENCE
from crafter_pipeline.report import text
from crafter_pipeline.report.markdown import finding, safe, table

Tables = Mapping[int, tuple[Sequence[Row], Sequence[Comparison]]]
"""Limit in env steps -> (rows, comparisons)."""


def tables_markdown(tables: Tables, *, success: bool = False) -> str:
    """For each limit the scores, and the differences below.

    Args:
        success: Also the success rate of each achievement.
    """
    parts = []
    for steps, (rows, comparisons) in tables.items():
        if len(tables) > 1:
            parts.append(f"### Up to {steps:,} env steps")
        parts.append(_scores(rows))
        parts.append(_note(rows))
        if success:
            parts.append(_success(rows))
        if comparisons:
            parts.append(_differences(comparisons))
    return "\n\n".join(parts) + "\n"


def _scores(rows: Sequence[Row]) -> str:
    score = any(row.crafter_score is not None for row in rows)
    header = ["player", "runs", "seeds", "achievements", "middle half"]
    header += ["without wake up", "Crafter score (0–100)", "BALROG progress, %"] if score else []
    header += ["reward", "env steps", "died", "unreadable answers", "tokens an episode"]
    cells = []
    for row in rows:
        line = [safe(row.name), str(len(row.runs)), str(len(row.seeds)), _with(row.mean_achievements, row.ci95, 2)]
        line.append(text.number(row.interquartile_mean, 2))
        if score:
            line += [_number(row.without_wake_up, 2), _with(row.crafter_score, row.crafter_score_ci95, 1)]
            line.append(_number(row.mean_of("balrog_progress"), 1))
        line += [_number(row.mean_of("mean_reward"), 2), _number(row.mean_of("mean_env_steps"), 0)]
        line += [_percent(row.mean_of("death_share")), _percent(row.mean_of("invalid_share")), _tokens(row)]
        cells.append(line)
    return table(header, cells)


def _note(rows: Sequence[Row]) -> str:
    splits = sorted({run.split or "several" for row in rows for run in row.runs})
    seeds = [seed for row in rows for seed in row.seeds]
    nested = any(len(row.runs) > 1 for row in rows)
    over = "training runs and worlds" if nested else "worlds"
    return (
        f"Up to {rows[0].max_steps:,} env steps an episode, worlds {min(seeds)} to {max(seeds)} ({', '.join(splits)}). "
        f"95 % intervals over {over}."
    )


def _differences(comparisons: Sequence[Comparison]) -> str:
    header = ["difference", "achievements, 95 % interval", "finding", "p, corrected", "seeds"]
    header.append(f"seeds to see {SMALL_DIFFERENCE}")
    rows = [
        (
            f"{safe(c.b)} {text.MINUS} {safe(c.a)}",
            f"{text.signed(c.delta, 2)} {text.interval(c.ci95, 2, sign=True)}",
            finding(c),
            text.p_value(c.p_holm).replace("<", "&lt;"),
            str(len(c.seeds)),
            _number(c.seeds_to_see(SMALL_DIFFERENCE), 0),
        )
        for c in comparisons
    ]
    return table(header, rows)


def _success(rows: Sequence[Row]) -> str:
    rates = [row.success_rates for row in rows]
    names = list(dict.fromkeys(name for told in rates for name in told))
    names.sort(key=lambda name: (-sum(told[name][0] / told[name][1] for told in rates if name in told), name))
    cells = []
    for name in names:
        line = [safe(text.words(name))]
        for row, told in zip(rows, rates, strict=True):
            if name not in told:
                line.append("–")
                continue
            unlocked, episodes = told[name]
            ci95 = row.success_ci95(name)
            within = "" if ci95 is None else f" {text.interval((100 * ci95[0], 100 * ci95[1]), 0)}"
            line.append(f"{text.percent(unlocked / episodes)}{within}")
        cells.append(line)
    return table(("unlocked in, % of episodes", *(safe(row.name) for row in rows)), cells)


def _with(value: float | None, ci95: tuple[float, float] | None, digits: int) -> str:
    if value is None:
        return "–"
    return text.number(value, digits) + ("" if ci95 is None else f" {text.interval(ci95, digits)}")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else text.number(value, digits)


def _percent(value: float | None) -> str:
    return "–" if value is None else text.percent(value).replace("<", "&lt;").replace(">", "&gt;")


def _tokens(row: Row) -> str:
    told = row.mean_of("prompt_tokens"), row.mean_of("completion_tokens")
    return "–" if None in told else f"{_number(told[0], 0)} in, {_number(told[1], 0)} out"
