"""Intervals, tests and sample sizes, as pure functions.

Every interval is a 95 % one, and equal inputs give equal intervals: the random draws begin from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from crafter_pipeline.errors import DataError

RESAMPLES = 10_000
_CELLS = 4_000_000
"""Bound on the numbers held at once by a bootstrap (32 MB)."""
_LEVEL = 0.05
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Paired:
    """Two players on the seeds both played: b minus a."""

    delta: float
    ci95: tuple[float, float]
    """Of delta: (low, high); a bootstrap over seeds, over several training runs see `difference_of_recipes`."""
    p_value: float
    """Two-sided, of the sign-flip test: how often differences of this size appear where the sign of each is chance.
    Over several training runs it is Student's, see `difference_of_recipes`."""
    sd: float | None
    """Standard deviation of a seed's difference, for `seeds_needed`; None over several training runs: more worlds do
    not narrow what the luck of a training widens."""
    seeds: tuple[int, ...]
    """Ascending."""


# --------------------------------------------------------------------------- one player


def mean_interval(values: Sequence[float], bootstrap: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval (low, high) of the mean.

    A resample of n values is drawn as how often each *distinct* value occurs in it (one multinomial draw): the same
    distribution as drawing n indices, and 10,000 resamples of 5,000 achievement counts then take milliseconds.
    """
    x = _finite(values)
    if bootstrap < 1:
        raise DataError("An interval needs at least one resample.")
    distinct_K, times_K = np.unique(x, return_counts=True)
    if distinct_K.size == 1:
        return float(distinct_K[0]), float(distinct_K[0])
    rng = np.random.default_rng(seed)
    means = [
        rng.multinomial(x.size, times_K / x.size, size=size) @ distinct_K / x.size
        for size in _chunks(bootstrap, distinct_K.size)
    ]
    return _quantiles(np.concatenate(means))


def rates_interval(
    unlocked_SA: npt.ArrayLike, of_rates: Callable[[Floats], Floats], bootstrap: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval over seeds of a score, at least 0, that is a function of success rates.

    The basic bootstrap on the scale log(1 + score): what a resample lies below the score, the interval reaches above
    it. A resample loses rare achievements and never finds new ones, so that the plain percentiles lie too low.

    Args:
        unlocked_SA: Whether each seed's episode (row) unlocked each achievement (column).
        of_rates: Rates (resamples × achievements, 0–1) -> a score for each resample.
    """
    x_SA = np.asarray(unlocked_SA, dtype=np.float64)
    if x_SA.ndim != 2 or not x_SA.size:
        raise DataError("No values: an interval needs at least one seed and one achievement.")
    n = x_SA.shape[0]
    distinct_KA, times_K = np.unique(x_SA, axis=0, return_counts=True)  # as in `mean_interval`
    rng = np.random.default_rng(seed)
    drawn = [
        of_rates(rng.multinomial(n, times_K / n, size=size) @ distinct_KA / n)
        for size in _chunks(bootstrap, times_K.size)
    ]
    return _reflected(float(of_rates(x_SA.mean(axis=0)[None, :])[0]), np.concatenate(drawn))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval (low, high; 0–1) of a share: right for few seeds and for shares near 0 and 1, where
    mean ± 1.96 standard errors leaves the range. Wilson 1927; without continuity correction.
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"{successes} of {n} is no share.")
    z, p = NormalDist().inv_cdf(1 - _LEVEL / 2), successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the middle half of the values: less moved by outliers than the mean, by less noise than the median.

    Agarwal et al. 2021 ("Deep RL at the Edge of the Statistical Precipice"). Where a quarter of n is no whole number,
    the values at the edges count in part.
    """
    x = np.sort(_finite(values))
    n = x.size
    below = n / 4
    # Each value owns the stretch [i, i+1) of the line from 0 to n; its weight is what of that lies in the middle half.
    at = np.arange(n, dtype=np.float64)
    weights = np.clip(np.minimum(at + 1, n - below) - np.maximum(at, below), 0.0, 1.0)
    return float(weights @ x / weights.sum())


# --------------------------------------------------------------------------- several training runs


def nested_interval(
    scores_by_run: Sequence[Mapping[int, float]], bootstrap: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval (low, high) of a recipe's mean score, over its training runs and over the worlds.

    Runs and worlds are resampled both, the worlds alike for all runs, since a hard world is hard for each of them. Of
    R runs, R − 1 are drawn: R draws would show only (R − 1) / R of the variance between runs (Rao and Wu 1988). With
    two or three runs it is still too narrow; with one it tells of the worlds alone.

    Args:
        scores_by_run: For each training run {world's seed: score}. Runs may have played different worlds.
    """
    return _quantiles(_nested_means(*_cells(scores_by_run, _all_seeds(scores_by_run)), bootstrap, seed))


