"""Every plot we draw, as SVG text.

One look: small, no frame, colours that stay apart for colour-blind readers (Okabe and Ito, "Color Universal Design",
2008), text as text. `inline()` makes an SVG that lives inside a page and takes the page's font and text colour, so
it follows light and dark; `data_uri()` makes one for markdown, on a white card, since an image cannot know the
colours around it.

matplotlib is imported at the first plot, never by importing this module. Equal inputs give equal bytes.
"""

from __future__ import annotations

import base64
import io
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from typing import TYPE_CHECKING, Any

from crafter_pipeline.dataset.manifest import Histogram
from crafter_pipeline.evaluation import Comparison, Evaluation, in_label_order
from crafter_pipeline.learning_curves import STEPS, Points, Unlocks, finite
from crafter_pipeline.report.text import MINUS, interval, number, percent, signed, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from crafter_pipeline.nightly import Night

COLOURS = {
    "random": "#8a8f98",
    "teacher": "#e69f00",
    "mlp": "#56b4e9",
    "sft": "#0072b2",
    "dagger": "#009e73",
    "rl": "#d55e00",
}
OTHER = "#cc79a7"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_FURTHER = ("#56b4e9", "#cc79a7", "#8a8f98")
_HEAT = (0.0, 0.447, 0.698)
"""Red, green and blue of a heat map's cells; how dense they are says the rest, on light pages and dark ones."""
_PARTS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8a8f98", "#56b4e9")
_INK = "#010203"  # stands for the page's text colour until the SVG is finished
_WIDTH = 4.1  # inches at 72 units each: on a phone 9-unit text is about 10 px, on a desktop about 15 px
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "crafter-pipeline",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,  # a "$" in a name is a dollar sign
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "normal",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_LOCK = threading.Lock()  # matplotlib's settings are global; Prefect runs tasks in threads


def colour(label: str) -> str:
    """A player's colour, the same in every plot and table; `dagger-2` has that of `dagger`."""
    return COLOURS.get(label.partition("-")[0], OTHER)


# --------------------------------------------------------------------------- the plots


def achievement_bars(evaluations: Sequence[Evaluation]) -> str:
    """Mean achievements per episode and player, with 95 % intervals."""
    rows = in_label_order(evaluations)

    def draw(ax: Axes) -> None:
        y = range(len(rows))
        means = [e.mean_achievements for e in rows]
        below = [max(0.0, e.mean_achievements - e.ci95[0]) for e in rows]
        above = [max(0.0, e.ci95[1] - e.mean_achievements) for e in rows]
        ax.barh(y, means, height=0.62, color=[colour(e.label) for e in rows], alpha=0.85)
        ax.errorbar(means, y, xerr=[below, above], fmt="none", ecolor=_INK, elinewidth=1.1, capsize=2.5)
        top = max([e.ci95[1] for e in rows] + [1.0])
        for i, e in enumerate(rows):
            ax.text(max(e.ci95[1], means[i]) + top * 0.025, i, number(means[i]), va="center")
        ax.set_yticks(list(y), [_short(e.label) for e in rows])
        ax.invert_yaxis()
        ax.set_xlim(0, top * 1.12)
        ax.set_xlabel("achievements per episode (mean, 95 % interval)")
        _grid(ax, "x")

    return _svg(draw, _WIDTH, 0.75 + 0.34 * len(rows))


def success_bars(evaluation: Evaluation) -> str:
    """Share of episodes that unlocked each achievement, for one player; most frequent first."""
    rates = sorted(evaluation.success_rates.items(), key=lambda item: (-item[1], item[0]))

    def draw(ax: Axes) -> None:
        y = range(len(rates))
        ax.barh(y, [100 * r for _, r in rates], height=0.66, color=colour(evaluation.label), alpha=0.85)
        ax.set_yticks(list(y), [_short(words(name), 24) for name, _ in rates])
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.set_xlabel("episodes that unlocked it, %")
        _grid(ax, "x")

    return _svg(draw, _WIDTH, 0.7 + 0.17 * max(2, len(rates)))


