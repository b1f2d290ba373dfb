"""What a training job told, as plots: the few that matter first, every other metric after them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from crafter_pipeline.report import plots
from crafter_pipeline.report.plots import Points

MOST = 24
"""Plots of a job."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Metrics that belong into one plot: name -> what it is called there."""

    title: str
    metrics: Mapping[str, str]
    parts_of_a_whole: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture, with the same in words."""

    title: str
    svg: str
    alt: str


PANELS: tuple[Panel, ...] = (
    Panel("loss per token", {"train.loss": "training", "validation.loss": "validation"}),
    Panel("reward per episode", {"rl.reward": "training worlds", "dev.reward": "dev worlds"}),
    Panel("achievements per episode", {"rl.achievements": "training worlds", "dev.achievements": "dev worlds"}),
    Panel("reviews, 0 to 1", {"rl.outcome_score": "of the outcome", "rl.event_score": "of the turns"}),
    Panel("entropy per token", {"rl.entropy": "entropy"}),
    Panel(
        "KL divergence per token",
        {"rl.kl": "from the start model", "rl.policy_kl": "from the sampler", "rl.reverse_kl": "from the teacher"},
    ),
    Panel(
        "share of the wall time",
        {
            "rl.share.rollout": "rollout",
            "rl.share.update": "update",
            "rl.share.weight_sync": "weight sync",
            "rl.share.checkpoint": "checkpoint",
            "rl.share.dev_evaluation": "dev episodes",
            "rl.share.record": "record",
            "rl.share.idle": "idle",
        },
        parts_of_a_whole=True,
    ),
    Panel("token accuracy", {"train.mean_token_accuracy": "training", "validation.mean_token_accuracy": "validation"}),
)
"""In the order in which they are shown."""
_WORDS = ("loss", "reward", "achievements", "return")
"""Of metrics that other backends name otherwise: those with such a word come first."""


def training_plots(job: str, curves: Mapping[str, Points] | None) -> list[Plot]:
    """The plots of a job, what matters most first; without any number, none. Of the metrics that belong to no panel,
    those that were told more than once.

    Args:
        job: sft, dagger-1, rl.
        curves: Metric -> points.
    """
    told = {_of_panels(name): points for name, points in (curves or {}).items()}
    drawn = {k: v for k, v in told.items() if any(y is not None and math.isfinite(y) for _, y in v)}
    return [_plot(job, panel, drawn) for panel in list(_panels(drawn))[:MOST]]


def _of_panels(metric: str) -> str:
    """On-policy distillation tells RL's metrics under a name of its own, and a job is one or the other."""
    return metric.replace("distillation.", "rl.", 1) if metric.startswith("distillation.") else metric


def _panels(drawn: Mapping[str, Points]) -> Iterator[Panel]:
    for panel in PANELS:
        if found := {name: word for name, word in panel.metrics.items() if name in drawn}:
            yield Panel(panel.title, found, panel.parts_of_a_whole and len(found) > 1)
    shown = {name for panel in PANELS for name in panel.metrics}
    rank = {k: next((i for i, word in enumerate(_WORDS) if word in k.lower()), len(_WORDS)) for k in drawn}
    others = [name for name in drawn.keys() - shown if len(drawn[name]) > 1]
    for name in sorted(others, key=lambda k: (rank[k], len(k), k)):
        yield Panel(name, {name: name})


def _plot(job: str, panel: Panel, drawn: Mapping[str, Points]) -> Plot:
    series = {word: drawn[name] for name, word in panel.metrics.items()}
    title = f"{job}: {panel.title}"
    steps = {tuple(x for x, _ in points) for points in series.values()}
    if panel.parts_of_a_whole and len(steps) == 1 and len(min(steps)) > 1:  # of one step there is no area
        svg = plots.shares(title, series)
    else:
        svg = plots.curves(title, series, plots.colour(job))
    return Plot(panel.title, svg, plots.describe_curves(title, series))
