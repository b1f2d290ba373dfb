"""Scores of one model and paired comparisons of two, as pure functions.

Metrics, never mixed up (docs/evaluation.md has their formulas):

* *achievements*: mean number of distinct achievements unlocked per episode (Crafter has 22);
* *Crafter score* (0–100): the geometric mean over achievements of their success rates, from Hafner,
  "Benchmarking the Spectrum of Agent Capabilities" (2021, arXiv:2109.06780), section 3.3;
* *reward*: mean episode return, as the task app counts it;
* *BALROG progress* (0–100): the achievements as a share of all there are.

Intervals are 95 % bootstraps over seeds, those of success rates Wilson's. Two models that played the same
seeds are compared seed by seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import fmean, median
from typing import Any

import numpy as np

from crafter_pipeline.config import Split, one_split, split_of
from crafter_pipeline.config.base import FEWEST_SEEDS
from crafter_pipeline.contracts import EpisodeResult, StopReason
from crafter_pipeline.errors import DataError
from crafter_pipeline.evaluation.statistics import (
    Floats,
    holm,
    interquartile_mean,
    mean_interval,
    paired,
    rates_interval,
    seeds_needed,
    wilson,
)

LABELS = ("random", "teacher", "mlp", "sft", "dagger", "rl")
"""The order of players in every table, plot and pair; labels of one's own come after these."""

SMALL_DIFFERENCE = 0.3
"""For which a comparison tells how many seeds would show it, in achievements."""