def success_dots(evaluations: Sequence[Evaluation]) -> str:
    """Share of episodes that unlocked each achievement, a dot per player; the most unlocked first."""
    rows = in_label_order(evaluations)
    names = sorted(
        {name for e in rows for name in e.success_rates},
        key=lambda name: (-sum(e.success_rates.get(name, 0.0) for e in rows), name),
    )

    def draw(ax: Axes) -> None:
        y = range(len(names))
        for i in y:
            rates = [100 * e.success_rates[names[i]] for e in rows if names[i] in e.success_rates]
            ax.plot((min(rates), max(rates)), (i, i), color=_INK, linewidth=0.8, alpha=0.35)
        for e, marker in zip(rows, cycle(_MARKERS), strict=False):  # labels of one's own share a colour
            told = [(100 * e.success_rates[name], i) for i, name in enumerate(names) if name in e.success_rates]
            xs, ys = zip(*told, strict=True) if told else ((), ())
            ax.plot(xs, ys, marker, color=colour(e.label), markersize=4.5, alpha=0.85, label=_short(e.label))
        ax.set_yticks(list(y), [_short(words(name), 24) for name in names])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlim(-2, 102)
        ax.set_xlabel("episodes that unlocked it, %")
        ax.legend(frameon=False, loc="lower right")
        _grid(ax, "x")

    return _svg(draw, _WIDTH, 0.7 + 0.18 * max(3, len(names)))


def survival(evaluations: Sequence[Evaluation]) -> str:
    """Share of episodes in which the player still lives, over the env steps of the episode, a line per player."""
    rows = in_label_order(evaluations)
    last = max((step for e in rows for step in e.env_steps), default=1)

    def draw(ax: Axes) -> None:
        styles = cycle(("-", (0, (4, 2)), (0, (1, 1)), (0, (6, 2, 1, 2))))
        for e, style in zip(rows, styles, strict=False):  # labels of one's own share a colour
            steps, shares = zip(*e.survival(), strict=True)
            x, y = (*steps, max(e.env_steps, default=last)), [100 * share for share in (*shares, shares[-1])]
            line: Any = {"color": colour(e.label), "linewidth": 1.6, "linestyle": style, "alpha": 0.9}
            ax.step(x, y, where="post", label=_short(e.label), **line)
        ax.set_xlim(0, last)
        ax.set_ylim(0, 102)
        ax.set_xlabel("env step")
        ax.set_ylabel("alive, %")
        ax.legend(frameon=False, loc="best", fontsize=7)
        _grid(ax, "y")

    return _svg(draw, _WIDTH, 1.9)


def delta_plot(comparisons: Sequence[Comparison], shown: Sequence[bool] | None = None) -> str:
    """Paired differences with 95 % intervals; filled where shown, hollow where not.

    Args:
        shown: Of each, whether it is; unset: those that are `clear`.
    """
    filled = [c.clear for c in comparisons] if shown is None else shown

    def draw(ax: Axes) -> None:
        for i, (c, full) in enumerate(zip(comparisons, filled, strict=True)):
            shade = colour(c.b)
            ax.plot(c.ci95, (i, i), color=shade, linewidth=2, solid_capstyle="round", alpha=1 if full else 0.55)
            ax.plot(c.delta, i, "o", color=shade, markersize=5, markerfacecolor=shade if full else "none")
        edges = [x for c in comparisons for x in c.ci95] + [0.0]
        span = max(edges) - min(edges) or 1.0
        ax.set_xlim(min(edges) - 0.05 * span, max(edges) + 0.05 * span)
        ax.axvline(0, color=_INK, linewidth=0.8, alpha=0.6)
        ax.set_yticks(range(len(comparisons)), [f"{_short(c.b)} {MINUS} {_short(c.a)}" for c in comparisons])
        ax.set_ylim(len(comparisons) - 0.5, -0.5)
        ax.set_xlabel("achievements per episode, difference")
        _grid(ax, "x")

    return _svg(draw, _WIDTH, 0.75 + 0.24 * len(comparisons))