def difference_of_recipes(
    a: Sequence[Mapping[int, float]],
    b: Sequence[Mapping[int, float]],
    *,
    matched: bool = False,
    bootstrap: int = RESAMPLES,
) -> Paired:
    """Recipe b minus recipe a, over their training runs and over the worlds that every run played.

    Of a handful of runs a bootstrap is far too sure, since it has seen no others. This is an analysis of variance with
    chance in runs and in worlds, as studies have it where several readers judge the same cases: what the means of runs
    vary by, but at least the noise, and what those of worlds do beyond it; with Student's t, whose degrees of freedom
    are those of the runs where these vary most (Hillis 2007). Equal recipes are called different in 5 % of studies, of
    two runs each in fewer. A recipe of one run tells of that run; with one run each this is `paired`.

    Args:
        a, b: For each training run {world's seed: score}.
        matched: The first of a belongs to the first of b, and so on: equal training seeds, or b went on from a. What a
            run and its twin have in common then cancels out, as a world's difficulty does.
        bootstrap: Resamples of `paired`.
    """
    if matched and len(a) != len(b):
        raise DataError(f"{len(a)} and {len(b)} training runs cannot be matched one to one.")
    if len(a) == len(b) == 1:
        return paired(a[0], b[0], bootstrap)
    shared = shared_seeds([*a, *b])
    if not shared:
        raise DataError("There is no seed that all of them played: nothing to pair. Evaluate all on the same seeds.")
    a_RS, b_RS = (np.array([[run[seed] for seed in shared] for run in runs], dtype=np.float64) for runs in (a, b))
    deltas_S = b_RS.mean(axis=0) - a_RS.mean(axis=0)
    delta = float(deltas_S.mean())
    error, freedom = _standard_error([b_RS - a_RS] if matched else [a_RS, b_RS], deltas_S)
    half, p = _student(delta, error, freedom)
    return Paired(delta, (delta - half, delta + half), p, sd=None, seeds=tuple(shared))


def shared_seeds(runs: Sequence[Mapping[int, float]]) -> list[int]:
    """The worlds that every run played, ascending."""
    return sorted(set.intersection(*(set(run) for run in runs)))


