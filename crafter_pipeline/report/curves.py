"""Learning curves as files: the numbers as CSV, the plots that matter as one PNG."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crafter_pipeline.errors import DataError
from crafter_pipeline.files import write_whole
from crafter_pipeline.learning_curves import FILE, Curves, axis_of, curves_csv, finite, in_order
from crafter_pipeline.report import plots
from crafter_pipeline.report.training import Plot, heat_plot, shown_metrics, training_plots

PICTURE = "curves.png"


@dataclass(frozen=True, slots=True)
class Trend:
    """How one metric of a stage went."""

    stage: str
    metric: str
    first: float
    last: float
    seen: float
    """Of `unit`, by the last number."""
    unit: str
    """tokens trained, episodes played, or training steps."""


def read_training(folder: Path) -> tuple[str, Curves]:
    """(id of the run, its curves), from its report.

    Raises:
        DataError: it has none that can be read.
    """
    path = folder / "report.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        curves = {
            str(stage): {str(name): [(float(x), y) for x, y in points] for name, points in metrics.items()}
            for stage, metrics in told["training"].items()
        }
        return str(told["run_id"]), curves
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such report. A run writes it at its end; until then, name one of its jobs."
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise DataError(f"{path}: not a report of ours: {e!r}.") from e


def main_plots(training: Curves) -> list[Plot]:
    """Loss, reward, achievements, entropy and KL of every stage in their order, then the heat map."""
    drawn = [plot for stage in in_order(training) for plot in training_plots(stage, training[stage])]
    main = [plot for plot in drawn if plot.main] or drawn[:1]
    heat = heat_plot(training)
    return main if heat is None else [*main, heat]


def trends(training: Curves) -> Iterator[Trend]:
    """First and last number of the metrics that matter, stage by stage."""
    for stage in in_order(training):
        axis = axis_of(training[stage])
        for metric in shown_metrics(training[stage]):
            told = finite(training[stage][metric])
            yield Trend(stage, metric, told[0][1], told[-1][1], axis.at(told[-1][0]), axis.label)


def export_curves(training: Curves, folder: Path) -> tuple[Path, Path]:
    """Write `curves.csv` and `curves.png` into `folder`, which is made; (csv, png).

    Raises:
        DataError: there is no number, or the folder cannot be written.
    """
    drawn = main_plots(training)
    if not drawn:
        raise DataError("No training job has told a number yet: there is nothing to draw.")
    picture = plots.sheet([plot.drawing for plot in drawn])
    return write_whole(folder / FILE, curves_csv(training)), write_whole(folder / PICTURE, picture)