def curves(
    title: str,
    series: Mapping[str, Points],
    shade: str = COLOURS["sft"],
    *,
    over: str = STEPS,
    bands: Mapping[str, tuple[Points, Points]] | None = None,
) -> Drawing:
    """Metrics over what was seen: faint as they came and, from 30 points on, their running means on top.

    Args:
        series: Name -> points; with several, the first has the colour and a legend tells them apart.
        over: What the points' first numbers are.
        bands: Name of a series -> the ends of its interval.
    """

    def draw(ax: Axes) -> None:
        for (name, points), colour_ in zip(series.items(), (shade, *_FURTHER), strict=False):
            told = finite(points)
            xs, ys = [x for x, _ in told], [y for _, y in told]
            if bands is not None and name in bands:
                low, high = (dict(finite(end)) for end in bands[name])
                both = sorted(low.keys() & high.keys())
                spread: Any = ([low[x] for x in both], [high[x] for x in both])
                if len(both) > 1:
                    ax.fill_between(both, *spread, color=colour_, alpha=0.18, linewidth=0)
                else:
                    ax.vlines(both, *spread, color=colour_, linewidth=1.1)
            if len(told) >= 30:
                ax.plot(xs, ys, color=colour_, linewidth=0.7, alpha=0.35)
                ax.plot(xs, _running_mean(ys, max(3, len(ys) // 20)), color=colour_, linewidth=1.6, label=name)
            else:
                marker = "o" if len(told) <= 20 else None
                ax.plot(xs, ys, color=colour_, linewidth=1.6, marker=marker, markersize=3, label=name)
        _finish_curves(ax, title, over, legend={"loc": "best"} if len(series) > 1 else None)

    return Drawing(draw, _WIDTH, 1.9)


def shares(title: str, series: Mapping[str, Points], *, over: str = STEPS) -> Drawing:
    """Parts of a whole over what was seen, one on top of the other. Equal steps in all of them."""

    def draw(ax: Axes) -> None:
        steps = [x for x, _ in next(iter(series.values()))]
        parts = [[y or 0.0 for _, y in points] for points in series.values()]
        ax.stackplot(steps, parts, labels=list(series), colors=_PARTS[: len(parts)], alpha=0.85, linewidth=0)
        ax.set_ylim(0, 1)
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "reverse": True}
        _finish_curves(ax, title, over, legend=beside)

    return Drawing(draw, _WIDTH, 2.2)


def heat_map(stages: Sequence[Unlocks]) -> Drawing:
    """How often each achievement was unlocked while the stages trained, one after the other; the darker, the oftener.

    The most unlocked stand on top. Below, what a stage had seen by its first and its last column.
    """
    names, gap = by_rate(stages), 0.8
    numbers: Any = {"fontsize": 7, "va": "top"}
    widths = [max(5.0, len(stage.seen)) for stage in stages]  # of few columns: room for the stage's name

    def draw(ax: Axes) -> None:
        from matplotlib.patches import Patch

        left, below = 0.0, len(names) + 0.25
        for stage, width in zip(stages, widths, strict=True):
            right = left + width
            never = (0.0,) * len(stage.seen)
            cells = [[(*_HEAT, _shade(rate)) for rate in stage.rates.get(name, never)] for name in names]
            ax.imshow(cells, extent=(left, right, len(names), 0), interpolation="none", aspect="auto")
            ax.text(left, -0.35, _short(stage.stage, 10), color=colour(stage.stage), fontsize=8, weight="bold")
            ax.text(right, below, short_count(stage.seen[-1]), ha="right", **numbers)
            if width >= 6 and len(stage.seen) > 1:  # else there is no room for both
                ax.text(left, below, short_count(stage.seen[0]), ha="left", **numbers)
            left = right + gap
        ax.set_xlim(0, left - gap)
        ax.set_ylim(len(names), 0)
        ax.set_xticks([])
        ax.set_yticks([i + 0.5 for i in range(len(names))], [_short(words(name), 24) for name in names], fontsize=8)
        ax.set_xlabel(_units(stages), labelpad=12)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        key = [Patch(facecolor=(*_HEAT, _shade(rate)), label=f"{100 * rate:.0f} %") for rate in (0, 0.25, 0.5, 0.75, 1)]
        above: Any = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.045), "borderaxespad": 0.0}
        ax.legend(handles=key, ncols=5, fontsize=7, frameon=False, handlelength=1.0, columnspacing=0.9, **above)

    return Drawing(draw, _WIDTH, 1.15 + 0.165 * max(3, len(names)))


