"""What was found about an environment before a run trains on it, for Prefect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crafter_pipeline.report import plots, text
from crafter_pipeline.report.markdown import image, safe, table

if TYPE_CHECKING:
    from crafter_pipeline.validation import ValidationReport

_SIGNS = {"passed": "✓ passed", "failed": "✗ **failed**", "skipped": "– skipped"}


def validation_markdown(report: ValidationReport) -> str:
    """Verdict, a row per check, and how the players did."""
    r = report
    parts = [
        f"### {safe(r.environment)} at {safe(r.url)}: {'not fit for training' if r.failed else 'fit for training'}",
        safe(r.verdict),
        table(
            ("check", "state", "found", "remedy"),
            [(safe(c.name), _SIGNS[c.state], safe(c.says), safe(c.remedy) or "–") for c in r.checks],
        ),
    ]
    if r.players:
        returns = {p.player: (p.mean_return, p.min_return, p.max_return) for p in r.players}
        unit = "episode return (mean, lowest to highest)"
        parts += [
            f"Tried on {text.seeds(r.seeds)}, up to {r.max_env_steps} env steps each, in {text.duration(r.seconds)}.",
            image(plots.describe_ranges(returns, unit), plots.range_bars(returns, unit)),
        ]
    return "\n\n".join(parts) + "\n"
