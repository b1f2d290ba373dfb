"""A sweep's table as a page and as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from crafter_pipeline.evaluation import Comparison
from crafter_pipeline.report import plots, text
from crafter_pipeline.report.markdown import image, safe, table
from crafter_pipeline.report.page import figure, render

if TYPE_CHECKING:
    from crafter_pipeline.sweeps.results import Result, SweepResults

_COLUMNS = (
    "run",
    "achievements",
    "each training",
    "Crafter score",
    "reward",
    "invalid answers",
    "difference",
    "p (Holm)",
    "finding",
    "rows",
    "tokens trained",
    "tokens/s",
    "wall",
    "CPU",
    "GPU",
)
_COMPARED_WITH = "compared with"
HOW_TO_READ = (
    "Achievements per episode, with a 95 % interval over trainings and worlds. Differences are on the worlds "
    "that both played. p: of a sign-flip test over worlds, of several trainings Student's over trainings "
    "and worlds; corrected for the number of rows (Holm). A difference is shown where its interval excludes zero and "
    "the corrected p is below 0.05. Rows: of the last dataset that was trained on. Wall: of collecting, "
    "filtering, playing and training, as if the run had done each of its steps alone, without the judging; CPU and "
    "GPU: of the training jobs. Both are means of a run's trainings."
)


def sweep_markdown(results: SweepResults, plot: bool = False) -> str:
    """The table with what has to be known to read it.

    Args:
        plot: Whether plots stand in it, as images.
    """
    header = _columns(results)
    rows = [[safe(cells[name]) for name in header] for cells in sweep_rows(results)]
    parts = [
        f"## Sweep {safe(results.name)}",
        safe(results.says),
        f"{results.worlds}. {_trainings(results)} Differences are to {safe(results.against)}.",
        *(f"> **{safe(note)}**" for note in results.notes),
        table(header, rows),
        *([image(_describe(results), plots.range_bars(_means(results), "achievements per episode"))] if plot else []),
        "### What differs",
        table(
            ("run", "stages", "config", "filter", "tags"),
            [
                (safe(r.name), " ".join(r.stages), *map(safe, (changes(r.changes), filters(r.filter), tags(r.tags))))
                for r in results.rows
            ],
        ),
        HOW_TO_READ,
        f"Again: `{safe(results.command)}`",
    ]
    failed = [f"- {safe(name)}: {safe(why)}" for name, why in results.failed.items()]
    if failed:
        parts += ["### Failed", "\n".join(failed)]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_sweep(results: SweepResults) -> str:
    """The page, everything inline."""
    told = [(row.name, row.difference) for row in results.rows if row.difference is not None]
    differences = [Comparison(results.against, name, d.delta, d.ci95, d.seeds) for name, d in told]
    shown = [d.shown for _, d in told]
    means, costs = _means(results), _costs(results)
    judged = [row for row in results.rows if row.quality is not None]
    return render(
        "sweep.html.j2",
        results=results,
        when=datetime.fromtimestamp(results.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        trainings=_trainings(results),
        columns=_columns(results),
        rows=sweep_rows(results),
        means=figure("means", plots.range_bars(means, "achievements per episode"), _describe(results))
        if means
        else None,
        deltas=figure("deltas", plots.delta_plot(differences, shown), plots.describe_deltas(differences))
        if differences
        else None,
        cost=figure(
            "cost",
            plots.scatter(costs, "seconds of collecting, playing and training", "achievements per episode"),
            _describe_cost(results),
        )
        if len(costs) > 1
        else None,
        heat=_heat(judged),
        judged=judged,
        changes=changes,
        filters=filters,
        tags=tags,
        how_to_read=HOW_TO_READ,
    )


def sweep_rows(results: SweepResults) -> list[dict[str, str]]:
    """A row per run and baseline, as text: for the page, Prefect's table artifact and the terminal's."""
    rows = [_cells(row, results.against) for row in results.rows]
    empty = dict.fromkeys(_COLUMNS, "–")
    for e in results.baselines:
        turns = e.turns or 1
        rows.append(
            empty
            | {
                "run": e.label,
                "achievements": f"{text.number(e.mean_achievements, 2)} {text.interval(e.ci95, 2)}",
                "Crafter score": text.number(e.crafter_score) if e.has_crafter_score else "–",
                "reward": text.number(e.mean_reward, 2),
                "invalid answers": text.percent(e.parse_failures / turns),
                "finding": _COMPARED_WITH if e.label == results.against else "baseline",
            }
        )
    return rows


def changes(values: Mapping[str, Any]) -> str:
    """What makes a row, in words: dotted keys and their values."""
    return ", ".join(f"{key} = {_value(value)}" for key, value in values.items()) or "the base as it is"


def filters(rules: Sequence[str]) -> str:
    """Which rules selected a row's training rows."""
    return ", ".join(rules) or "everything valid"