def by_rate(stages: Sequence[Unlocks]) -> list[str]:
    """Achievements, the most unlocked first."""
    total: dict[str, float] = {}
    for stage in stages:
        for name, rates in stage.rates.items():
            total[name] = total.get(name, 0.0) + sum(rates) / len(rates)
    return sorted(total, key=lambda name: (-total[name], name))


def describe_heat(stages: Sequence[Unlocks]) -> str:
    """The heat map in words: of each stage, what it unlocked how often at its end."""
    told = []
    for stage in stages:
        last = sorted(((rates[-1], name) for name, rates in stage.rates.items()), key=lambda pair: (-pair[0], pair[1]))
        often = ", ".join(f"{words(name)} {percent(rate)}" for rate, name in last[:5] if rate) or "nothing"
        told.append(f"{stage.stage}, {stage.worlds}, after {short_count(stage.seen[-1])} {stage.unit}: {often}")
    return "Episodes that unlocked each achievement while it trained. " + "; ".join(told)


def _units(stages: Sequence[Unlocks]) -> str:
    """What the numbers below the columns count: 'tokens trained; rl: episodes played'."""
    named: dict[str, list[str]] = {}
    for stage in stages:
        named.setdefault(stage.unit, []).append(stage.stage)
    (first, _), *others = named.items()
    return "; ".join([first, *(f"{', '.join(of)}: {unit}" for unit, of in others)])


def _shade(rate: float) -> float:
    """How dense a cell is; what is rare can still be seen."""
    return 0.05 if rate <= 0 else 0.12 + 0.83 * rate


def short_count(seen: float) -> str:
    """'640', '80 k', '1.2 M': how many, short enough for a tick."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if seen >= size:
            return f"{seen / size:.3g}{unit}"
    return f"{seen:.0f}"


def trend(series: Mapping[str, Sequence[Night]]) -> str:
    """Achievements per episode, night after night: a line with its 95 % intervals per model, and its baseline.

    A diamond is the first night of another model under the same name, a ring a night that is shown to be worse than
    the baseline. Nights lie side by side, however long between them.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    at = {night.id: night.at for nights in series.values() for night in nights}
    place = {id: x for x, id in enumerate(sorted(at, key=lambda id: (at[id], id)))}
    height = 2.2 + 0.14 * math.ceil((len(series) + 3) / 2)

    def draw(ax: Axes) -> None:
        dashed: Any = {"linewidth": 0.9, "linestyle": (0, (4, 3))}
        ring: Any = {"color": _INK, "marker": "o", "markersize": 9, "markerfacecolor": "none", "linewidth": 0}
        diamond: Any = {"marker": "D", "markersize": 5.5, "linewidth": 0}
        lines: list[Line2D] = []
        for shade, (name, nights) in zip(cycle(_PARTS), series.items(), strict=False):
            x, y = [place[n.id] for n in nights], [n.evaluation.mean_achievements for n in nights]
            low, high = ([n.evaluation.ci95[side] for n in nights] for side in (0, 1))
            if len(nights) > 1:
                ax.fill_between(x, low, high, color=shade, alpha=0.15, linewidth=0)
            else:
                ax.vlines(x, low, high, color=shade, linewidth=1.1)
            ax.step(x, [n.baseline_mean for n in nights], where="mid", color=shade, **dashed)
            lines += ax.plot(x, y, color=shade, linewidth=1.6, marker="o", markersize=3, label=_short(name, 20))
            new = [i for i in range(1, len(nights)) if nights[i].evaluation.model != nights[i - 1].evaluation.model]
            worse = [i for i, n in enumerate(nights) if n.regressed]
            ax.plot([x[i] for i in new], [y[i] for i in new], color=shade, **diamond)
            ax.plot([x[i] for i in worse], [y[i] for i in worse], **ring)
        lines.append(Line2D([], [], color=_INK, label="baseline", **dashed))
        lines.append(Line2D([], [], color=_INK, label="new model", **diamond))
        lines.append(Line2D([], [], label="worse than baseline", **ring))
        above: Any = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
        ax.legend(handles=lines, ncols=2, fontsize=7, frameon=False, labelcolor=_INK, **above)
        ids = list(place)
        ticks = range(len(ids) - 1, -1, -max(1, math.ceil(len(ids) / 5)))
        ax.set_xticks(list(ticks), _nights_in_words([at[ids[i]] for i in ticks]))
        ax.set_xlim(-0.5, max(len(ids) - 0.5, 0.5))
        ax.set_ylabel("achievements per episode")
        ax.yaxis.set_major_locator(MaxNLocator(5))
        _grid(ax, "y")

    return _svg(draw, _WIDTH, height)


