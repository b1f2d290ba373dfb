"""A promotion and a rollback as markdown, for Prefect's artifacts."""

from __future__ import annotations

from collections.abc import Sequence

from crafter_pipeline.config.base import FEWEST_SEEDS, GATE_SEEDS_START, HELD_OUT_SEEDS_START
from crafter_pipeline.evaluation import Comparison, Evaluation
from crafter_pipeline.promotion import Evidence, Promotion, Rollback, difference
from crafter_pipeline.report import plots, text
from crafter_pipeline.report.markdown import image, safe, table

RULE = (
    f"**The rule.** Both play the same worlds of the gate (seeds {GATE_SEEDS_START:,} to {HELD_OUT_SEEDS_START - 1:,}, "
    f"at least {FEWEST_SEEDS} of them), one episode each. The name moves only if the whole 95 % interval of the paired "
    "difference lies above zero. The interval is not corrected for how many candidates have tried these worlds."
)


def promotion_markdown(promotion: Promotion, evaluations: Sequence[Evaluation]) -> str:
    """The verdict, the difference, both players and the rule."""
    parts = [f"## {'A new champion' if promotion.promoted else 'No new champion'}", f"**{safe(promotion.why)}**"]
    if promotion.comparison is not None:
        parts.append(_plot(promotion.comparison))
    parts.append(table(("player", "model", "achievements per episode", "95 % interval", "seeds"), _rows(evaluations)))
    if evaluations:
        parts.append(image(plots.describe_bars(evaluations), plots.achievement_bars(evaluations)))
    if promotion.evidence is not None:
        parts.append(_terms(promotion.evidence))
    return "\n\n".join([*parts, RULE]) + "\n"


def rollback_markdown(rollback: Rollback) -> str:
    """Who is back, in whose place, and by which evidence it once became champion."""
    rows = [
        ("again", f"`{safe(rollback.champion)}`"),
        ("until now", f"`{safe(rollback.champion_before)}`"),
    ]
    parts = [
        "## The champion was rolled back",
        f"Reason: {safe(rollback.reason) or 'none given'}.",
        table(("champion", "model"), rows),
    ]
    if rollback.evidence is not None:
        comparison = rollback.evidence.comparison()
        against = f"`{safe(rollback.evidence.against)}`"
        parts += [
            f"It once became champion by {difference(comparison)} ({against}).",
            _plot(comparison),
            _terms(rollback.evidence),
        ]
    return "\n\n".join(parts) + "\n"


def _plot(comparison: Comparison) -> str:
    return image(plots.describe_deltas([comparison]), plots.delta_plot([comparison]))


def _rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    return [
        (
            safe(e.label),
            f"`{safe(e.model)}`",
            text.number(e.mean_achievements, 2),
            text.interval(e.ci95, 2),
            str(len(e.seeds)),
        )
        for e in evaluations
    ]


def _terms(evidence: Evidence) -> str:
    wins = sum(a > b for a, b in zip(evidence.candidate_counts, evidence.against_counts, strict=True))
    losses = sum(a < b for a, b in zip(evidence.candidate_counts, evidence.against_counts, strict=True))
    even = len(evidence.seeds) - wins - losses
    return (
        f"Environment {safe(evidence.environment)}, up to {evidence.max_env_steps} env steps, "
        f"{text.seeds(evidence.seeds)}: the candidate unlocked more in {wins} worlds, as many in {even}, fewer in "
        f"{losses}."
    )
