"""Stored evaluations as the rows of one table: training runs of one recipe are pooled, recipes compared.

A stored evaluation is what `eval` or a pipeline's run left behind (a folder with `report.json`), one player's file of
a run (`evaluations/<label>.json`), or any JSON file with a list `evaluations` of these.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from crafter_pipeline.errors import DataError, suggest
from crafter_pipeline.evaluation.scores import (
    LABELS,
    Comparison,
    Evaluation,
    mean_told,
    scores_of_rates,
    together,
)
from crafter_pipeline.evaluation.statistics import (
    RESAMPLES,
    difference_of_recipes,
    interquartile_mean,
    nested_interval,
    nested_rates_interval,
    pooled_mean,
    shared_seeds,
    wilson,
)

SCORE_RESAMPLES = 4_000
"""Of the interval of a Crafter score: each one is as many scores as there are runs."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An evaluation, and the group that it was put into."""

    group: str
    """Empty: none."""
    evaluation: Evaluation

    @property
    def name(self) -> str:
        """Of its row."""
        return f"{self.group} {self.evaluation.label}".strip()

    def to_json(self) -> dict[str, Any]:
        """As `read_stored` reads it."""
        return {"group": self.group, **self.evaluation.to_json()}


@dataclass(frozen=True)
class Row:
    """A player of a table: a recipe, by one or more training runs."""

    name: str
    runs: tuple[Evaluation, ...]
    """Of different models; all with the same limit."""
    bootstrap: int = RESAMPLES
    """Resamples of the interval of the mean."""

    @property
    def max_steps(self) -> int:
        """Limit of an episode, in env steps."""
        return self.runs[0].max_steps

    @property
    def seeds(self) -> tuple[int, ...]:
        """Worlds that any run played, ascending."""
        return tuple(sorted({seed for run in self.runs for seed in run.seeds}))

    @cached_property
    def scores(self) -> list[dict[int, float]]:
        """Of each run {seed: achievements}."""
        return [run.scores for run in self.runs]

    @cached_property
    def mean_achievements(self) -> float:
        """Over every episode."""
        return pooled_mean(self.scores)

    @cached_property
    def ci95(self) -> tuple[float, float]:
        """Of mean_achievements, over runs and worlds."""
        return nested_interval(self.scores, self.bootstrap)

    @property
    def interquartile_mean(self) -> float:
        """Of the achievements per episode."""
        return interquartile_mean([count for run in self.runs for count in run.counts])

    @property
    def without_wake_up(self) -> float | None:
        """Mean achievements, `wake_up` not counted, over the runs."""
        return mean_told(run.without_wake_up for run in self.runs)

    @property
    def crafter_score(self) -> float | None:
        """Mean of the runs' scores; None where there is one achievement alone."""
        return mean_told(run.crafter_score if run.has_crafter_score else None for run in self.runs)

    @cached_property
    def crafter_score_ci95(self) -> tuple[float, float] | None:
        """Of crafter_score, over runs and worlds; None where an earlier version stored a run."""
        if self.crafter_score is None or self._unlocked is None:
            return None
        low, high = nested_rates_interval(self._unlocked, scores_of_rates, SCORE_RESAMPLES)
        return low, min(100.0, high)

    @cached_property
    def _unlocked(self) -> list[dict[int, list[float]]] | None:
        """Of each run {seed: whether each achievement was unlocked}; None where an earlier version stored a run."""
        tables = [run.unlocked_SA for run in self.runs]
        if len({tuple(run.success_rates) for run in self.runs}) > 1 or any(table is None for table in tables):
            return None
        return [
            dict(zip(run.seeds, table.tolist(), strict=True))
            for run, table in zip(self.runs, tables, strict=True)
            if table is not None
        ]

    @property
    def success_rates(self) -> dict[str, tuple[int, int]]:
        """Achievement -> (episodes that unlocked it, episodes), over all runs."""
        found: dict[str, tuple[int, int]] = {}
        for run in self.runs:
            for name, rate in run.success_rates.items():
                unlocked, of = found.get(name, (0, 0))
                found[name] = (unlocked + round(rate * len(run.seeds)), of + len(run.seeds))
        return found

    def success_ci95(self, name: str) -> tuple[float, float] | None:
        """Of an achievement's success rate, 0–1: Wilson's of one run, over runs and worlds of several; None where an
        earlier version stored one of these."""
        if len(self.runs) == 1:
            return wilson(*self.success_rates[name])
        if self._unlocked is None:
            return None
        column = list(self.runs[0].success_rates).index(name)
        low, high = nested_interval([{s: bits[column] for s, bits in run.items()} for run in self._unlocked])
        return max(0.0, low), min(1.0, high)

    def mean_of(self, fact: str) -> float | None:
        """Mean over the runs of a number of `Evaluation`; None where one of them does not tell."""
        return mean_told(getattr(run, fact) for run in self.runs)

    def to_json(self) -> dict[str, Any]:
        """The row's numbers."""
        return {
            "name": self.name,
            "models": [run.model for run in self.runs],
            "runs": len(self.runs),
            "seeds": len(self.seeds),
            "split": self.runs[0].split,
            "max_steps": self.max_steps,
            "mean_achievements": self.mean_achievements,
            "ci95": list(self.ci95),
            "interquartile_mean": self.interquartile_mean,
            "mean_without_wake_up": self.without_wake_up,
            "crafter_score": self.crafter_score,
            "crafter_score_ci95": None if self.crafter_score_ci95 is None else list(self.crafter_score_ci95),
            "balrog_progress": self.mean_of("balrog_progress"),
            "mean_reward": self.mean_of("mean_reward"),
            "mean_env_steps": self.mean_of("mean_env_steps"),
            "death_share": self.mean_of("death_share"),
            "invalid_share": self.mean_of("invalid_share"),
            "prompt_tokens": self.mean_of("prompt_tokens"),
            "completion_tokens": self.mean_of("completion_tokens"),
        }