def _nights_in_words(times: Sequence[float]) -> list[str]:
    """'21 Nov', with the hour below where a day comes twice. UTC."""
    moments = [datetime.fromtimestamp(t, UTC) for t in times]
    days = [f"{m.day} {m:%b}" for m in moments]
    return days if len(set(days)) == len(days) else [f"{d}\n{m:%H:%M}" for d, m in zip(days, moments, strict=True)]


def describe_trend(series: Mapping[str, Sequence[Night]]) -> str:
    """The plot of nights in words."""
    return "Achievements per episode, night after night: " + "; ".join(
        f"{name}, nights {len(nights)}, last {number(nights[-1].evaluation.mean_achievements, 2)}, "
        f"baseline {number(nights[-1].baseline_mean, 2)}"
        for name, nights in series.items()
        if nights
    )


def _finish_curves(ax: Axes, title: str, over: str, *, legend: dict[str, Any] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_title(_short(title, 48))
    ax.set_xlabel(over)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.xaxis.set_major_formatter(lambda seen, position: short_count(seen))
    ax.margins(x=0.02)
    if over != STEPS:
        ax.set_xlim(left=0)  # a job has seen nothing before it begins
    if legend is not None:
        ax.legend(fontsize=7, frameon=False, labelcolor=_INK, **legend)
    _grid(ax, "y")


def count_bars(counts: Mapping[str, int], unit: str) -> str:
    """How many of something each name has, most first."""
    rows = most_first(counts)

    def draw(ax: Axes) -> None:
        y = range(len(rows))
        ax.barh(y, [n for _, n in rows], height=0.66, color=COLOURS["sft"], alpha=0.85)
        ax.set_yticks(list(y), [_short(words(name), 24) for name, _ in rows])
        ax.invert_yaxis()
        ax.set_xlim(0, max([n for _, n in rows] + [1]) * 1.02)
        ax.set_xlabel(unit)
        _whole_numbers(ax, "x")
        _grid(ax, "x")

    return _svg(draw, _WIDTH, 0.7 + 0.17 * max(2, len(rows)))


def range_bars(values: Mapping[str, tuple[float, float, float]], unit: str) -> str:
    """Name -> (mean, lowest, highest), in the order given."""

    def draw(ax: Axes) -> None:
        y = range(len(values))
        means = [mean for mean, _, _ in values.values()]
        spread = [[mean - low for mean, low, _ in values.values()], [high - mean for mean, _, high in values.values()]]
        ax.barh(y, means, height=0.62, color=COLOURS["sft"], alpha=0.85)
        ax.errorbar(means, y, xerr=spread, fmt="none", ecolor=_INK, elinewidth=1.1, capsize=2.5)
        ax.axvline(0, color=_INK, linewidth=0.8, alpha=0.6)
        ax.set_yticks(list(y), [_short(name, 24) for name in values])
        ax.invert_yaxis()
        ax.set_xlabel(unit)
        _grid(ax, "x")

    return _svg(draw, _WIDTH, 0.75 + 0.34 * len(values))


def scatter(values: Mapping[str, tuple[float, tuple[float, float, float]]], x_unit: str, y_unit: str) -> str:
    """Name -> (x, (mean, lowest, highest)): a named dot for each, with its interval."""

    def draw(ax: Axes) -> None:
        for shade, (name, (x, (mean, low, high))) in zip(cycle(_PARTS), values.items(), strict=False):
            ax.vlines(x, low, high, color=shade, linewidth=1.6, alpha=0.55)
            ax.plot(x, mean, "o", color=shade, markersize=5)
            ax.annotate(_short(name, 24), (x, mean), xytext=(5, 4), textcoords="offset points", fontsize=7)
        ax.margins(x=0.18)
        ax.set_xlim(left=0)
        ax.set_xlabel(x_unit)
        ax.set_ylabel(y_unit)
        _grid(ax, "y")

    return _svg(draw, _WIDTH, 2.6)


def histogram(values: Histogram, counted: str) -> str:
    """A distribution; `counted` says what the bars count."""
    from matplotlib.ticker import MaxNLocator

    def draw(ax: Axes) -> None:
        widths = [b - a for a, b in zip(values.edges, values.edges[1:], strict=False)]
        if all_whole(values):  # a bar over its number
            ax.bar(values.edges[:-1], values.counts, width=0.86, color=COLOURS["teacher"], alpha=0.85)
        else:
            ax.bar(
                values.edges[:-1], values.counts, width=widths, align="edge", color=COLOURS["teacher"], alpha=0.85,
                edgecolor="none",
            )  # fmt: skip
        ax.set_xlabel(values.unit)
        ax.set_ylabel(counted)
        ax.margins(x=0.02)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=all_whole(values)))
        ax.xaxis.set_major_formatter(_axis_number)
        _whole_numbers(ax, "y")
        _grid(ax, "y")

    return _svg(draw, _WIDTH, 1.9)


