"""Scores of one model and paired comparisons of two, as pure functions.

Two metrics, never mixed up:

* *achievements*: mean number of distinct achievements unlocked per episode (Crafter has 22);
* *Crafter score* (0–100): the geometric mean over achievements of their success rates, from Hafner,
  "Benchmarking the Spectrum of Agent Capabilities" (2021, arXiv:2109.06780), section 3.3.

Intervals are 95 % percentile bootstraps over seeds. Two models that played the same seeds are compared seed by
seed: worlds differ a lot in difficulty, and pairing takes that difference out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.errors import DataError

LABELS = ("random", "teacher", "mlp", "sft", "dagger", "rl")
"""The order of players in every table, plot and pair; labels of one's own come after these."""

MIN_PAIRS = 6
"""Fewest shared seeds that can settle anything: below six, even a sign test that wins on every seed stays above
p = 0.05 (two-sided, 2 · 2⁻⁵ = 0.0625), while a percentile interval of so few values is far too narrow."""

_CELLS = 4_000_000
"""Bound on the numbers held at once by a bootstrap (32 MB)."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model on a set of worlds, one episode per seed."""

    label: str
    """random, teacher, mlp, sft, dagger, rl, or a name of one's own."""
    model: str
    seeds: tuple[int, ...]
    """Distinct, ascending."""
    max_steps: int
    """Limit of an episode, in env steps."""
    counts: tuple[int, ...]
    """Achievements unlocked per seed, aligned with `seeds`."""
    mean_achievements: float
    ci95: tuple[float, float]
    """Of mean_achievements: (low, high)."""
    crafter_score: float
    """0–100."""
    success_rates: dict[str, float]
    """Share of episodes (0–1) that unlocked each achievement."""
    mean_env_steps: float
    parse_failures: int
    """Turns whose answer could not be read, over all episodes."""
    stop_reasons: dict[str, int] = field(default_factory=dict)
    """Episodes per reason, most frequent first."""
    turns: int = 0
    """Model calls over all episodes; parse_failures are some of these."""
    mean_reward: float = 0.0
    """Mean episode return, as the task app counted it (shaping included)."""

    @property
    def has_crafter_score(self) -> bool:
        """Whether the score says more than the mean: of one achievement it does not."""
        return len(self.success_rates) > 1

    def to_json(self) -> dict[str, Any]:
        """The shape of report.json's `evaluations[]`, with our further keys beside it."""
        return {
            "label": self.label,
            "model": self.model,
            "seeds": list(self.seeds),
            "max_steps": self.max_steps,
            "mean_achievements": self.mean_achievements,
            "ci95": list(self.ci95),
            "crafter_score": self.crafter_score,
            "success_rates": dict(self.success_rates),
            "counts": list(self.counts),
            "mean_env_steps": self.mean_env_steps,
            "mean_reward": self.mean_reward,
            "turns": self.turns,
            "parse_failures": self.parse_failures,
            "stop_reasons": dict(self.stop_reasons),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Read what `to_json` wrote. DataError names what is missing or does not fit."""
        try:
            made = cls(
                label=str(data["label"]),
                model=str(data["model"]),
                seeds=tuple(int(s) for s in data["seeds"]),
                max_steps=int(data["max_steps"]),
                counts=tuple(int(c) for c in data["counts"]),
                mean_achievements=float(data["mean_achievements"]),
                ci95=_pair(data["ci95"]),
                crafter_score=float(data["crafter_score"]),
                success_rates={str(k): float(v) for k, v in data["success_rates"].items()},
                mean_env_steps=float(data.get("mean_env_steps", 0.0)),
                parse_failures=int(data.get("parse_failures", 0)),
                stop_reasons={str(k): int(v) for k, v in data.get("stop_reasons", {}).items()},
                turns=int(data.get("turns", 0)),
                mean_reward=float(data.get("mean_reward", 0.0)),
            )
        except KeyError as e:
            raise DataError(f"Not an evaluation of ours: {e} is missing. Evaluate the model again.") from None
        except (AttributeError, TypeError, ValueError) as e:
            raise DataError(f"Not an evaluation of ours: {e}. Evaluate the model again.") from None
        if len(made.seeds) != len(made.counts):
            raise DataError(f"Evaluation {made.label!r} has {len(made.seeds)} seeds but {len(made.counts)} counts.")
        return made


@dataclass(frozen=True, slots=True)
class Comparison:
    """Achievements of b minus those of a, on the seeds both played."""

    a: str
    """Label of the one compared against."""
    b: str
    delta: float
    """Mean over `seeds` of (achievements of b − achievements of a)."""
    ci95: tuple[float, float]
    """Paired bootstrap interval of delta: (low, high)."""
    seeds: tuple[int, ...]
    """The worlds both played, ascending."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.ci95[0] > 0 or self.ci95[1] < 0

    @property
    def clear(self) -> bool:
        """Whether a difference is shown: the interval excludes zero, and there are enough pairs to mean it."""
        return self.excludes_zero and len(self.seeds) >= MIN_PAIRS

    def to_json(self) -> dict[str, Any]:
        """The shape of report.json's `comparisons[]`, with the seeds beside it."""
        return {
            "a": self.a,
            "b": self.b,
            "delta": self.delta,
            "ci95": list(self.ci95),
            "metric": "achievements",
            "seeds": list(self.seeds),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """Read what `to_json` wrote."""
        try:
            return cls(
                a=str(data["a"]),
                b=str(data["b"]),
                delta=float(data["delta"]),
                ci95=_pair(data["ci95"]),
                seeds=tuple(int(s) for s in data.get("seeds", ())),
            )
        except (KeyError, TypeError, ValueError) as e:
            raise DataError(f"Not a comparison of ours: {e!r}.") from None


# --------------------------------------------------------------------------- scores


def evaluate(
    label: str,
    model: str,
    results: Sequence[EpisodeResult],
    max_steps: int,
    achievement_names: Sequence[str],
    bootstrap: int = 10_000,
    seed: int = 0,
) -> Evaluation:
    """Score one model's episodes, one per seed.

    `achievement_names` are all that the environment knows; the Crafter score is taken over them. An episode with a
    name outside this list is refused: counting it, or dropping it, would silently change the metric. An empty list
    counts whatever was unlocked, and the Crafter score is 0. `seed` is the bootstrap's, not a world's.
    """
    if not results:
        raise DataError(f"Evaluation {label!r} of {model} has no finished episode: nothing to score.")
    ordered = sorted(results, key=lambda r: r.seed)
    seeds = tuple(r.seed for r in ordered)
    twice = [s for s, n in Counter(seeds).items() if n > 1]
    if twice:
        raise DataError(f"Evaluation {label!r} has seed {twice[0]} {seeds.count(twice[0])} times: one episode a seed.")
    counts = tuple(len(set(r.achievements)) for r in ordered)
    mean = float(np.mean(counts))
    return Evaluation(
        label=label,
        model=model,
        seeds=seeds,
        max_steps=max_steps,
        counts=counts,
        mean_achievements=mean,
        ci95=mean_interval(counts, bootstrap, seed),
        crafter_score=crafter_score(success_rates(ordered, achievement_names)) if achievement_names else 0.0,
        success_rates=success_rates(ordered, achievement_names or sorted({a for r in ordered for a in r.achievements})),
        mean_env_steps=float(np.mean([r.env_steps for r in ordered])),
        parse_failures=sum(r.parse_failures for r in ordered),
        stop_reasons=dict(Counter(str(r.stop_reason) for r in ordered).most_common()),
        turns=sum(r.turns for r in ordered),
        mean_reward=float(np.mean([r.total_reward for r in ordered])),
    )


def success_rates(results: Sequence[EpisodeResult], achievement_names: Sequence[str]) -> dict[str, float]:
    """Share of episodes (0–1) that unlocked each achievement, in the order of `achievement_names`."""
    if not results:
        raise DataError("No episodes: success rates need at least one.")
    unlocked = Counter(name for r in results for name in set(r.achievements))
    unknown = sorted(set(unlocked) - set(achievement_names))
    if unknown:
        raise DataError(f"The episodes unlocked {unknown[0]!r}, which this environment does not list.")
    return {name: unlocked[name] / len(results) for name in achievement_names}


def crafter_score(rates: Mapping[str, float]) -> float:
    """exp(mean(ln(1 + 100 r))) − 1 over success rates r (0–1): 0 for none, 100 for all.

    Hafner 2021, equation 1, with rates in percent there. Rare achievements weigh as much as common ones: going from
    0 to 1 % moves it about as much as going from 50 to 100 %.
    """
    if not rates:
        raise DataError("The Crafter score needs the success rate of at least one achievement.")
    r = np.fromiter(rates.values(), dtype=np.float64)
    if not ((r >= 0) & (r <= 1)).all():
        raise DataError("Success rates lie between 0 and 1; were these percent?")
    return float(np.expm1(np.log1p(100.0 * r).mean()))


def mean_interval(values: Sequence[float], bootstrap: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval (low, high) of the mean. Equal inputs give equal intervals.

    A resample of n values is drawn as how often each *distinct* value occurs in it (one multinomial draw): the same
    distribution as drawing n indices, and 10,000 resamples of 5,000 achievement counts then take milliseconds.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise DataError("No values: an interval needs at least one.")
    if not np.isfinite(x).all():
        raise DataError("An interval needs finite values.")
    if bootstrap < 1:
        raise DataError("An interval needs at least one resample.")
    distinct_K, times_K = np.unique(x, return_counts=True)
    if distinct_K.size == 1:
        return float(distinct_K[0]), float(distinct_K[0])
    rng = np.random.default_rng(seed)
    rows = max(1, _CELLS // distinct_K.size)
    means = [
        rng.multinomial(x.size, times_K / x.size, size=min(rows, bootstrap - done)) @ distinct_K / x.size
        for done in range(0, bootstrap, rows)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


# --------------------------------------------------------------------------- comparisons


def compare(a: Evaluation, b: Evaluation, bootstrap: int = 10_000, seed: int = 0) -> Comparison:
    """Achievements of b minus those of a, paired by seed, over the seeds both played."""
    if a.max_steps != b.max_steps:
        raise DataError(
            f"{a.label} played up to {a.max_steps} env steps and {b.label} up to {b.max_steps}: "
            "not comparable. Evaluate both with the same max_env_steps."
        )
    count_a, count_b = dict(zip(a.seeds, a.counts, strict=True)), dict(zip(b.seeds, b.counts, strict=True))
    seeds = tuple(sorted(count_a.keys() & count_b.keys()))
    if not seeds:
        raise DataError(f"{a.label} and {b.label} share no seed: nothing to pair. Evaluate both on the same seeds.")
    deltas = [count_b[s] - count_a[s] for s in seeds]
    return Comparison(a.label, b.label, float(np.mean(deltas)), mean_interval(deltas, bootstrap, seed), seeds)


def compare_all(evaluations: Sequence[Evaluation], bootstrap: int = 10_000, seed: int = 0) -> list[Comparison]:
    """Every pair once, a before b in the order of `LABELS`."""
    ordered = in_label_order(evaluations)
    twice = [label for label, n in Counter(e.label for e in ordered).items() if n > 1]
    if twice:
        raise DataError(f"Two evaluations are labelled {twice[0]!r}: a pair would not say which.")
    return [compare(a, b, bootstrap, seed) for a, b in combinations(ordered, 2)]


def in_label_order(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Sorted by `LABELS`; others after these, as given."""
    rank = {label: i for i, label in enumerate(LABELS)}
    return sorted(evaluations, key=lambda e: rank.get(e.label, len(rank)))


def _pair(value: Sequence[float]) -> tuple[float, float]:
    low, high = value
    return float(low), float(high)