EASY_TO_COME_BY = "wake_up"
"""The achievement that whoever sleeps at random gets: means are told without it, too."""


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
    crafter_score_ci95: tuple[float, float] | None = None
    """Of crafter_score: (low, high). This and all below: None or empty where an earlier version stored it."""
    unlocked: tuple[int, ...] = ()
    """What each seed's episode unlocked, aligned with `seeds`: a bit per achievement, the lowest for the first of
    `success_rates`."""
    env_steps: tuple[int, ...] = ()
    """Length of each seed's episode, aligned with `seeds`."""
    died: tuple[int, ...] = ()
    """Seeds whose episode ended by death."""
    first_unlock: dict[str, float] = field(default_factory=dict)
    """Achievement -> median env step of its first unlock, over the episodes that unlocked it."""
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    """Per episode; None: the task app did not tell."""

    @property
    def has_crafter_score(self) -> bool:
        """Whether the score says more than the mean: of one achievement it does not."""
        return len(self.success_rates) > 1

    @property
    def split(self) -> Split | None:
        """Whose worlds these are; None: of several, as earlier versions allowed."""
        found = {split_of(seed) for seed in self.seeds}
        return found.pop() if len(found) == 1 else None

    @property
    def balrog_progress(self) -> float | None:
        """Achievements as a share of all there are, 0–100; None where there is one alone."""
        return 100 * self.mean_achievements / len(self.success_rates) if self.has_crafter_score else None

    @property
    def without_wake_up(self) -> float | None:
        """Mean achievements, `wake_up` not counted; None where the environment does not have it."""
        rate = self.success_rates.get(EASY_TO_COME_BY)
        return None if rate is None else self.mean_achievements - rate

    @property
    def interquartile_mean(self) -> float:
        """Of the achievements per episode."""
        return interquartile_mean(self.counts)

    @property
    def success_intervals(self) -> dict[str, tuple[float, float]]:
        """Achievement -> 95 % Wilson interval of its success rate, 0–1."""
        n = len(self.seeds)
        return {name: wilson(round(rate * n), n) for name, rate in self.success_rates.items()}

    @property
    def invalid_share(self) -> float | None:
        """Answers that could not be read, per turn; None: there was no turn."""
        return self.parse_failures / self.turns if self.turns else None

    @property
    def death_share(self) -> float | None:
        """Episodes that ended by death, 0–1."""
        return len(self.died) / len(self.seeds) if self.env_steps else None

    @property
    def median_env_steps(self) -> float | None:
        """Median length of an episode."""
        return float(median(self.env_steps)) if self.env_steps else None

    @property
    def scores(self) -> dict[int, float]:
        """Seed -> achievements."""
        return {seed: float(count) for seed, count in zip(self.seeds, self.counts, strict=True)}

    @property
    def unlocked_SA(self) -> Floats | None:
        """Seeds × achievements, 1 where unlocked."""
        if not self.unlocked:
            return None
        return unlocked_table(self.unlocked, len(self.success_rates))

    def survival(self) -> list[tuple[int, float]]:
        """(env step, share of episodes not dead by then), a pair for every step at which somebody died, (0, 1) first.

        Episodes that ended otherwise count as long as they lasted (Kaplan and Meier 1958).
        """
        dead, points, alive = set(self.died), [(0, 1.0)], 1.0
        lengths = dict(zip(self.seeds, self.env_steps, strict=True)) if self.env_steps else {}
        for step in sorted({lengths[seed] for seed in dead & lengths.keys()}):
            at_risk = sum(length >= step for length in lengths.values())
            alive *= 1 - sum(lengths[seed] == step for seed in dead) / at_risk
            points.append((step, alive))
        return points

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
            "split": self.split,
            "crafter_score_ci95": None if self.crafter_score_ci95 is None else list(self.crafter_score_ci95),
            "balrog_progress": self.balrog_progress,
            "mean_without_wake_up": self.without_wake_up,
            "interquartile_mean": self.interquartile_mean,
            "success_ci95": {name: list(ci95) for name, ci95 in self.success_intervals.items()},
            "first_unlock": dict(self.first_unlock),
            "median_env_steps": self.median_env_steps,
            "death_share": self.death_share,
            "invalid_share": self.invalid_share,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "unlocked": list(self.unlocked),
            "env_steps": list(self.env_steps),
            "died": list(self.died),
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
                crafter_score_ci95=_pair(told) if (told := data.get("crafter_score_ci95")) is not None else None,
                unlocked=tuple(int(bits) for bits in data.get("unlocked", ())),
                env_steps=tuple(int(n) for n in data.get("env_steps", ())),
                died=tuple(int(s) for s in data.get("died", ())),
                first_unlock={str(k): float(v) for k, v in data.get("first_unlock", {}).items()},
                prompt_tokens=_number(data.get("prompt_tokens")),
                completion_tokens=_number(data.get("completion_tokens")),
            )
        except KeyError as e:
            raise DataError(f"Not an evaluation of ours: {e} is missing. Evaluate the model again.") from None
        except (AttributeError, TypeError, ValueError) as e:
            raise DataError(f"Not an evaluation of ours: {e}. Evaluate the model again.") from None
        for name, values in (("counts", made.counts), ("unlocked", made.unlocked), ("env_steps", made.env_steps)):
            if len(values) != len(made.seeds) and (values or name == "counts"):
                raise DataError(f"Evaluation {made.label!r} has {len(made.seeds)} seeds but {len(values)} {name}.")
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
    p_value: float | None = None
    """Two-sided, of the sign-flip test; None where an earlier version stored it, as of the two below."""
    p_holm: float | None = None
    """The same, corrected for the number of pairs that were compared beside it."""
    sd: float | None = None
    """Standard deviation of a seed's difference."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.ci95[0] > 0 or self.ci95[1] < 0

    @property
    def clear(self) -> bool:
        """Whether a difference is shown: the interval excludes zero, and there are enough pairs to mean it."""
        return self.excludes_zero and len(self.seeds) >= FEWEST_SEEDS

    def seeds_to_see(self, difference: float, power: float = 0.8) -> int | None:
        """Shared seeds that show a true difference of this size with this probability; None: not known."""
        return None if self.sd is None else max(FEWEST_SEEDS, seeds_needed(self.sd, difference, power))

    def to_json(self) -> dict[str, Any]:
        """The shape of report.json's `comparisons[]`, with our further keys beside it."""
        return {
            "a": self.a,
            "b": self.b,
            "delta": self.delta,
            "ci95": list(self.ci95),
            "metric": "achievements",
            "seeds": list(self.seeds),
            "p_value": self.p_value,
            "p_holm": self.p_holm,
            "sd": self.sd,
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
                p_value=_number(data.get("p_value")),
                p_holm=_number(data.get("p_holm")),
                sd=_number(data.get("sd")),
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
    try:
        one_split(f"Evaluation {label!r}", seeds)
    except ValueError as e:
        raise DataError(f"{e}.") from None
    counts = tuple(len(set(r.achievements)) for r in ordered)
    rates = success_rates(ordered, achievement_names or sorted({a for r in ordered for a in r.achievements}))
    unlocked = _bits(ordered, tuple(rates))
    score_ci95 = None
    if achievement_names:
        low, high = rates_interval(unlocked_table(unlocked, len(rates)), scores_of_rates, bootstrap, seed)
        score_ci95 = low, min(100.0, high)
    return Evaluation(
        label=label,
        model=model,
        seeds=seeds,
        max_steps=max_steps,
        counts=counts,
        mean_achievements=float(np.mean(counts)),
        ci95=mean_interval(counts, bootstrap, seed),
        crafter_score=crafter_score(rates) if achievement_names else 0.0,
        success_rates=rates,
        mean_env_steps=float(np.mean([r.env_steps for r in ordered])),
        parse_failures=sum(r.parse_failures for r in ordered),
        stop_reasons=dict(Counter(str(r.stop_reason) for r in ordered).most_common()),
        turns=sum(r.turns for r in ordered),
        mean_reward=float(np.mean([r.total_reward for r in ordered])),
        crafter_score_ci95=score_ci95,
        unlocked=unlocked,
        env_steps=tuple(r.env_steps for r in ordered),
        died=tuple(r.seed for r in ordered if r.stop_reason == StopReason.DEATH),
        first_unlock=_first_unlock(ordered, tuple(rates)),
        prompt_tokens=mean_told([r.prompt_tokens for r in ordered]),
        completion_tokens=mean_told([r.completion_tokens for r in ordered]),
    )


def unlocked_table(unlocked: Sequence[int], achievements: int) -> Floats:
    """Seeds × achievements, 1 where unlocked, from the bits of `Evaluation.unlocked`."""
    table = [[bits >> place & 1 for place in range(achievements)] for bits in unlocked]
    return np.array(table, dtype=np.float64).reshape(len(unlocked), achievements)


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
    return float(scores_of_rates(r[None, :])[0])


def scores_of_rates(rates_BA: Floats) -> Floats:
    """The Crafter score of each row."""
    scores: Floats = np.expm1(np.log1p(100.0 * rates_BA).mean(axis=1))
    return scores


def _bits(results: Sequence[EpisodeResult], names: Sequence[str]) -> tuple[int, ...]:
    place = {name: 1 << i for i, name in enumerate(names)}
    return tuple(sum(place[name] for name in set(r.achievements)) for r in results)


def _first_unlock(results: Sequence[EpisodeResult], names: Sequence[str]) -> dict[str, float]:
    steps = {name: [r.unlocked_at[name] for r in results if name in r.unlocked_at] for name in names}
    return {name: float(median(at)) for name, at in steps.items() if at}


def mean_told(values: Iterable[float | None]) -> float | None:
    """Their mean; None where one of them is, or there are none."""
    asked = list(values)
    told = [value for value in asked if value is not None]
    return fmean(told) if told and len(told) == len(asked) else None


# --------------------------------------------------------------------------- comparisons


def compare(a: Evaluation, b: Evaluation, bootstrap: int = 10_000, seed: int = 0) -> Comparison:
    """Achievements of b minus those of a, paired by seed, over the seeds both played."""
    if a.max_steps != b.max_steps:
        raise DataError(
            f"{a.label} played up to {a.max_steps} env steps and {b.label} up to {b.max_steps}: "
            "not comparable. Evaluate both with the same max_env_steps."
        )
    if a.split != b.split:
        raise DataError(
            f"{a.label} played worlds of the split {a.split or 'several'} and {b.label} of {b.split or 'several'}: not "
            "comparable. Evaluate both on the same seeds."
        )
    if not set(a.seeds) & set(b.seeds):
        raise DataError(f"{a.label} and {b.label} share no seed: nothing to pair. Evaluate both on the same seeds.")
    found = paired(a.scores, b.scores, bootstrap, seed)
    return Comparison(a.label, b.label, found.delta, found.ci95, found.seeds, found.p_value, found.p_value, found.sd)


def compare_all(evaluations: Sequence[Evaluation], bootstrap: int = 10_000, seed: int = 0) -> list[Comparison]:
    """Every pair once, a before b in the order of `LABELS`."""
    ordered = in_label_order(evaluations)
    twice = [label for label, n in Counter(e.label for e in ordered).items() if n > 1]
    if twice:
        raise DataError(f"Two evaluations are labelled {twice[0]!r}: a pair would not say which.")
    return together([compare(a, b, bootstrap, seed) for a, b in combinations(ordered, 2)])


def together(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons, each with its p-value corrected for the number of them."""
    told = [c.p_value for c in comparisons if c.p_value is not None]
    corrected = iter(holm(told))
    return [c if c.p_value is None else replace(c, p_holm=next(corrected)) for c in comparisons]


def in_label_order(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Sorted by `LABELS`; others after these, as given."""
    rank = {label: i for i, label in enumerate(LABELS)}
    return sorted(evaluations, key=lambda e: rank.get(e.label, len(rank)))


def _pair(value: Sequence[float]) -> tuple[float, float]:
    low, high = value
    return float(low), float(high)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