def tags(words: Mapping[str, str]) -> str:
    """A row's tags."""
    return ", ".join(f"{key}: {value}" for key, value in words.items()) or "–"


def _cells(row: Result, against: str) -> dict[str, str]:
    q, d, c = row.quality, row.difference, row.cost
    missing = "–"
    return {
        "run": row.name,
        "achievements": f"{text.number(q.achievements, 2)} {text.interval(q.ci95, 2)}" if q else row.state,
        "each training": ", ".join(text.number(mean, 2) for mean in q.each) if q else missing,
        "Crafter score": text.number(q.crafter_score) if q and q.crafter_score is not None else missing,
        "reward": text.number(q.reward, 2) if q else missing,
        "invalid answers": text.percent(q.invalid_answers) if q else missing,
        "difference": f"{text.signed(d.delta, 2)} {text.interval(d.ci95, 2, sign=True)}" if d else missing,
        "p (Holm)": text.p_value(d.p_corrected) if d else missing,
        "finding": _finding(row, against),
        "rows": f"{row.dataset_rows:,}" if row.dataset_rows is not None else missing,
        "tokens trained": f"{c.tokens:,.0f}" if c and c.tokens is not None else missing,
        "tokens/s": f"{c.tokens_per_second:,.0f}" if c and c.tokens_per_second else missing,
        "wall": text.duration(c.seconds) if c else missing,
        "CPU": text.duration(c.cpu_seconds) if c and c.cpu_seconds is not None else missing,
        "GPU": text.duration(c.gpu_seconds) if c and c.gpu_seconds is not None else missing,
    }


def _finding(row: Result, against: str) -> str:
    if row.state in ("failed", "not run"):
        return row.state
    found = _COMPARED_WITH if row.name == against else "–"
    if row.difference is not None:
        found = ("better" if row.difference.delta > 0 else "worse") if row.difference.shown else "no difference shown"
    return f"{found}, {row.trainings} of {row.of} trainings" if row.state == "partly" else found


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _trainings(results: SweepResults) -> str:
    if results.repeats == 1:
        return "One training per run."
    once = [row.name for row in results.rows if row.of == 1]
    but = f"; one of {', '.join(once)}, where none of these seeds is used" if once else ""
    return f"{results.repeats} trainings per run, with seeds of their own{but}."


def _columns(results: SweepResults) -> list[str]:
    """Those that tell something here."""
    used_gpus = any(row.cost is not None and row.cost.gpu_seconds for row in results.rows)
    silent = {"GPU": not used_gpus, "each training": results.repeats == 1}
    return [name for name in _COLUMNS if not silent.get(name)]


def _means(results: SweepResults) -> dict[str, tuple[float, float, float]]:
    """Name -> (mean, low, high) of runs and baselines."""
    means = {row.name: (row.quality.achievements, *row.quality.ci95) for row in results.rows if row.quality}
    return means | {e.label: (e.mean_achievements, *e.ci95) for e in results.baselines}


def _costs(results: SweepResults) -> dict[str, tuple[float, tuple[float, float, float]]]:
    """Name -> (seconds, (mean, low, high))."""
    return {
        row.name: (row.cost.seconds, (row.quality.achievements, *row.quality.ci95))
        for row in results.rows
        if row.cost is not None and row.quality is not None
    }


def _heat(judged: list[Result]) -> list[tuple[str, list[float]]]:
    """(achievement, its success rate per run), the most unlocked first."""
    qualities = [row.quality for row in judged if row.quality is not None]
    names = dict.fromkeys(name for q in qualities for name in q.success_rates)
    rows = [(name, [q.success_rates.get(name, 0.0) for q in qualities]) for name in names]
    return sorted(rows, key=lambda row: (-sum(row[1]), row[0]))


def _describe(results: SweepResults) -> str:
    return plots.describe_ranges(_means(results), "achievements per episode")


def _describe_cost(results: SweepResults) -> str:
    told = (
        f"{name} {text.number(mean, 2)} in {text.duration(x)}" for name, (x, (mean, _, _)) in _costs(results).items()
    )
    return "Achievements per episode against time: " + "; ".join(told)
