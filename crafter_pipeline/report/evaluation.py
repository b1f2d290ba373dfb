"""What `eval` leaves behind: report.json for scripts, report.html for people, seeds.csv for tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from crafter_pipeline.clients.chat import shown_url
from crafter_pipeline.evaluation import Comparison, Evaluation, compare, evaluate, in_label_order
from crafter_pipeline.evaluation.players import Player
from crafter_pipeline.evaluation.playing import Cause, causes
from crafter_pipeline.evaluation.rows import EpisodeRow, FailedSeed, rows_csv
from crafter_pipeline.evaluation.scores import SMALL_DIFFERENCE, together
from crafter_pipeline.evaluation.summary import aggregate, judge_summary, tokens
from crafter_pipeline.files import write_whole
from crafter_pipeline.report import plots
from crafter_pipeline.report.page import figure, plain, render
from crafter_pipeline.report.report import success_rows

_SECRET = re.compile(r"key|secret|token$|authorization|headers|password|credential", re.IGNORECASE)


@dataclass(slots=True)
class EvaluationReport:
    """An evaluation that was played, wholly or in part."""

    name: str
    """Of the recipe, or of the models."""
    environment: str
    created_at: float
    """Unix seconds."""
    players: list[Player]
    seeds: list[int]
    """Worlds that were asked for."""
    rows: list[EpisodeRow]
    failed: list[FailedSeed]
    evaluations: list[Evaluation]
    """Of players that finished an episode."""
    comparisons: list[Comparison]
    """Every pair that shares a world."""
    judges: list[str] = field(default_factory=list)
    judge_failures: dict[str, str] = field(default_factory=dict)
    """Judge -> its first failure."""
    not_applied: dict[str, str] = field(default_factory=dict)
    """Dotted field of the request -> why the task app made nothing of it."""
    untraced: int = 0
    """Episodes whose trace was asked for and did not come."""
    trace_db: Path | None = None
    suite: str | None = None
    """Name of the suite that was played."""
    split: str | None = None
    """Of the task set, as the environment was told."""
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """succeeded, partial or failed."""
        if not self.rows:
            return "failed"
        return "partial" if self.failed or self.interrupted else "succeeded"

    @property
    def seeds_hints(self) -> dict[str, int]:
        """{pair: seeds that show a difference of `SMALL_DIFFERENCE`}, pairs as `b − a`."""
        hints = {f"{c.b} − {c.a}": c.seeds_to_see(SMALL_DIFFERENCE) for c in self.comparisons}
        return {pair: seeds for pair, seeds in hints.items() if seeds is not None}

    @property
    def causes(self) -> list[Cause]:
        """Why seeds failed, by player and reason."""
        return causes(self.failed)

    def of(self, label: str) -> list[EpisodeRow]:
        """A player's rows."""
        return [row for row in self.rows if row.label == label]

    def aggregate(self) -> dict[str, dict[str, Any]]:
        """{label: `summary.aggregate`}."""
        return {p.label: aggregate(self.of(p.label), len(self.seeds)) for p in self.players}

    def judged(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{label: `summary.judge_summary`} of players that finished an episode."""
        return {e.label: judge_summary(self.of(e.label), self.judges) for e in self.evaluations}

    def tokens(self) -> dict[str, dict[str, int | None]]:
        """{label: `summary.tokens`}."""
        return {e.label: tokens(self.of(e.label)) for e in self.evaluations}

    def to_json(self) -> dict[str, Any]:
        """The shape of report.json."""
        rules = self.players[0].rules
        return {
            "name": self.name,
            "status": self.status,
            "environment": self.environment,
            "suite": self.suite,
            "split": self.split,
            "created_at": datetime.fromtimestamp(self.created_at, UTC).isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1),
            "max_turns": rules.turns,
            "env_config": masked(rules.env_config),
            "players": [
                {
                    "label": p.label,
                    "model": p.model,
                    "inference_url": None if p.inference_url is None else shown_url(p.inference_url),
                    "policy": masked(p.policy),
                }
                for p in self.players
            ],
            "seeds": list(self.seeds),
            "evaluations": [e.to_json() for e in self.evaluations],
            "comparisons": [
                c.to_json() | {f"seeds_to_see_{SMALL_DIFFERENCE}": c.seeds_to_see(SMALL_DIFFERENCE)}
                for c in self.comparisons
            ],
            "aggregate": self.aggregate(),
            "judges": self.judged() if self.judges else {},
            "judge_failures": dict(self.judge_failures),
            "tokens": self.tokens(),
            "rows": [_row(row) for row in self.rows],
            "failed": [one.to_json() for one in self.failed],
            "not_applied": dict(self.not_applied),
            "trace_db": None if self.trace_db is None else str(self.trace_db),
            "untraced": self.untraced,
        }


def score(
    players: Sequence[Player], rows: Sequence[EpisodeRow], achievements: Sequence[str], bootstrap: int = 10_000
) -> tuple[list[Evaluation], list[Comparison]]:
    """Each player that finished an episode, in the order of labels, and every pair of them that shares a world.

    Args:
        achievements: All that the environment knows; empty where it is not known here.
    """
    names: list[str] = list(achievements)
    if not names or any(name not in names for row in rows for name in row.achievements):
        names = sorted({name for row in rows for name in row.achievements})  # a task app with milestones of its own
    found = []
    for player in players:
        results = [row.result for row in rows if row.label == player.label]
        if results:
            found.append(evaluate(player.label, player.model, results, player.rules.max_env_steps, names, bootstrap))
    ordered = in_label_order(found)
    pairs = [compare(a, b, bootstrap) for a, b in combinations(ordered, 2) if set(a.seeds) & set(b.seeds)]
    return ordered, together(pairs)


def write_evaluation(report: EvaluationReport, folder: Path) -> dict[str, Path]:
    """Write seeds.csv, report.html and report.json into the folder; each appears whole or not at all.

    {file name: path}. DataError when they cannot be written.
    """
    documents = {
        "seeds.csv": rows_csv(report.rows, report.failed, report.judges),
        "report.html": render_evaluation(report),
        "report.json": json.dumps(plain(report.to_json()), indent=1, allow_nan=False) + "\n",
    }
    return {name: write_whole(folder / name, text) for name, text in documents.items()}


def render_evaluation(report: EvaluationReport) -> str:
    """The page."""
    evaluations, aggregates = report.evaluations, report.aggregate()
    several = len(evaluations) > 0
    return render(
        "evaluation.html.j2",
        report=report,
        when=datetime.fromtimestamp(report.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        evaluations=evaluations,
        bars=figure("bars", plots.achievement_bars(evaluations), plots.describe_bars(evaluations)) if several else None,
        dots=figure("dots", plots.success_dots(evaluations), plots.describe_success(evaluations))
        if several and any(e.success_rates for e in evaluations)
        else None,
        deltas=figure("deltas", plots.delta_plot(report.comparisons), plots.describe_deltas(report.comparisons))
        if report.comparisons
        else None,
        alive=figure("alive", plots.survival(evaluations), plots.describe_survival(evaluations))
        if any(e.died for e in evaluations)
        else None,
        heat=success_cells(evaluations),
        first_unlocks=first_unlock_rows(evaluations),
        small=SMALL_DIFFERENCE,
        aggregates=aggregates,
        tokens=report.tokens(),
        judged=report.judged(),
        settings=_settings(report),
    )


def success_cells(
    evaluations: Sequence[Evaluation],
) -> list[tuple[str, list[tuple[float, tuple[float, float]] | None]]]:
    """(achievement, (rate, its Wilson interval) per evaluation or None), the most unlocked first."""
    intervals = [e.success_intervals for e in evaluations]
    return [
        (name, [None if rate is None else (rate, told[name]) for rate, told in zip(rates, intervals, strict=True)])
        for name, rates in success_rows(evaluations)
    ]


def first_unlock_rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[float | None]]]:
    """(achievement, median env step of its first unlock per evaluation or None), the earliest first."""
    names = {name for e in evaluations for name in e.first_unlock}
    rows = [(name, [e.first_unlock.get(name) for e in evaluations]) for name in names]
    return sorted(rows, key=lambda row: (min(step for step in row[1] if step is not None), row[0]))


def masked(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of settings without what may be a secret, by its key."""
    shown: dict[str, Any] = {}
    for key, value in table.items():
        if _SECRET.search(key):
            shown[key] = "(set)"
        else:
            shown[key] = masked(value) if isinstance(value, Mapping) else value
    return shown


def _row(row: EpisodeRow) -> dict[str, Any]:
    told = row.to_json()
    told.pop("kept")
    return {key: value for key, value in told.items() if value not in (None, {})}


def _settings(report: EvaluationReport) -> dict[str, Any]:
    rules = report.players[0].rules
    told: dict[str, Any] = {"environment": report.environment, "turns at most": rules.turns}
    told |= {f"env_config.{k}": v for k, v in masked(rules.env_config).items()}
    policies = [masked(p.policy) for p in report.players]
    for player, policy in zip(report.players, policies, strict=True):
        where = "" if all(p == policies[0] for p in policies) else f"{player.label}: "
        told |= {f"{where}{k}": v for k, v in policy.items()}
    if report.trace_db is not None:
        told["traces"] = str(report.trace_db)
    return told
