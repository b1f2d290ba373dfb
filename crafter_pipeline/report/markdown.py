"""The same facts as markdown, for Prefect's artifacts and the terminal.

Prefect's page renders tables and `![](data:image/svg+xml;base64,…)`, but no inline SVG and no styles; so plots are
images, and everything that comes from a config or a model is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from crafter_pipeline.evaluation import Comparison, Evaluation, in_label_order
from crafter_pipeline.learning_curves import SUCCESS, Points
from crafter_pipeline.links import run_file_link
from crafter_pipeline.report import plots, text
from crafter_pipeline.report.lineage import lineage, mermaid
from crafter_pipeline.report.report import RunReport, verdict
from crafter_pipeline.report.training import heat_plot, training_plots

PLOTS_OF_A_JOB = 7
"""An artifact shows these; the others stand in its table alone."""


def evaluation_markdown(evaluation: Evaluation, plot: bool = True) -> str:
    """One player's scores, and what it unlocks how often."""
    e = evaluation
    parts = [
        f"## {safe(e.label)}: {text.number(e.mean_achievements)} achievements per episode",
        f"95 % interval {text.interval(e.ci95)} over {text.seeds(e.seeds)}, up to {e.max_steps} env steps each.",
        table(
            ("metric", "value"),
            [
                ("model", f"`{safe(e.model)}`"),
                (f"achievements (mean of {len(e.success_rates)})", text.number(e.mean_achievements, 2)),
                *([("Crafter score (0–100)", text.number(e.crafter_score))] if e.has_crafter_score else []),
                ("reward (mean episode return)", text.number(e.mean_reward, 2)),
                ("env steps per episode", text.number(e.mean_env_steps)),
                ("unreadable answers", f"{e.parse_failures:,} of {e.turns:,} turns"),
                ("ended by", ", ".join(f"{safe(k)} {n}" for k, n in e.stop_reasons.items()) or "–"),
            ],
        ),
    ]
    if plot and e.success_rates:
        parts.append(image(f"success rates of {e.label}", plots.success_bars(e)))
    else:
        rates = sorted(e.success_rates.items(), key=lambda item: (-item[1], item[0]))
        parts.append(table(("achievement", "episodes"), [(safe(text.words(k)), text.percent(r)) for k, r in rates]))
    return "\n\n".join(parts) + "\n"


def comparison_markdown(comparisons: Comparison | Sequence[Comparison], plot: bool = True) -> str:
    """Paired differences in achievements; those whose interval excludes zero are marked."""
    many = [comparisons] if isinstance(comparisons, Comparison) else list(comparisons)
    if not many:
        return "No comparison: fewer than two evaluations.\n"
    rows = [
        (
            f"{safe(c.b)} {text.MINUS} {safe(c.a)}",
            f"{text.signed(c.delta, 2)} {text.interval(c.ci95, 2, sign=True)}",
            finding(c),
        )
        for c in many
    ]
    shared = sorted({len(c.seeds) for c in many})
    seeds = f"{shared[0]}" if len(shared) == 1 else f"{shared[0]} to {shared[-1]}"
    parts = [
        table(("difference", "achievements per episode, 95 % interval", "finding"), rows),
        f"Paired by seed: only seeds that both played count, here {seeds}. Intervals are not corrected for the number "
        "of pairs.",
    ]
    if plot:
        parts.append(image(plots.describe_deltas(many), plots.delta_plot(many)))
    return "\n\n".join(parts) + "\n"


def run_markdown(report: RunReport, plot: bool = True) -> str:
    """A run in one artifact: verdict, scores, differences, warnings."""
    parts = [f"## {safe(report.name)}: {report.status}", f"**{safe(verdict(report).sentence)}**"]
    if report.evaluations:
        parts.append(_players(report))
        if plot:
            parts.append(image(plots.describe_bars(report.evaluations), plots.achievement_bars(report.evaluations)))
    if report.comparisons:
        parts += ["### Differences", comparison_markdown(report.comparisons, plot).strip()]
    main = [shown[0] for job, curves in report.training.items() if (shown := training_plots(job, curves))]
    if (heat := heat_plot(report.training)) is not None:
        main.append(heat)
    if main and plot:
        parts += ["### Training", *(image(p.alt, p.svg) for p in main)]
    if report.warnings:
        parts += ["### Warnings", "\n".join(f"- {safe(w)}" for w in report.warnings)]
    if plot:
        parts += _lineage(report)
        for p in report.pictures:
            parts += [f"### An episode of {safe(p.label)}", png(p.words, p.png), f"{safe(p.note)}."]
    return "\n\n".join(parts) + "\n"