def nested_rates_interval(
    unlocked_by_run: Sequence[Mapping[int, Sequence[float]]],
    of_rates: Callable[[Floats], Floats],
    bootstrap: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval (low, high), over training runs and worlds, of the mean of the runs' scores; as `rates_interval`.

    Args:
        unlocked_by_run: For each training run {world's seed: whether its episode unlocked each achievement}.
        of_rates: Rates (resamples × achievements, 0–1) -> a score for each resample.
    """
    seeds = sorted({s for run in unlocked_by_run for s in run})
    there_RS = np.array([[float(s in run) for s in seeds] for run in unlocked_by_run])
    if not there_RS.size or not there_RS.any(axis=1).all():
        raise DataError("No values: an interval needs at least one seed of each run.")
    nothing = np.zeros(len(next(iter(unlocked_by_run[0].values()))))
    unlocked_RSA = np.array([[run.get(s, nothing) for s in seeds] for run in unlocked_by_run], dtype=np.float64)
    runs = len(unlocked_by_run)
    rng = np.random.default_rng(seed)
    drawn = []
    for worlds_BS in _worlds(len(seeds), bootstrap, rng):
        runs_BR = _runs(runs, worlds_BS.shape[0], rng)
        total_B = np.zeros(worlds_BS.shape[0])
        for r in range(runs):
            played_B1 = np.maximum(worlds_BS @ there_RS[r], 1.0)[:, None]
            total_B += runs_BR[:, r] * of_rates(worlds_BS @ unlocked_RSA[r] / played_B1)
        drawn.append(total_B / runs_BR.sum(axis=1))
    rates_RA = unlocked_RSA.sum(axis=1) / there_RS.sum(axis=1)[:, None]
    return _reflected(float(of_rates(rates_RA).mean()), np.concatenate(drawn))


def pooled_mean(scores_by_run: Sequence[Mapping[int, float]]) -> float:
    """Mean over every (training run, world) that was played: what `nested_interval` is the interval of."""
    return _mean_of_cells(*_cells(scores_by_run, _all_seeds(scores_by_run)))


# --------------------------------------------------------------------------- two players


def paired(a: Mapping[int, float], b: Mapping[int, float], bootstrap: int = RESAMPLES, seed: int = 0) -> Paired:
    """b minus a on the seeds both played: worlds differ a lot in difficulty, and pairing takes that out.

    Args:
        a, b: {world's seed: score}.
    """
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        raise DataError("The two share no seed: nothing to pair. Evaluate both on the same seeds.")
    deltas = np.array([b[s] - a[s] for s in seeds], dtype=np.float64)
    return Paired(
        delta=float(deltas.mean()),
        ci95=mean_interval(deltas.tolist(), bootstrap, seed),
        p_value=_sign_flip(deltas, bootstrap, seed),
        sd=float(deltas.std(ddof=1)) if deltas.size > 1 else 0.0,
        seeds=seeds,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given: those below 0.05 hold all together, with
    at most 5 % chance that any of them is a mistake. As safe as Bonferroni's, and never less sharp.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise DataError("A p-value lies between 0 and 1.")
    adjusted, most = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = most
    return adjusted


def seeds_needed(sd_of_difference: float, difference: float, power: float = 0.8) -> int:
    """How many shared seeds show a true difference with this probability, at the two-sided 5 % level.

    n = ((z₀.₉₇₅ + z_power) · sd / difference)², rounded up.

    Args:
        sd_of_difference: Of one seed's difference, `Paired.sd`.
    """
    if difference == 0 or not 0 < power < 1 or sd_of_difference < 0:
        raise DataError("A sample size needs a difference that is not zero, and a power between 0 and 1.")
    z = NormalDist().inv_cdf(1 - _LEVEL / 2) + NormalDist().inv_cdf(power)
    return max(1, ceil((z * sd_of_difference / abs(difference)) ** 2 - 1e-9))


# --------------------------------------------------------------------------- inside


def _finite(values: Sequence[float]) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise DataError("No values: an interval needs at least one.")
    if not np.isfinite(x).all():
        raise DataError("An interval needs finite values.")
    return x


def _chunks(resamples: int, width: int) -> list[int]:
    """Resamples at once, so that not more than `_CELLS` numbers are held."""
    rows = max(1, _CELLS // width)
    return [min(rows, resamples - done) for done in range(0, resamples, rows)]


def _quantiles(draws: Floats) -> tuple[float, float]:
    low, high = np.quantile(draws, (_LEVEL / 2, 1 - _LEVEL / 2))
    return float(low), float(high)


def _reflected(estimate: float, draws: Floats) -> tuple[float, float]:
    """The basic bootstrap interval on the scale log(1 + x)."""
    middle = np.log1p(estimate)
    low, high = _quantiles(np.log1p(draws))
    return max(0.0, float(np.expm1(2 * middle - high))), float(np.expm1(2 * middle - low))


def _all_seeds(runs: Sequence[Mapping[int, float]]) -> list[int]:
    return sorted({seed for run in runs for seed in run})


def _cells(runs: Sequence[Mapping[int, float]], seeds: Sequence[int]) -> tuple[Floats, Floats]:
    """(scores, runs × seeds, 0 where not played; 1 where played). Runs that played none of the seeds are left out."""
    there = [[float(seed in run) for seed in seeds] for run in runs]
    kept = [i for i, row in enumerate(there) if any(row)]
    if not kept:
        raise DataError("No values: an interval needs at least one.")
    values = [[float(runs[i].get(seed, 0.0)) for seed in seeds] for i in kept]
    return _finite_cells(values), np.array([there[i] for i in kept])


def _finite_cells(values: Any) -> Floats:
    cells = np.array(values, dtype=np.float64)
    _finite(cells.ravel())  # type: ignore[arg-type]
    return cells


def _mean_of_cells(values_RS: Floats, there_RS: Floats) -> float:
    return float(values_RS.sum() / there_RS.sum())


def _worlds(worlds: int, bootstrap: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Resamples × worlds, in chunks: how often each world is drawn."""
    for size in _chunks(bootstrap, worlds):
        yield rng.multinomial(worlds, np.full(worlds, 1 / worlds), size=size).astype(np.float64)


def _runs(runs: int, resamples: int, rng: np.random.Generator) -> Floats:
    """Resamples × runs: how often each run is drawn, R − 1 of them, see `nested_interval`."""
    return rng.multinomial(max(1, runs - 1), np.full(runs, 1 / runs), size=resamples).astype(np.float64)


def _nested_means(values_RS: Floats, there_RS: Floats, bootstrap: int, seed: int) -> Floats:
    """A mean for each resample of runs and worlds."""
    rng = np.random.default_rng(seed)
    worlds = _worlds(values_RS.shape[1], bootstrap, rng)
    return np.concatenate([_weighted(values_RS, there_RS, worlds_BS, rng) for worlds_BS in worlds])


def _standard_error(groups: Sequence[Floats], deltas_S: Floats) -> tuple[float, float]:
    """(standard error of the mean of deltas_S, its degrees of freedom), see `difference_of_recipes`.

    Args:
        groups: Runs × worlds each, independent of each other.
        deltas_S: Of each world, the mean over the runs.
    """
    several = [group_RS for group_RS in groups if group_RS.shape[0] > 1]
    noise = [_noise(group_RS) for group_RS in several]
    of_runs = [max(x_RS.mean(axis=1).var(ddof=1) / len(x_RS), rest) for x_RS, rest in zip(several, noise, strict=True)]
    of_worlds = deltas_S.var(ddof=1) / deltas_S.size if deltas_S.size > 1 else 0.0
    variance = sum(of_runs) + max(0.0, of_worlds - sum(noise))
    of_few = sum(v * v / (len(x_RS) - 1) for v, x_RS in zip(of_runs, several, strict=True))
    return float(np.sqrt(variance)), float(variance * variance / of_few) if of_few else np.inf


def _noise(values_RS: Floats) -> float:
    """What the mean over runs and worlds varies by where neither the luck of a run nor a world's difficulty explains
    it; at least two runs."""
    runs, worlds = values_RS.shape
    if worlds < 2:
        return 0.0
    rest = values_RS - values_RS.mean(axis=1, keepdims=True) - values_RS.mean(axis=0) + values_RS.mean()
    return float((rest * rest).sum() / ((runs - 1) * (worlds - 1)) / values_RS.size)


def _student(delta: float, error: float, freedom: float) -> tuple[float, float]:
    """(half of the 95 % interval, two-sided p-value) of an estimate with this standard error."""
    from scipy.special import stdtr, stdtrit  # a third of a second, for what few commands need

    if error == 0:
        return 0.0, 1.0 if delta == 0 else 0.0
    return float(stdtrit(freedom, 1 - _LEVEL / 2) * error), float(2 * stdtr(freedom, -abs(delta) / error))


def _weighted(values_RS: Floats, there_RS: Floats, worlds_BS: Floats, rng: np.random.Generator) -> Floats:
    """A mean for each resample: of the worlds as given, and of runs drawn here."""
    runs_BR = _runs(values_RS.shape[0], worlds_BS.shape[0], rng)
    played_B = ((runs_BR @ there_RS) * worlds_BS).sum(axis=1)
    total_B = ((runs_BR @ values_RS) * worlds_BS).sum(axis=1)
    none_drawn = np.full(played_B.shape, _mean_of_cells(values_RS, there_RS))
    means: Floats = np.divide(total_B, played_B, out=none_drawn, where=played_B > 0)
    return means


def _sign_flip(deltas: Floats, draws: int, seed: int) -> float:
    """Two-sided p-value: the share of sign assignments whose mean is at least as far from 0 as the one seen, which is
    itself one of them. Equal sizes share a draw: of k equal ones, how many are positive is binomial."""
    sizes_K, times_K = np.unique(np.abs(deltas[deltas != 0]), return_counts=True)
    if not sizes_K.size:
        return 1.0
    rng = np.random.default_rng(seed)
    seen, extreme = abs(float(deltas.sum())), 0
    for size in _chunks(draws, sizes_K.size):
        positive_BK = rng.binomial(times_K, 0.5, size=(size, sizes_K.size))
        sums_B = (2 * positive_BK - times_K) @ sizes_K
        extreme += int((np.abs(sums_B) >= seen * (1 - 1e-12)).sum())
    return (extreme + 1) / (draws + 1)
