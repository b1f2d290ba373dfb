"""A dataset's manifest as every page shows it: facts, funnel, filter, plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from crafter_pipeline.config import FilterConfig
from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.report import plots, text
from crafter_pipeline.report.page import fact, figure
from crafter_pipeline.tables import flat

SHOWN_RANGES = 12
"""Ranges of seeds that are spelled out."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the funnel."""

    name: str
    """The rule; or, where a new unit begins or the funnel ends, what is counted."""
    of: str
    """rollouts, turns or rows."""
    removed: int
    left: int
    share: float
    """What is left of the most that its unit ever had, 0 to 1."""
    is_rule: bool


@dataclass(frozen=True)
class Plot:
    """A picture of the dataset, with the same in words."""

    name: str
    title: str
    alt: str
    svg: str

    @property
    def inline(self) -> Markup:
        """For the inside of an HTML page."""
        return figure(self.name, self.svg, self.alt)


@dataclass(frozen=True)
class DatasetView:
    """What the templates read of a manifest."""

    manifest: DatasetManifest

    @property
    def name(self) -> str:
        return Path(self.manifest.path).name

    @property
    def headline(self) -> str:
        """The dataset in a sentence."""
        m = self.manifest
        rows = sum(split.rows for split in m.splits.values())
        examples = f"{rows:,} examples from {m.rollouts:,} rollouts"
        tokens = "" if m.tokens is None else f"{m.tokens:,} tokens"
        if len(m.splits) > 1:
            return f"{examples}, {m.rows:,} of them{f' ({tokens})' if tokens else ''} for training"
        return f"{examples}, {tokens}" if tokens else examples

    @property
    def facts(self) -> list[tuple[str, str]]:
        """(name, value) of what is one line long."""
        m = self.manifest
        counted = [
            ("models", m.models),
            ("providers", m.providers),
            ("environments", m.environments),
            ("labels", m.labels),
        ]
        return [
            ("path", m.path),
            ("form", m.form),
            ("rows (training)", fact(m.rows)),
            ("tokens (training)", "not counted" if m.tokens is None else f"{m.tokens:,} of {m.tokenizer}"),
            ("bytes (training)", fact(m.bytes)),
            ("sha256 (training)", m.sha256),
            *((name, _counts(values)) for name, values in counted if values),
            *([("cost of the labels", _usage(m.label_usage))] if m.label_usage else []),
            *([("joined of", _counts({Path(part.path).name: part.rows for part in m.parts}))] if m.parts else []),
            ("mean episode return", text.number(m.mean_reward, 3)),
            ("world seeds", _seeds(m.seeds)),
            ("rows equal to an earlier one", fact(m.duplicates)),
            ("answers that could not be read", fact(m.parse_failures)),
        ]

    @cached_property
    def filter(self) -> list[tuple[str, str]]:
        """(key, value) of every rule and option that is not its default."""
        defaults = flat(FilterConfig().model_dump(mode="json"))
        asked = flat(self.manifest.filter)
        return [(key, _value(value)) for key, value in asked.items() if defaults.get(key) != value]

    @cached_property
    def funnel(self) -> list[Step]:
        """What each rule left, from the rollouts read to the rows written."""
        m = self.manifest
        rules = {unit: list(group) for unit, group in groupby(m.rules, lambda rule: rule.of)}
        written = sum(split.rows for split in m.splits.values())
        of_rows = rules.get("rows", [])
        made = m.turns if m.form != "conversation" else of_rows[0].left + of_rows[0].removed if of_rows else written
        steps = []
        for unit, most, begin in (
            ("rollouts", m.rollouts_read, "rollouts read"),
            ("turns", m.turns, "turns of these rollouts"),
            ("rows", made, ""),
        ):
            if begin:
                steps.append(Step(begin, unit, 0, most, 1.0, False))
            steps += [Step(r.rule, unit, r.removed, r.left, r.left / max(most, 1), True) for r in rules.get(unit, [])]
        return [*steps, Step("rows written", "rows", 0, written, written / max(made, 1), False)]

    @property
    def beyond_context(self) -> int:
        """Rows that were longer than the context; the manifest lists the first of them."""
        rules = [rule.removed for rule in self.manifest.rules if rule.rule == "export.context"]
        return max([*rules, len(self.manifest.beyond_context)])

    @cached_property
    def achievements(self) -> list[tuple[str, int, float, int, int]]:
        """(name, rollouts that unlocked it, their share, rows on the way to it, rows that unlocked it)."""
        m = self.manifest
        names = {*m.achievements, *m.unlocks, *(goal for goal in m.goals if goal != "none")}
        rows = [
            (name, m.achievements.get(name, 0), m.achievements.get(name, 0) / max(m.rollouts, 1))
            + (m.goals.get(name, 0), m.unlocks.get(name, 0))
            for name in names
        ]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    @cached_property
    def plots(self) -> list[Plot]:
        """Histograms per achievement, of the returns, of the lengths; those that have something to show."""
        return list(self._plots())

    def _plots(self) -> Iterator[Plot]:
        m = self.manifest
        for name, title, counts in (
            ("goals", "Rows on the way to each achievement", m.goals),
            ("unlocks", "Rows that unlocked it", m.unlocks),
        ):
            if counts:
                yield Plot(name, title, plots.describe_counts(counts, title), plots.count_bars(counts, "rows"))
        for name, title, values, counted in (
            ("rewards", "Episode returns", m.rewards, "rollouts"),
            ("lengths", f"Lengths in {m.lengths.unit}", m.lengths, "rows"),
        ):
            if values.counts:
                alt = plots.describe_histogram(values, counted)
                yield Plot(name, title, alt, plots.histogram(values, counted))


def _value(value: Any) -> str:
    return ", ".join(map(fact, value)) if isinstance(value, (list, tuple)) else fact(value)


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({n:,})" for name, n in plots.most_first(values))


def _usage(usage: Mapping[str, int]) -> str:
    return (
        f"{usage['answers']:,} answers, {usage['prompt_tokens']:,} tokens read, {usage['completion_tokens']:,} written"
    )


def _seeds(seeds: Mapping[str, Any]) -> str:
    ranges = seeds.get("ranges") or []
    if not ranges:
        return "unknown"
    named = ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in ranges[:SHOWN_RANGES])
    return f"{seeds['count']:,}: {named}{' …' if len(ranges) > SHOWN_RANGES else ''}"