def _players(report: RunReport) -> str:
    """A row per player, few columns: on a phone Prefect's page cuts off what is wider."""
    rows = [
        (
            safe(row["label"]),
            f"{row['achievements']} {safe(row['95 % interval'])}",
            safe(row["vs random"]),
            row["Crafter score"],
            row["seeds"],
        )
        for row in summary_rows(report)
    ]
    return table(("player", "achievements", "vs random", "Crafter score", "seeds"), rows)


def _lineage(report: RunReport) -> list[str]:
    """A drawing of what came from what, where there is anything."""
    drawn = lineage(report)
    return ["### Lineage", f"```mermaid\n{mermaid(drawn)}\n```"] if drawn.nodes else []


def files_markdown(folder: Path, names: Sequence[str] = ()) -> str:
    """Where a run's folder is, and of `names` those that are in it: as links if a browser can open them, else the path.

    A `file://` link would open nothing: browsers refuse it on a page that came over HTTP.
    """
    places = [place_markdown(folder, folder.name)]
    if run_file_link(folder) is not None:
        places += [place_markdown(folder / name, name) for name in names if (folder / name).exists()]
    return f"Run {' · '.join(places)}"


def place_markdown(path: Path, words: str) -> str:
    """A link, or the path where there is no address for it."""
    link = run_file_link(path) if path.is_dir() else run_file_link(path.parent, path.name)
    return f"[{safe(words)}]({link})" if link else code(path)


def job_markdown(job: str, curves: Mapping[str, Points]) -> str:
    """What a training job told: plots, and the last value of each metric."""
    last = {name: points[-1] for name, points in curves.items() if points and SUCCESS not in name}
    rows = [
        (safe(name), str(step), f"{value:.4g}") for name, (step, value) in sorted(last.items()) if value is not None
    ]
    shown = training_plots(job, curves)[:PLOTS_OF_A_JOB]
    if (heat := heat_plot({job: curves})) is not None:
        shown.append(heat)
    drawn = [image(p.alt, p.svg) for p in shown]
    return "\n\n".join([*drawn, table(("metric", "last step", "value"), rows)]) + "\n"


def summary_rows(report: RunReport) -> list[dict[str, str]]:
    """One row per evaluation, as text: for Prefect's table artifact and the terminal's."""
    versus = {c.b: c for c in report.comparisons if c.a == "random"}
    return [
        {
            "label": e.label,
            "achievements": text.number(e.mean_achievements, 2),
            "95 % interval": text.interval(e.ci95, 2),
            "vs random": f"{text.signed(versus[e.label].delta, 2)} {text.interval(versus[e.label].ci95, 2, sign=True)}"
            if e.label in versus
            else "–",
            "Crafter score": text.number(e.crafter_score) if e.has_crafter_score else "–",
            "seeds": str(len(e.seeds)),
            "env steps": text.number(e.mean_env_steps, 0),
            "model": e.model,
        }
        for e in in_label_order(report.evaluations)
    ]


def finding(comparison: Comparison) -> str:
    """'better', 'worse', or why neither is shown."""
    if comparison.clear:
        return "**better**" if comparison.delta > 0 else "**worse**"
    return "too few seeds" if comparison.excludes_zero else "open: includes zero"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are `safe` already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def image(alt: str, svg: str) -> str:
    """A plot as an image that needs no network."""
    return f"![{safe(alt)}]({plots.data_uri(svg)})"


def code(value: object) -> str:
    """One line in code style, outside of tables."""
    return "`" + " ".join(str(value).split()).replace("`", "'") + "`"


def png(alt: str, picture: bytes) -> str:
    """A PNG as an image that needs no network."""
    return f"![{safe(alt)}](data:image/png;base64,{base64.b64encode(picture).decode()})"


def safe(value: object) -> str:
    """One line, no markup: what comes from outside must not end a cell, start a tag or make a link."""
    line = " ".join(str(value).split())
    return line.translate(_ESCAPED)


_ESCAPED = str.maketrans(
    {"&": "&amp;", "<": "&lt;", "|": "&#124;", "`": "'", "[": "&#91;", "]": "&#93;", "*": "&#42;", "\\": "&#92;"}
)
