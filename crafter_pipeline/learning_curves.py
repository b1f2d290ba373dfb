"""How a training went, against what it had seen: curves as long rows, and how often each achievement was unlocked.

Jobs tell numbers per training step. Steps of two jobs are not alike; tokens and episodes are. What a job had seen by a
step it tells as well (`train.num_tokens`, `rl.num_episodes`), and everything else is placed by that.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Points = Sequence[tuple[float, float | None]]
"""(training step, value); None and NaN are left out."""
Curves = Mapping[str, Mapping[str, Points]]
"""{"sft": {metric: [(training step, value)]}, "dagger-1": {…}, "rl": {…}}"""
SUCCESS = "success."
"""Between a metric's prefix and an achievement: `dev.success.collect_wood`, the share of episodes that unlocked it."""
SEEN = ("num_tokens", "num_episodes", "num_turns")
"""Metrics, behind their prefix, of what a job has seen since its first step."""
_OF_DEV = ("dev.episodes", "dev.reward_low", "dev.reward_high", "dev.achievements_low", "dev.achievements_high")
"""How many episodes a score is of, and the ends of its intervals."""
STEPS = "training steps"
"""Label of the axis where a job tells neither tokens nor episodes."""
FILE = "curves.csv"
"""In a run's folder."""
MOST_COLUMNS = 24
"""Of a heat map, all stages together."""


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One number of one training step."""

    stage: str
    """sft, dagger-1, rl, …"""
    metric: str
    step: int
    tokens: int | None
    """Trained in this stage by then, prompts included; None, here and below: the job does not tell."""
    episodes: int | None
    """Played to be trained on in this stage by then."""
    value: float


@dataclass(frozen=True, slots=True)
class Axis:
    """Where a job's training steps lie in a plot."""

    label: str
    at: Callable[[float], float]

    def place(self, points: Points) -> list[tuple[float, float | None]]:
        """The points, by what the job had seen at their steps."""
        return [(self.at(step), value) for step, value in points]


@dataclass(frozen=True, slots=True)
class Unlocks:
    """How often each achievement was unlocked while one job trained."""

    stage: str
    unit: str
    """Of `seen`: the axis' label."""
    worlds: str
    """Where it played: dev worlds, or training worlds."""
    seen: tuple[float, ...]
    """Of each column, oldest first."""
    rates: Mapping[str, tuple[float, ...]]
    """Achievement -> share of the episodes (0–1), per column."""


def in_order(stages: Iterable[str]) -> list[str]:
    """Fine-tuning, DAgger's rounds by their number, RL, then the others as they come."""

    def place(stage: str) -> tuple[int, int]:
        name, _, number = stage.partition("-")
        order = ("sft", "dagger", "rl")
        return (order.index(name) if name in order else len(order), int(number) if number.isdecimal() else 0)

    return sorted(stages, key=place)


def curve_rows(training: Curves) -> Iterator[CurveRow]:
    """Every number of a run, stage by stage, by metric and step."""
    for stage in in_order(training):
        tokens, episodes = _seen(training[stage], "num_tokens"), _seen(training[stage], "num_episodes")
        for metric, points in sorted(training[stage].items()):
            for step, value in finite(points):
                yield CurveRow(stage, metric, int(step), _whole(tokens, step), _whole(episodes, step), value)


def curves_csv(training: Curves) -> str:
    """The rows as CSV with a header; what is not told is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("stage", "metric", "step", "tokens", "episodes", "value"))
    for row in curve_rows(training):
        writer.writerow((row.stage, row.metric, row.step, _cell(row.tokens), _cell(row.episodes), f"{row.value:.8g}"))
    return out.getvalue()


def axis_of(curves: Mapping[str, Points]) -> Axis:
    """Episodes where a job plays them, else tokens, else its steps."""
    for name, label in (("num_episodes", "episodes played"), ("num_tokens", "tokens trained")):
        seen = _seen(curves, name)
        if seen is not None:
            return Axis(label, seen)
    return Axis(STEPS, float)


def is_plotted_elsewhere(metric: str) -> bool:
    """Whether a metric is no curve of its own: an axis, an interval's end, a cell of the heat map."""
    name = metric.partition(".")[2]
    return name in SEEN or name.startswith(SUCCESS) or metric in _OF_DEV


def unlocks(training: Curves, most: int = MOST_COLUMNS) -> list[Unlocks]:
    """The heat map's columns, stage after stage: play on dev seeds, or else the episodes that were trained on.

    Args:
        most: Columns of all stages together; where there are more scores, neighbours are averaged.
    """
    found = [(stage, _rates(training[stage])) for stage in in_order(training)]
    told = [(stage, prefix, rates) for stage, (prefix, rates) in found if rates]
    share = max(1, most // max(len(told), 1))
    return [_unlocks(stage, prefix, rates, training[stage], share) for stage, prefix, rates in told]


def finite(points: Points) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if y is not None and math.isfinite(x) and math.isfinite(y)]


# --------------------------------------------------------------------------- inside


def _rates(curves: Mapping[str, Points]) -> tuple[str, dict[str, dict[float, float]]]:
    """(prefix, achievement -> step -> rate) of the play that says most; empty where there is none."""
    prefixes = dict.fromkeys(m.split(SUCCESS)[0] for m in curves if f".{SUCCESS}" in m)
    if not prefixes:
        return "", {}
    prefix = "dev." if "dev." in prefixes else next(iter(prefixes))
    start = prefix + SUCCESS
    return prefix, {m.removeprefix(start): dict(finite(p)) for m, p in curves.items() if m.startswith(start)}


def _unlocks(
    stage: str, prefix: str, rates: Mapping[str, Mapping[float, float]], curves: Mapping[str, Points], most: int
) -> Unlocks:
    steps = sorted({step for of_name in rates.values() for step in of_name})
    bins = [part.tolist() for part in np.array_split(np.array(steps), min(most, len(steps)))]
    axis = axis_of(curves)
    return Unlocks(
        stage=stage,
        unit=axis.label,
        worlds="dev worlds" if prefix == "dev." else "training worlds",
        seen=tuple(axis.at(part[-1]) for part in bins),
        rates={
            name: tuple(sum(of_name.get(step, 0.0) for step in part) / len(part) for part in bins)
            for name, of_name in rates.items()
        },
    )


def _seen(curves: Mapping[str, Points], name: str) -> Callable[[float], float] | None:
    """What a job had seen by a step: as it told, in between in proportion; None: it does not tell."""
    told = next((finite(p) for m, p in curves.items() if m.partition(".")[2] == name and finite(p)), None)
    if told is None:
        return None
    steps, seen = zip((0.0, 0.0), *told, strict=True)
    return lambda step: float(np.interp(step, steps, seen))


def _whole(seen: Callable[[float], float] | None, step: float) -> int | None:
    return None if seen is None else round(seen(step))


def _cell(value: int | None) -> int | str:
    return "" if value is None else value
