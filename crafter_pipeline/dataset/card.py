"""The data card: a dataset's manifest for people, as Markdown and as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from crafter_pipeline.dataset.manifest import DatasetManifest, Histogram
from crafter_pipeline.report import plots, text
from crafter_pipeline.report.dataset import DatasetView
from crafter_pipeline.report.markdown import image, safe, table
from crafter_pipeline.report.page import fact, render

LISTED = 20
"""Rows left out that a card names; the manifest names more."""
BAR = 24
"""Characters of the longest bar of a distribution that is written out."""


def card_html(manifest: DatasetManifest) -> str:
    """The card as one HTML page that needs no network."""
    return render("card.html.j2", d=DatasetView(manifest), shown=LISTED)


def card_markdown(manifest: DatasetManifest, *, plot: bool = False) -> str:
    """The card as Markdown.

    Args:
        plot: For a page: distributions as pictures inside it, and none of the columns of paths and digests, which are
            wider than a phone. Else to be read as text: distributions are rows of a table.
    """
    d = DatasetView(manifest)
    return "\n\n".join(_parts(d, plot)) + "\n"


def funnel_rows(manifest: DatasetManifest) -> list[dict[str, str]]:
    """What each rule removed, a row per rule: rule, of, removed, left."""
    return [
        {
            "rule": step.name,
            "of": step.of,
            "removed": fact(step.removed) if step.is_rule else "",
            "left": fact(step.left),
        }
        for step in DatasetView(manifest).funnel
    ]


def _parts(d: DatasetView, plot: bool) -> Iterator[str]:
    m = d.manifest
    facts = [(name, safe(value)) for name, value in d.facts if not (plot and value in (m.path, m.sha256))]
    split_columns, source_columns = (5, 2) if plot else (None, None)
    yield f"# {safe(d.name)}"
    yield f"{d.headline}."
    for warning in m.warnings:
        yield f"> **Warning.** {safe(warning)}"
    yield table(("fact", "value"), facts)
    yield "## What the filter kept"
    yield table(
        ("rule", "of", "removed", "left"),
        [tuple(safe(cell) for cell in row.values()) for row in funnel_rows(m)],
    )
    if d.filter:
        yield "Rules and options that are not the default:"
        yield table(("key", "value"), [(safe(key), safe(value)) for key, value in d.filter])
    else:
        yield "No rule was asked for: everything valid is kept."
    yield "## Splits"
    yield "Split by world seed: no world has rows in two splits."
    yield table(
        ("split", "rows", "rollouts", "world seeds", "tokens", "bytes", "file", "sha256")[:split_columns],
        [
            (
                safe(name),
                *map(fact, (s.rows, s.rollouts, s.seeds, s.tokens, s.bytes)),
                safe(Path(s.path).name),
                s.sha256,
            )[:split_columns]
            for name, s in m.splits.items()
        ],
    )
    yield "## Achievements"
    if d.achievements:
        yield table(
            ("achievement", "rollouts that unlocked it", "share", "rows on the way to it", "rows that unlocked it"),
            [
                (safe(text.words(name)), fact(rollouts), text.percent(share), fact(goals), fact(unlocks))
                for name, rollouts, share, goals, unlocks in d.achievements
            ],
        )
    else:
        yield "No rollout unlocked anything."
    yield "## Distributions"
    if plot:
        yield from (f"{p.title}\n\n{image(p.alt, p.svg)}" for p in d.plots)
    else:
        yield from _distribution(m.rewards, "rollouts")
        yield from _distribution(m.lengths, "rows")
    yield "## Sources"
    yield table(
        ("trace database", "rollouts", "bytes", "sha256")[:source_columns],
        [(safe(Path(s.path).name), fact(s.rollouts), fact(s.bytes), s.sha256)[:source_columns] for s in m.sources],
    )
    if m.skipped_count:
        yield f"## Stored rows that cannot be read: {m.skipped_count:,}"
        yield table(
            ("rollout", "turn", "reason", "trace database"),
            [
                (safe(row.session_id), fact(row.turn), safe(row.reason), safe(Path(row.source).name))
                for row in m.skipped[:LISTED]
            ],
        )
        yield from _rest(m.skipped_count)
    if m.beyond_context:
        yield f"## Rows beyond the context: {d.beyond_context:,}"
        yield table(
            ("rollout", "turn", "tokens"),
            [(safe(row.session_id), fact(row.turn), fact(row.tokens)) for row in m.beyond_context[:LISTED]],
        )
        yield from _rest(d.beyond_context)


def _distribution(values: Histogram, counted: str) -> Sequence[str]:
    if not values.counts:
        return ()
    most = max(values.counts)
    rows = [
        (plots.bin_name(values, i), fact(n), "█" * round(BAR * n / most) or ("▏" if n else ""))
        for i, n in enumerate(values.counts)
    ]
    return (table((safe(values.unit), counted, ""), rows),)


def _rest(count: int) -> Iterator[str]:
    if count > LISTED:
        yield f"… and {count - LISTED:,} more: the manifest lists up to a thousand."
