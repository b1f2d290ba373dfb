"""The nightly evaluations as markdown: a page per model, and one of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from crafter_pipeline.nightly import Night, NightlyReport
from crafter_pipeline.report import plots, text
from crafter_pipeline.report.markdown import finding, image, safe, table

SHOWN_NIGHTS = 30
"""The last ones, in plots and tables."""

_HYPHEN = "\u2011"
"""Keeps a date in one line."""
_COLUMNS = ("achievements per episode", "against the baseline", "finding")


def night_markdown(nights: Sequence[Night], plot: bool = True) -> str:
    """One model: tonight in a sentence, the trend, a row per night with the newest first. At least one night."""
    shown, tonight = nights[-SHOWN_NIGHTS:], nights[-1]
    changed = {n.id for before, n in zip(nights, nights[1:], strict=False) if _model(before) != _model(n)}
    rows = [
        (
            n.date.replace("-", _HYPHEN),
            *_scores(n),
            _seeds(n),
            f"{'**new** ' if n.id in changed else ''}`{safe(_model(n))}`",
        )
        for n in reversed(shown)
    ]
    return _page(
        f"## {safe(tonight.name)}: {_headline(tonight)}",
        safe(tonight.says),
        _plot({tonight.name: shown}) if plot else "",
        table(("night", *_COLUMNS, "seeds", "model"), rows),
        _footnote(len(nights)),
    )


def nightly_markdown(report: NightlyReport, histories: Mapping[str, Sequence[Night]], plot: bool = True) -> str:
    """All models of one night.

    Args:
        histories: Name -> its nights, the oldest first.
    """
    worse = len(report.regressed)
    found = (
        f"{worse} of {len(report.nights)} worse than the baseline" if worse else "no model is worse than its baseline"
    )
    rows = [(safe(n.name), *_scores(n), _seeds(n), f"`{safe(_model(n))}`") for n in report.nights]
    notes = [f"- {safe(name)} was passed over: {safe(why)}" for name, why in report.missing.items()]
    notes += [f"- **{safe(name)} could not be judged**: {safe(why)}" for name, why in report.failed.items()]
    series = {name: nights[-SHOWN_NIGHTS:] for name, nights in histories.items() if nights}
    return _page(
        f"## Night of {report.nights[0].date}: {found}",
        table(("name", *_COLUMNS, "seeds", "model"), rows),
        _plot(series) if plot else "",
        "\n".join(notes),
        _footnote(max(len(nights) for nights in histories.values())),
    )


def _headline(night: Night) -> str:
    if night.comparison is None:
        return "a new baseline"
    if not night.comparison.clear:
        return "no difference to its baseline is shown"
    return "worse than its baseline" if night.regressed else "better than its baseline"


def _scores(night: Night) -> tuple[str, str, str]:
    """The cells of `_COLUMNS`."""
    e, c = night.evaluation, night.comparison
    played = f"{text.number(e.mean_achievements, 2)} {text.interval(e.ci95, 2)}"
    if c is None:
        return played, "–", "baseline"
    return played, f"{text.signed(c.delta, 2)} {text.interval(c.ci95, 2, sign=True)}", finding(c)


def _seeds(night: Night) -> str:
    compared = night.comparison or night.evaluation
    return str(len(compared.seeds))


def _model(night: Night) -> str:
    return night.evaluation.model


def _plot(series: Mapping[str, Sequence[Night]]) -> str:
    return image(plots.describe_trend(series), plots.trend(series))


def _footnote(nights: int) -> str:
    shown = f" The last {SHOWN_NIGHTS} of {nights} nights are shown." if nights > SHOWN_NIGHTS else ""
    return (
        "Every night plays the same worlds anew. In brackets are 95 % intervals, of differences paired by seed."
        f"{shown} Dates are UTC."
    )


def _page(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