def all_whole(values: Histogram) -> bool:
    """Whether each bin holds one whole number."""
    pairs = zip(values.edges, values.edges[1:], strict=False)
    return all(a.is_integer() and b - a == 1 for a, b in pairs)


def most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """(name, count), the most frequent first, ties by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _axis_number(x: float, position: float = 0) -> str:
    return f"{x:,.6g}".replace("-", MINUS)


def _whole_numbers(ax: Axes, axis: Any) -> None:
    """Ticks of an axis that counts: whole, with thousands separated."""
    from matplotlib.ticker import MaxNLocator

    chosen = ax.xaxis if axis == "x" else ax.yaxis
    chosen.set_major_locator(MaxNLocator(5, integer=True))
    chosen.set_major_formatter("{x:,.0f}")


def _running_mean(ys: Sequence[float], window: int) -> list[float]:
    half = window // 2
    cut = [ys[max(0, i - half) : i + half + 1] for i in range(len(ys))]
    return [sum(part) / len(part) for part in cut]


def _short(name: str, most: int = 16) -> str:
    """A name that leaves room for the plot; control characters, which XML cannot hold, are dropped."""
    name = "".join(c for c in name if c.isprintable())
    return name if len(name) <= most else name[: most - 1] + "…"


def _grid(ax: Axes, axis: Any) -> None:
    ax.grid(axis=axis, color=_INK, alpha=0.12, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines["left" if axis == "x" else "bottom"].set_alpha(0.4)
    ax.spines["bottom" if axis == "x" else "left"].set_visible(False)


# --------------------------------------------------------------------------- SVG


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot before it has a format."""

    draw: Callable[[Axes], None]
    width: float
    """Inches, as the height."""
    height: float

    def svg(self) -> str:
        """A standalone SVG whose ink is `currentColor`."""
        return _svg(self.draw, self.width, self.height)

    def png(self) -> bytes:
        """On white, 200 dots per inch."""
        return _saved(self.draw, self.width, self.height, format="png", dpi=200, facecolor="white")


def sheet(drawings: Sequence[Drawing], columns: int = 2) -> bytes:
    """Several plots as one PNG on white: each goes to the column that is shortest so far."""
    from PIL import Image

    pictures = [Image.open(io.BytesIO(drawing.png())).convert("RGB") for drawing in drawings]
    columns = max(1, min(columns, len(pictures)))
    width, margin = max(picture.width for picture in pictures), 30
    tall = [margin] * columns
    places = []
    for picture in pictures:
        column = tall.index(min(tall))
        places.append((margin + column * (width + margin), tall[column]))
        tall[column] += picture.height + margin
    page = Image.new("RGB", (margin + columns * (width + margin), max(tall)), "white")
    for picture, place in zip(pictures, places, strict=True):
        page.paste(picture, place)
    out = io.BytesIO()
    page.save(out, format="png", optimize=True)
    return out.getvalue()