def read_stored(path: Path, group: str = "") -> list[Stored]:
    """The evaluations in a folder or a file. DataError says what is missing.

    Args:
        group: Put them into this one, instead of the one that the file may name.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"There is no {file}. Name a folder that `crafter-pipeline eval` or `run` wrote, or a JSON file of theirs."
        ) from None
    except (OSError, ValueError) as e:
        raise DataError(f"{file}: cannot be read as JSON: {e}") from e
    listed = data.get("evaluations", [data]) if isinstance(data, Mapping) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(one, Mapping) for one in listed):
        raise DataError(f"{file}: there is no evaluation in it.")
    try:
        return [Stored(group or str(one.get("group", "")), Evaluation.from_json(one)) for one in listed]
    except DataError as e:
        raise DataError(f"{file}: {e}") from None


def pool(stored: Iterable[Stored]) -> dict[int, list[Row]]:
    """{limit in env steps: rows}, limits ascending, rows in the order of groups as given and of labels.

    Evaluations of one name and limit are one row; each of its models is a training run. What one model played more
    than once counts once. DataError when they played worlds of different splits, or of different environments.
    """
    given = list(stored)
    _refuse_mixture(given)
    groups = list(dict.fromkeys(one.group for one in given))
    rank = {label: i for i, label in enumerate(LABELS)}
    ordered = sorted(given, key=lambda s: (groups.index(s.group), rank.get(s.evaluation.label, len(rank))))
    found: dict[int, dict[str, dict[str, Evaluation]]] = {}
    for one in ordered:
        runs = found.setdefault(one.evaluation.max_steps, {}).setdefault(one.name, {})
        runs[one.evaluation.model] = _longer(runs.get(one.evaluation.model), one.evaluation)
    return {
        steps: [Row(name, tuple(runs.values())) for name, runs in rows.items()] for steps, rows in sorted(found.items())
    }


def compare_rows(rows: Sequence[Row], against: str | None = None) -> list[Comparison]:
    """Every pair once, in the order given, or every row with the one that is named; p-values corrected together."""
    pairs = [
        (b, a) if b.name == against else (a, b)
        for a, b in combinations(rows, 2)
        if against is None or against in (a.name, b.name)
    ]
    found = []
    for a, b in pairs:
        if shared_seeds([*a.scores, *b.scores]):
            d = difference_of_recipes(a.scores, b.scores)
            found.append(Comparison(a.name, b.name, d.delta, d.ci95, d.seeds, d.p_value, d.p_value, d.sd))
    return together(found)


def require_row(name: str, rows: Iterable[Row]) -> None:
    """DataError, with the nearest one, where none of the rows is called so."""
    known = list(dict.fromkeys(row.name for row in rows))
    if name not in known:
        raise DataError(f"No row is called {name!r}; {suggest(name, known)}")


def _refuse_mixture(stored: Sequence[Stored]) -> None:
    splits = Counter(one.evaluation.split for one in stored)
    if len(splits) > 1:
        named = " and ".join(sorted(split or "several" for split in splits))
        raise DataError(f"These evaluations played worlds of the splits {named}. One table has one split.")
    names = {frozenset(one.evaluation.success_rates) for one in stored if one.evaluation.has_crafter_score}
    alone = any(not one.evaluation.has_crafter_score for one in stored)
    if names and alone:
        raise DataError("These evaluations are of different environments. One table has one environment.")


def _longer(known: Evaluation | None, other: Evaluation) -> Evaluation:
    """Of two evaluations of one model the one on more seeds, the first of equal ones."""
    return other if known is None or len(other.seeds) > len(known.seeds) else known
