"""What a training job told, as plots: the few that matter first, every other metric after them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from crafter_pipeline.learning_curves import Curves, Points, axis_of, finite, is_plotted_elsewhere, unlocks
from crafter_pipeline.report import plots

MOST = 24
"""Plots of a job."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Metrics that belong into one plot: name -> what it is called there."""

    title: str
    metrics: Mapping[str, str]
    parts_of_a_whole: bool = False
    main: bool = False
    """Worth being seen without being asked for."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture, with the same in words."""

    title: str
    drawing: plots.Drawing
    alt: str
    main: bool = False
    """Worth being seen without being asked for."""

    @property
    def svg(self) -> str:
        return self.drawing.svg()


PANELS: tuple[Panel, ...] = (
    Panel("loss per token", {"train.loss": "training", "validation.loss": "validation"}, main=True),
    Panel("reward per episode", {"rl.reward": "training worlds", "dev.reward": "dev worlds"}, main=True),
    Panel(
        "achievements per episode",
        {"rl.achievements": "training worlds", "dev.achievements": "dev worlds"},
        main=True,
    ),
    Panel("reviews, 0 to 1", {"rl.outcome_score": "of the outcome", "rl.event_score": "of the turns"}),
    Panel("entropy per token", {"rl.entropy": "entropy"}, main=True),
    Panel(
        "KL divergence per token",
        {"rl.kl": "from the start model", "rl.policy_kl": "from the sampler", "rl.reverse_kl": "from the teacher"},
        main=True,
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
    axis = axis_of(told)
    drawn = {name: axis.place(points) for name, points in told.items() if finite(points)}
    return [_plot(job, panel, drawn, axis.label) for panel in list(_panels(drawn))[:MOST]]


def shown_metrics(curves: Mapping[str, Points]) -> list[str]:
    """Names of the metrics that matter, as the job told them; of a backend that names them otherwise, all it told more
    than once."""
    told = {_of_panels(name): name for name, points in curves.items() if finite(points)}
    main = [told[name] for panel in PANELS if panel.main for name in panel.metrics if name in told]
    return main or sorted(name for name in told.values() if len(curves[name]) > 1 and not is_plotted_elsewhere(name))


def heat_plot(training: Curves) -> Plot | None:
    """How often each achievement was unlocked while the jobs trained, in their order; None: none of them played."""
    told = unlocks(training)
    if not told:
        return None
    return Plot("achievements over the training", plots.heat_map(told), plots.describe_heat(told), main=True)


def _of_panels(metric: str) -> str:
    """On-policy distillation tells RL's metrics under a name of its own, and a job is one or the other."""
    return metric.replace("distillation.", "rl.", 1) if metric.startswith("distillation.") else metric


def _panels(drawn: Mapping[str, Points]) -> Iterator[Panel]:
    for panel in PANELS:
        if found := {name: word for name, word in panel.metrics.items() if name in drawn}:
            yield replace(panel, metrics=found, parts_of_a_whole=panel.parts_of_a_whole and len(found) > 1)
    shown = {name for panel in PANELS for name in panel.metrics}
    rank = {k: next((i for i, word in enumerate(_WORDS) if word in k.lower()), len(_WORDS)) for k in drawn}
    others = [name for name in drawn.keys() - shown if len(drawn[name]) > 1 and not is_plotted_elsewhere(name)]
    for name in sorted(others, key=lambda k: (rank[k], len(k), k)):
        yield Panel(name, {name: name})


def _plot(job: str, panel: Panel, drawn: Mapping[str, Points], over: str) -> Plot:
    series = {word: drawn[name] for name, word in panel.metrics.items()}
    (word, *others) = series
    title = f"{job}: {panel.title}" + (f", {word}" if word.endswith("worlds") and not others else "")
    steps = {tuple(x for x, _ in points) for points in series.values()}
    if panel.parts_of_a_whole and len(steps) == 1 and len(min(steps)) > 1:  # of one step there is no area
        drawing = plots.shares(title, series, over=over)
    else:
        bands = {
            word: (drawn[f"{name}_low"], drawn[f"{name}_high"])
            for name, word in panel.metrics.items()
            if f"{name}_low" in drawn and f"{name}_high" in drawn
        }
        drawing = plots.curves(title, series, plots.colour(job), over=over, bands=bands)
    return Plot(panel.title, drawing, plots.describe_curves(title, series), panel.main)