def _saved(draw: Callable[[Axes], None], width: float, height: float, **options: Any) -> bytes:
    """Draw on fresh axes of width × height inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _LOCK, matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        out = io.BytesIO()
        figure.savefig(out, **options)
    return out.getvalue()


def _svg(draw: Callable[[Axes], None], width: float, height: float) -> str:
    """Draw on fresh axes; a standalone SVG whose ink is `currentColor`."""
    text = _saved(draw, width, height, format="svg", metadata={"Date": None}).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", _FONT, text)
    return text.replace(_INK, "currentColor").replace("xlink:href", "href")


def inline(svg: str, name: str, alt: str) -> str:
    """An SVG for the inside of an HTML page: no namespaces, ids of its own, fluid width, described for readers.

    `alt` must be plain text of ours or be escaped by the caller.
    """
    svg = re.sub(r"\sxmlns(:\w+)?=\"[^\"]*\"", "", svg)
    svg = re.sub(r"\bid=\"([^\"]+)\"", rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"\bhref=\"#([^\"]+)\"", rf'href="#{name}-\1"', svg)
    svg = re.sub(r"<svg width=\"[^\"]*\" height=\"[^\"]*\"", "<svg", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)


def data_uri(svg: str) -> str:
    """An SVG for `![](…)` in markdown: dark ink on a white card."""
    svg = re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" rx="4" fill="#ffffff"/>', svg, count=1)
    svg = svg.replace("currentColor", "#24292f")
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def describe_bars(evaluations: Sequence[Evaluation]) -> str:
    """The bar chart in words."""
    rows = in_label_order(evaluations)
    return "Mean achievements per episode: " + "; ".join(
        f"{e.label} {number(e.mean_achievements)} {interval(e.ci95)}" for e in rows
    )


def describe_success(evaluations: Sequence[Evaluation]) -> str:
    """The dots in words: of each player, what it unlocks most often."""
    told = []
    for e in in_label_order(evaluations):
        best = sorted(e.success_rates.items(), key=lambda item: (-item[1], item[0]))[:3]
        told.append(f"{e.label} " + ", ".join(f"{words(name)} {percent(rate)}" for name, rate in best))
    return "Success rates, the highest of each player: " + "; ".join(told)


def describe_survival(evaluations: Sequence[Evaluation]) -> str:
    """The survival curves in words."""
    return "Share of episodes in which the player lives to the end: " + "; ".join(
        f"{e.label} {percent(e.survival()[-1][1])}" for e in in_label_order(evaluations)
    )


def describe_deltas(comparisons: Sequence[Comparison]) -> str:
    """The plot of differences in words."""
    return "Paired differences: " + "; ".join(
        f"{c.b} minus {c.a} {signed(c.delta)} {interval(c.ci95, sign=True)}" for c in comparisons
    )


def describe_curves(title: str, series: Mapping[str, Points]) -> str:
    """A plot of metrics in words."""
    last = {name: finite(points) for name, points in series.items()}
    return f"{title}: " + "; ".join(f"{name}, {len(p)} points, last {p[-1][1]:.4g}" for name, p in last.items() if p)


def describe_counts(counts: Mapping[str, int], unit: str) -> str:
    """A bar chart of counts in words."""
    return f"{unit}: " + ("; ".join(f"{words(name)} {n:,}" for name, n in most_first(counts)) or "none")


def describe_ranges(values: Mapping[str, tuple[float, float, float]], unit: str) -> str:
    """A plot of ranges in words."""
    told = (f"{name} {number(mean)} {interval((low, high))}" for name, (mean, low, high) in values.items())
    return f"{unit}: " + "; ".join(told)


def describe_histogram(values: Histogram, counted: str) -> str:
    """A distribution in words: its range and its fullest bin."""
    if not values.counts:
        return f"{counted} by {values.unit}: none"
    fullest = max(range(len(values.counts)), key=lambda i: values.counts[i])
    return (
        f"{counted} by {values.unit}: {sum(values.counts):,} between {bin_name(values, 0, whole_range=True)}, "
        f"most ({values.counts[fullest]:,}) at {bin_name(values, fullest)}"
    )


def bin_name(values: Histogram, index: int, *, whole_range: bool = False) -> str:
    """'7' or '120 to 130': what a bin holds; with `whole_range`, what all of them hold."""
    whole = all_whole(values)
    low = values.edges[0 if whole_range else index]
    high = values.edges[-1] if whole_range else values.edges[index + 1]
    if whole:
        high -= 1
    return _axis_number(low) if low == high else f"{_axis_number(low)} to {_axis_number(high)}"
