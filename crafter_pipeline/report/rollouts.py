"""How a round of collecting went, for Prefect: all worlds in numbers, and a row per world."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.dataset.manifest import Histogram
from crafter_pipeline.report import plots, text
from crafter_pipeline.report.markdown import image, safe, table

if TYPE_CHECKING:
    from crafter_pipeline.episodes import Collected

MOST_ROWS = 2_000
"""Worlds of the table: its page loads them all at once."""
MOST_FAILED = 50
"""Worlds that were not played and are named with the reason."""
MOST_LETTERS = 300
"""Of a reason."""
_LONG_WORD = re.compile(r"(\S{30})(?=\S)")


def collected_markdown(collected: Collected, results: Sequence[EpisodeResult]) -> str:
    """Who played, how well, what was unlocked how often, and which worlds were not played and why."""
    c, turns = collected, sum(r.turns for r in results)
    parts = [
        f"## {safe(c.model)}: {c.episodes:,} episodes, {text.number(c.mean_achievements)} achievements each",
        table(
            ("metric", "value"),
            [
                ("episodes", f"{c.episodes:,} of {c.episodes + len(c.failed):,} worlds"),
                ("achievements per episode", text.number(c.mean_achievements, 2)),
                ("reward (mean episode return)", text.number(c.mean_reward, 2)),
                ("env steps", f"{c.env_steps:,}, {text.number(c.env_steps / max(c.episodes, 1))} per episode"),
                ("unreadable answers", f"{sum(r.parse_failures for r in results):,} of {turns:,} turns"),
                ("ended by", _ends(results)),
            ],
        ),
    ]
    if results:
        unlocked = Counter(len(set(r.achievements)) for r in results)
        values = whole_numbers("achievements", unlocked)
        counts = Counter(name for r in results for name in set(r.achievements))
        parts.append(image(plots.describe_histogram(values, "episodes"), plots.histogram(values, "episodes")))
        if counts:
            unit = "episodes that unlocked it"
            parts.append(image(plots.describe_counts(counts, unit), plots.count_bars(counts, unit)))
    if c.failed:
        parts += [f"### {len(c.failed):,} worlds were not played", failed_table(c.failed)]
    return "\n\n".join(parts) + "\n"


def failed_table(failed: Mapping[int, str]) -> str:
    """Seed and reason, the first MOST_FAILED of them."""
    rows = [(str(seed), safe(_short(failed[seed]))) for seed in sorted(failed)[:MOST_FAILED]]
    more = len(failed) - len(rows)
    return table(("seed", "why"), rows) + (f"\n\n… and {more:,} more." if more else "")


def world_rows(results: Sequence[EpisodeResult]) -> list[dict[str, str | int | float]]:
    """A row per world that was played, by seed; the first MOST_ROWS of them."""
    return [
        {
            "seed": r.seed,
            "achievements": len(set(r.achievements)),
            "reward": round(r.total_reward, 3),
            "env steps": r.env_steps,
            "turns": r.turns,
            "ended by": text.words(r.stop_reason),
            "unlocked": ", ".join(text.words(name) for name in dict.fromkeys(r.achievements)),
        }
        for r in sorted(results, key=lambda r: r.seed)[:MOST_ROWS]
    ]


def whole_numbers(unit: str, counts: Mapping[int, int]) -> Histogram:
    """How often each whole number came, gaps included. Not empty."""
    low, high = min(counts), max(counts)
    return Histogram(
        unit, tuple(float(n) for n in range(low, high + 2)), tuple(counts.get(n, 0) for n in range(low, high + 1))
    )


def _ends(results: Sequence[EpisodeResult]) -> str:
    ends = Counter(text.words(r.stop_reason) for r in results).most_common()
    return ", ".join(f"{safe(reason)} {n:,}" for reason, n in ends) or "–"


def _short(reason: str) -> str:
    """What a cell holds: not too much, and words that a narrow page can break."""
    kept = reason if len(reason) <= MOST_LETTERS else reason[: MOST_LETTERS - 1] + "…"
    return _LONG_WORD.sub("\\1\u200b", kept)
