"""Scores mean what their sources say, intervals cover what they promise, and pairs are pairs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.errors import DataError
from crafter_pipeline.evaluation import (
    Comparison,
    Evaluation,
    compare,
    compare_all,
    crafter_score,
    evaluate,
    mean_interval,
    success_rates,
)

NAMES = tuple(f"a{i:02d}" for i in range(22))

# Human experts, https://github.com/danijar/crafter scores/crafter_reward-human.json: episodes of 20 that unlocked each
# achievement, for the five recorded runs. Published for it (README, Scoreboard): Crafter score 50.5 ± 6.8.
HUMAN = {
    "collect_coal": [18, 17, 18, 16, 17],
    "collect_diamond": [1, 1, 3, 4, 3],
    "collect_drink": [17, 19, 18, 19, 19],
    "collect_iron": [12, 9, 11, 10, 11],
    "collect_sapling": [11, 17, 12, 14, 13],
    "collect_stone": [20, 20, 20, 20, 20],
    "collect_wood": [20, 20, 20, 20, 20],
    "defeat_skeleton": [5, 7, 7, 3, 9],
    "defeat_zombie": [14, 17, 15, 20, 18],
    "eat_cow": [18, 19, 17, 17, 18],
    "eat_plant": [0, 1, 3, 2, 2],
    "make_iron_pickaxe": [4, 4, 6, 8, 4],
    "make_iron_sword": [2, 4, 6, 6, 4],
    "make_stone_pickaxe": [16, 14, 18, 15, 15],
    "make_stone_sword": [15, 14, 18, 16, 15],
    "make_wood_pickaxe": [20, 20, 20, 20, 20],
    "make_wood_sword": [6, 10, 8, 11, 10],
    "place_furnace": [4, 5, 8, 9, 6],
    "place_plant": [2, 4, 8, 7, 3],
    "place_stone": [19, 16, 19, 19, 17],
    "place_table": [20, 20, 20, 20, 20],
    "wake_up": [14, 11, 17, 16, 15],
}


def episode(seed, count=0, **facts):
    values = {"turns": 10, "env_steps": 10, "stop_reason": "env_limit", **facts}
    return EpisodeResult(f"r{seed}", seed, NAMES[:count], float(count), **values)


def make_evaluation(label, counts, seeds=None, max_steps=100):
    seeds = range(len(counts)) if seeds is None else seeds
    results = [episode(s, c) for s, c in zip(seeds, counts, strict=True)]
    return evaluate(label, "m", results, max_steps, NAMES, bootstrap=500)


# --------------------------------------------------------------------------- Crafter score


@pytest.mark.parametrize(
    ("rates", "score"),
    [
        ([0.0] * 22, 0.0),
        ([1.0] * 22, 100.0),
        ([0.5] * 22, 50.0),
        ([1.0, 0.0], 101**0.5 - 1),  # the geometric mean of 101 and 1
        ([0.01] + [0.0] * 21, 2 ** (1 / 22) - 1),
    ],
)
def test_the_crafter_score_of_plain_cases(rates, score):
    assert crafter_score(dict(enumerate(map(float, rates)))) == pytest.approx(score, abs=1e-9)


def test_the_crafter_score_of_the_recorded_humans_is_the_published_one():
    runs = [crafter_score({name: n[run] / 20 for name, n in HUMAN.items()}) for run in range(5)]
    assert round(float(np.mean(runs)), 1) == 50.5
    assert round(float(np.std(runs)), 1) == 6.8


def test_rare_achievements_weigh_as_much_as_common_ones():
    base = dict.fromkeys(NAMES, 0.5)
    rare = {**base, "a00": 0.0}
    assert crafter_score({**rare, "a00": 0.01}) - crafter_score(rare) > 0.9 * (
        crafter_score({**rare, "a01": 1.0}) - crafter_score(rare)
    )


@pytest.mark.parametrize("rates", [{"a": 50.0}, {"a": -0.1}, {"a": float("nan")}, {}])
def test_rates_in_percent_or_none_at_all_are_refused(rates):
    with pytest.raises(DataError):
        crafter_score(rates)


# --------------------------------------------------------------------------- one evaluation


def test_an_evaluation_is_sorted_by_seed_with_counts_aligned():
    e = evaluate(
        "sft",
        "m",
        [episode(7, 3, env_steps=30, parse_failures=2), episode(5, 1, stop_reason="death"), episode(6, 2)],
        100,
        NAMES,
        bootstrap=500,
    )
    assert (e.seeds, e.counts) == ((5, 6, 7), (1, 2, 3))
    assert e.mean_achievements == 2.0
    assert e.ci95[0] < 2.0 < e.ci95[1]
    assert e.success_rates["a00"] == 1.0 and e.success_rates["a01"] == pytest.approx(2 / 3)
    assert list(e.success_rates) == list(NAMES)
    assert e.crafter_score == pytest.approx(crafter_score(e.success_rates))
    assert e.mean_env_steps == pytest.approx(50 / 3)
    assert (e.parse_failures, e.turns) == (2, 30)
    assert e.stop_reasons == {"env_limit": 2, "death": 1}


def test_an_achievement_counts_once_per_episode():
    twice = EpisodeResult("r", 0, ("a00", "a00"), 2.0, 1, 1, "death")
    e = evaluate("sft", "m", [twice], 100, NAMES)
    assert e.counts == (1,) and e.success_rates["a00"] == 1.0


@pytest.mark.parametrize(
    ("results", "says"),
    [
        ([], "no finished episode"),
        ([episode(1), episode(1)], "seed 1 2 times"),
        ([EpisodeResult("r", 0, ("fly",), 1.0, 1, 1, "death")], "'fly'"),
    ],
)
def test_what_would_bend_the_metric_is_refused(results, says):
    with pytest.raises(DataError, match=says):
        evaluate("sft", "m", results, 100, NAMES)


def test_an_environment_without_a_list_counts_what_was_unlocked():
    e = evaluate("sft", "m", [EpisodeResult("r", 0, ("solved",), 1.0, 1, 1, "solved")], 1, ())
    assert (e.counts, e.success_rates, e.crafter_score) == ((1,), {"solved": 1.0}, 0.0)


def test_an_evaluation_survives_json():
    e = make_evaluation("rl", [1, 4, 2, 22, 0])
    assert Evaluation.from_json(json.loads(json.dumps(e.to_json()))) == e


def test_the_json_shape_is_the_one_others_rely_on():
    data = make_evaluation("rl", [1, 4]).to_json()
    assert {"label", "model", "seeds", "max_steps", "mean_achievements", "ci95", "crafter_score", "success_rates"} <= (
        data.keys()
    )
    assert isinstance(data["seeds"], list) and isinstance(data["ci95"], list) and len(data["ci95"]) == 2


@pytest.mark.parametrize("broken", [{"counts": None}, {"counts": [1]}, {"ci95": [1]}, {"success_rates": []}])
def test_a_damaged_evaluation_is_named(broken):
    data = {**make_evaluation("rl", [1, 4]).to_json(), **broken}
    with pytest.raises(DataError):
        Evaluation.from_json(data)


# --------------------------------------------------------------------------- intervals


def test_an_interval_is_deterministic_and_moves_with_its_seed():
    values = [1, 5, 2, 8, 3, 3, 9]
    assert mean_interval(values, 1000, 1) == mean_interval(values, 1000, 1)
    assert mean_interval(values, 1000, 1) != mean_interval(values, 1000, 2)


def test_an_interval_does_not_depend_on_the_order_of_its_values():
    assert mean_interval([3, 1, 2], 500) == mean_interval([1, 2, 3], 500)


def test_equal_values_give_a_point():
    assert mean_interval([4, 4, 4]) == (4.0, 4.0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_no_interval_from_nothing(values):
    with pytest.raises(DataError):
        mean_interval(values)


def test_resampling_distinct_values_equals_resampling_indices():
    """The multinomial shortcut has the quantiles of the textbook bootstrap."""
    x = np.random.default_rng(3).integers(0, 12, size=60)
    indices = np.random.default_rng(4).integers(0, 60, size=(20_000, 60))
    textbook = np.quantile(x[indices].mean(axis=1), (0.025, 0.975))
    assert mean_interval(x, 20_000) == pytest.approx(tuple(textbook), abs=0.05)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    """400 samples of 48 achievement counts: 95 % nominal, a percentile bootstrap comes close to it."""
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(400):
        low, high = mean_interval(rng.binomial(22, 0.3, size=48), 1000, i)
        hits += low <= 6.6 <= high
    assert 0.91 <= hits / 400 <= 0.98


def test_many_seeds_stay_cheap(monkeypatch):
    """More distinct values than fit at once are resampled in parts, with the same result."""
    values = np.random.default_rng(0).normal(size=300)
    whole = mean_interval(values, 200)
    monkeypatch.setattr("crafter_pipeline.evaluation.statistics._CELLS", 300 * 7)
    assert mean_interval(values, 200) == pytest.approx(whole)


def test_what_an_earlier_version_stored_is_read():
    told = make_evaluation("rl", [1, 4, 2]).to_json()
    later = ("unlocked", "env_steps", "died", "crafter_score_ci95", "first_unlock", "prompt_tokens", "success_ci95")
    e = Evaluation.from_json({key: value for key, value in told.items() if key not in later})
    assert e.counts == (1, 4, 2) and e.interquartile_mean == pytest.approx((0.25 * 1 + 2 + 0.25 * 4) / 1.5)
    assert (e.unlocked_SA, e.death_share, e.median_env_steps, e.crafter_score_ci95) == (None,) * 4
    with pytest.raises(DataError, match="3 seeds but 2 unlocked"):
        Evaluation.from_json(told | {"unlocked": [1, 2]})


def test_an_episode_is_kept_by_what_it_unlocked():
    e = make_evaluation("sft", [0, 2, 22])
    assert e.unlocked == (0, 0b11, 2**22 - 1)
    assert e.unlocked_SA.sum(axis=1).tolist() == [0, 2, 22] and e.unlocked_SA[1].tolist() == [1, 1, *[0] * 20]
    assert e.balrog_progress == pytest.approx(100 * 8 / 22)
    assert e.crafter_score_ci95[0] <= e.crafter_score <= e.crafter_score_ci95[1]


def test_waking_up_is_told_apart():
    results = [EpisodeResult("r", s, ("wake_up", *["eat_cow"] * (s < 2)), 1.0, 1, 1, "death") for s in range(4)]
    e = evaluate("random", "m", results, 10, ("eat_cow", "wake_up"), 100)
    assert (e.mean_achievements, e.without_wake_up) == (1.5, 0.5)
    assert make_evaluation("sft", [3, 3]).without_wake_up is None, "no such achievement there"


def test_the_first_unlock_is_the_median_of_those_who_did():
    results = [episode(0, 1, unlocked_at={"a00": 10}), episode(1, 2, unlocked_at={"a00": 20, "a01": 7}), episode(2)]
    e = evaluate("sft", "m", results, 100, NAMES, 100)
    assert e.first_unlock == {"a00": 15.0, "a01": 7.0}


def test_survival_counts_those_who_were_there():
    """Four episodes: one dies at 10, one ends at its limit at 20, one dies at 30, one lives to 40."""
    ends = [(10, "death"), (20, "turn_limit"), (30, "death"), (40, "env_limit")]
    results = [episode(s, env_steps=n, stop_reason=why) for s, (n, why) in enumerate(ends)]
    e = evaluate("sft", "m", results, 40, NAMES, 100)
    assert e.survival() == [(0, 1.0), (10, 0.75), (30, 0.375)]
    assert (e.death_share, e.median_env_steps) == (0.5, 25.0)


def test_tokens_are_told_where_every_episode_tells_them():
    told = [episode(s, prompt_tokens=100 * s, completion_tokens=s) for s in (1, 3)]
    e = evaluate("sft", "m", told, 10, NAMES, 100)
    assert (e.prompt_tokens, e.completion_tokens) == (200, 2)
    assert evaluate("sft", "m", [*told, episode(9)], 10, NAMES, 100).prompt_tokens is None


def test_worlds_of_two_splits_are_no_evaluation():
    with pytest.raises(DataError, match="mixes splits: 5 .train. and 1000000 .held_out."):
        make_evaluation("sft", [1, 2], seeds=[5, 1_000_000])
    assert make_evaluation("sft", [1], seeds=[900_000]).split == "dev"


# --------------------------------------------------------------------------- pairs


def test_only_shared_seeds_are_paired():
    a = make_evaluation("random", [1, 2, 9], seeds=[10, 11, 99])
    b = make_evaluation("sft", [4, 6, 0], seeds=[11, 10, 50])
    c = compare(a, b)
    assert c.seeds == (10, 11)
    assert c.delta == pytest.approx(((6 - 1) + (4 - 2)) / 2)
    assert (c.a, c.b) == ("random", "sft")


def test_pairing_takes_the_worlds_difficulty_out():
    """b is one better on every world, worlds differ by up to 15: alone the intervals overlap, paired it is clear."""
    counts = [i % 16 for i in range(32)]
    a, b = make_evaluation("sft", counts), make_evaluation("rl", [c + 1 for c in counts])
    assert a.ci95[1] > b.ci95[0]
    c = compare(a, b)
    assert (c.delta, c.ci95, c.clear) == (1.0, (1.0, 1.0), True)


def test_a_comparison_turned_round_changes_sign():
    a, b = make_evaluation("sft", [1, 5, 2, 4, 3, 3]), make_evaluation("rl", [2, 4, 4, 8, 1, 5])
    assert compare(a, b).delta == -compare(b, a).delta


def test_five_worlds_settle_nothing():
    a, b = make_evaluation("sft", [0] * 5), make_evaluation("rl", [3] * 5)
    assert compare(a, b).excludes_zero and not compare(a, b).clear


def test_equal_play_is_not_a_difference():
    a, b = make_evaluation("sft", [1, 2, 3] * 8), make_evaluation("rl", [2, 3, 1] * 8)
    assert not compare(a, b).excludes_zero


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"seeds": [7, 8]}, "share no seed"),
        ({"max_steps": 200}, "not comparable"),
        ({"seeds": [900_000, 900_001]}, "split train and rl of dev: not"),
    ],
)
def test_what_cannot_be_paired_is_refused(other, says):
    with pytest.raises(DataError, match=says):
        compare(make_evaluation("sft", [1, 2]), make_evaluation("rl", [1, 2], **other))


def test_every_pair_once_in_the_order_of_the_pipeline():
    labels = ["rl", "random", "dagger", "sft", "teacher", "mlp"]
    pairs = [(c.a, c.b) for c in compare_all([make_evaluation(label, [1, 2]) for label in labels], 100)]
    order = ["random", "teacher", "mlp", "sft", "dagger", "rl"]
    assert pairs == [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]


def test_p_values_are_corrected_for_the_number_of_pairs():
    evaluations = [
        make_evaluation(label, [n + i % 2 for i in range(20)]) for label, n in (("sft", 1), ("rl", 3), ("x", 1))
    ]
    pairs = {(c.a, c.b): c for c in compare_all(evaluations, 1000)}
    assert pairs["sft", "rl"].p_holm == pytest.approx(3 * pairs["sft", "rl"].p_value)
    assert pairs["sft", "x"].p_value == pairs["sft", "x"].p_holm == 1.0
    alone = compare(*evaluations[:2], 1000)
    assert alone.p_holm == alone.p_value and alone.seeds_to_see(0.3) == 6, "every world says the same"
    assert replace(alone, sd=2.0).seeds_to_see(0.5) == 126
    assert Comparison.from_json(json.loads(json.dumps(alone.to_json()))) == alone


def test_two_evaluations_of_one_label_are_refused():
    with pytest.raises(DataError, match="'sft'"):
        compare_all([make_evaluation("sft", [1]), make_evaluation("sft", [2])])


def test_success_rates_need_episodes():
    with pytest.raises(DataError):
        success_rates([], NAMES)
