"""Intervals and tests against published numbers, textbook formulas and simulated truths."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from crafter_pipeline.errors import DataError
from crafter_pipeline.evaluation.scores import scores_of_rates
from crafter_pipeline.evaluation.statistics import (
    difference_of_recipes,
    holm,
    interquartile_mean,
    mean_interval,
    nested_interval,
    nested_rates_interval,
    paired,
    pooled_mean,
    rates_interval,
    seeds_needed,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "published"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_gives_newcombes_table(successes, n, published):
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert wilson(successes, n) == pytest.approx(published, abs=5e-5)


def test_wilson_stays_within_the_range_and_is_symmetric():
    assert wilson(0, 5)[0] == 0 and wilson(5, 5)[1] == 1
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))
    for bad in ((3, 2), (-1, 4), (0, 0)):
        with pytest.raises(DataError, match="is no share"):
            wilson(*bad)


def test_the_interquartile_mean_leaves_out_a_quarter_on_each_side():
    assert interquartile_mean([1, 2, 3, 4, 5, 6, 7, 800]) == 4.5
    assert interquartile_mean([5]) == 5 and interquartile_mean([1, 3]) == 2
    # Of five values a quarter is 1.25: the second and the fourth count three quarters.
    assert interquartile_mean([100, 0, 1, 5, 0]) == pytest.approx((0.75 * 0 + 1 + 0.75 * 5) / 2.5)


def test_holm_gives_the_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.4]) == [0.4] and holm([0.9, 0.8]) == [1.0, 1.0]
    with pytest.raises(DataError, match="between 0 and 1"):
        holm([1.2])


def test_seeds_needed_is_the_textbooks_number():
    assert seeds_needed(1.0, 0.5) == 32  # (1.96 + 0.8416)² · 4 = 31.4
    assert seeds_needed(1.0, -0.5, power=0.9) == 43
    assert seeds_needed(3.0, 0.3) == 785
    with pytest.raises(DataError, match="not zero"):
        seeds_needed(1.0, 0.0)


def test_that_many_seeds_show_the_difference_as_often_as_promised():
    rng, found = np.random.default_rng(5), 0
    n = seeds_needed(1.0, 0.5)
    for i in range(300):
        deltas = dict(enumerate(rng.normal(0.5, 1.0, n)))
        low, _ = paired(dict.fromkeys(deltas, 0.0), deltas, 400, i).ci95
        found += low > 0
    assert 0.74 < found / 300 < 0.88


def test_the_sign_flip_test_is_exact_where_it_can_be_counted():
    """Eight equal differences, seven of them positive: 2 · (C(8,0) + C(8,1)) / 2⁸."""
    told = paired(dict.fromkeys(range(8), 0.0), {s: (1.0 if s else -1.0) for s in range(8)})
    assert told.p_value == pytest.approx(2 * (comb(8, 0) + comb(8, 1)) / 2**8, abs=0.01)
    assert (told.delta, told.seeds, told.sd) == (0.75, tuple(range(8)), pytest.approx(0.7071, abs=1e-4))
    assert paired({1: 2.0, 2: 5.0}, {1: 2.0, 2: 5.0}).p_value == 1.0
    with pytest.raises(DataError, match="share no seed"):
        paired({1: 1.0}, {2: 1.0})


def test_pairing_takes_the_worlds_difficulty_out():
    rng = np.random.default_rng(0)
    worlds = rng.normal(0, 5, 100)
    a, b = dict(enumerate(worlds)), dict(enumerate(worlds + 0.5 + rng.normal(0, 0.5, 100)))
    told = paired(a, b)
    alone = mean_interval(list(b.values()))
    assert told.ci95[0] > 0 and told.p_value < 0.001
    assert told.ci95[1] - told.ci95[0] < (alone[1] - alone[0]) / 5


# --------------------------------------------------------------------------- several training runs


def runs(rng, count, worlds=60, between=0.5):
    """Scores whose true mean is 0, of training runs that differ and of worlds that are hard for all of them."""
    hard = rng.normal(0, 1.5, worlds)
    return [dict(enumerate(mean + hard + rng.normal(0, 1.0, worlds))) for mean in rng.normal(0, between, count)]


def test_nested_intervals_cover_the_truth_of_the_recipe():
    rng = np.random.default_rng(5)
    covered = [low <= 0 <= high for low, high in (nested_interval(runs(rng, 5), 400, i) for i in range(200))]
    assert 0.90 <= np.mean(covered) <= 0.995


def test_a_single_run_says_nothing_of_the_next_one():
    rng = np.random.default_rng(1)
    covered = [low <= 0 <= high for low, high in (nested_interval(runs(rng, 1), 300, i) for i in range(150))]
    assert np.mean(covered) < 0.75, "why recipes are trained more than once"


def test_one_run_has_the_interval_of_its_worlds():
    one = dict(enumerate(np.random.default_rng(3).normal(4, 2, 200)))
    assert nested_interval([one]) == pytest.approx(mean_interval(list(one.values())), abs=0.02)


def test_runs_may_have_played_different_worlds():
    a, b = {1: 2.0, 2: 4.0}, {2: 6.0, 3: 8.0}
    assert pooled_mean([a, b]) == 5.0
    low, high = nested_interval([a, b], 2000)
    assert 2 <= low <= 5 <= high <= 8
    with pytest.raises(DataError, match="at least one"):
        nested_interval([{}])


def test_the_difference_of_two_recipes_pairs_worlds_and_draws_runs_apart():
    rng = np.random.default_rng(7)
    a = runs(rng, 4, between=0.1)
    b = [{s: x + 1.0 + rng.normal(0, 0.1) for s, x in run.items()} for run in a]
    told = difference_of_recipes(a, b)
    assert told.delta == pytest.approx(1.0, abs=0.1) and told.ci95[0] > 0.6 and told.p_value < 0.01
    assert told.seeds == tuple(range(60)) and told.sd is None
    same = difference_of_recipes(a, a)
    assert same.delta == 0 and same.ci95[0] < 0 < same.ci95[1] and same.p_value == 1
    assert difference_of_recipes(a, a, matched=True).ci95 == (0, 0)
    assert difference_of_recipes(a[:1], b[:1]) == paired(a[0], b[0])


def test_a_difference_of_trainings_is_student_s_where_every_world_is_alike():
    """Worked by hand: deltas 1, 2 and 3 of three pairs; 2 ± 4.303 · 1 / √3."""
    a = [dict.fromkeys(range(9), 5.0)] * 3
    b = [dict.fromkeys(range(9), 5.0 + delta) for delta in (1.0, 2.0, 3.0)]
    told = difference_of_recipes(a, b, matched=True)
    assert told.ci95 == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)
    assert told.p_value == pytest.approx(0.0742, abs=1e-4)


def test_worlds_that_not_all_played_are_left_out():
    a, b = [{1: 0.0, 2: 1.0, 3: 9.0}, {1: 1.0, 2: 2.0}], [{1: 3.0, 2: 3.0, 4: 9.0}, {1: 3.0, 2: 4.0}]
    told = difference_of_recipes(a, b)
    assert told.seeds == (1, 2) and told.delta == pytest.approx(2.25)
    with pytest.raises(DataError, match="no seed that all of them played"):
        difference_of_recipes(a, [{3: 1.0}])


@pytest.mark.parametrize(("count", "matched", "most"), [(2, True, 0.08), (2, False, 0.08), (5, True, 0.08)])
def test_equal_recipes_are_seldom_called_different(count, matched, most):
    """The bootstrap over two trainings, which this replaced, found a difference in 30 of 100."""
    rng = np.random.default_rng(3)

    def recipe(hard):
        own = rng.normal(0, 0.5, 200)  # what this recipe finds hard
        means = rng.normal(0, 0.6, count)
        return [dict(enumerate(mean + hard + own + rng.normal(0, 1.5, 200))) for mean in means]

    false = []
    for _ in range(400):
        hard = rng.normal(0, 2, 200)
        low, high = difference_of_recipes(recipe(hard), recipe(hard), matched=matched).ci95
        false.append(not low <= 0 <= high)
    assert 0.01 < np.mean(false) < most


# --------------------------------------------------------------------------- functions of success rates


def test_an_interval_of_rates_is_that_of_the_basic_bootstrap():
    rng = np.random.default_rng(2)
    unlocked = (rng.random((50, 4)) < (0.9, 0.5, 0.2, 0.02)).astype(float)
    drawn = scores_of_rates(np.array([unlocked[rng.integers(0, 50, 50)].mean(axis=0) for _ in range(4000)]))
    middle = np.log1p(scores_of_rates(unlocked.mean(axis=0)[None])[0])
    expected = np.expm1(2 * middle - np.quantile(np.log1p(drawn), (0.975, 0.025)))
    assert rates_interval(unlocked, scores_of_rates, 8000) == pytest.approx(tuple(expected), rel=0.03)
    one_run = [dict(enumerate(unlocked.tolist()))]
    assert nested_rates_interval(one_run, scores_of_rates, 8000) == pytest.approx(tuple(expected), rel=0.03)


def test_an_interval_of_the_crafter_score_covers_the_truth_although_rare_achievements_are_not_seen():
    rates = np.array([1, 1, 1, 0.98, 0.97, 0.97, 0.95, 0.93, 0.9, 0.85, 0.8, 0.8, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1])
    rates = np.concatenate([rates, (0.03, 0.02, 0.01, 0.001)])
    truth, rng = scores_of_rates(rates[None])[0], np.random.default_rng(4)
    drawn = [rates_interval(rng.random((200, 22)) < rates, scores_of_rates, 300, i) for i in range(150)]
    assert np.mean([low <= truth <= high for low, high in drawn]) > 0.84, "plain percentiles: 0.80"


def test_runs_that_differ_widen_the_interval_of_the_score():
    rng = np.random.default_rng(6)
    weak, strong = ((rng.random((60, 4)) < rate).astype(float).tolist() for rate in (0.2, 0.6))
    alone = nested_rates_interval([dict(enumerate(weak))], scores_of_rates, 500)
    both = nested_rates_interval([dict(enumerate(weak)), dict(enumerate(strong))], scores_of_rates, 500)
    means = [scores_of_rates(np.mean(run, axis=0)[None])[0] for run in (weak, strong)]
    assert both[1] - both[0] > 2 * (alone[1] - alone[0]) and both[0] < np.mean(means) < both[1]


def test_equal_inputs_give_equal_intervals():
    scores = runs(np.random.default_rng(0), 3, worlds=20)
    assert nested_interval(scores, 500) == nested_interval(scores, 500) != nested_interval(scores, 500, seed=1)


def test_matched_runs_show_what_unmatched_ones_hide():
    """Trainings differ by more than the recipes do; each run of b is its twin in a, and a little better."""
    rng = np.random.default_rng(0)
    luck, worlds = rng.normal(0, 2, 5), rng.normal(8, 2, 200)
    a = [{s: worlds[s] + luck[r] + rng.normal(0, 1) for s in range(200)} for r in range(5)]
    b = [{s: worlds[s] + luck[r] + 0.5 + rng.normal(0, 1) for s in range(200)} for r in range(5)]
    matched, apart = difference_of_recipes(a, b, matched=True), difference_of_recipes(a, b)
    assert matched.delta == pytest.approx(apart.delta) == pytest.approx(0.5, abs=0.15)
    assert matched.ci95[0] > 0 and matched.p_value < 0.01
    assert apart.ci95[0] < 0 < apart.ci95[1]
    with pytest.raises(DataError, match="5 and 4 training runs"):
        difference_of_recipes(a, b[:4], matched=True)
