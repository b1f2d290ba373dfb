"""Credit per turn and per episode."""

from __future__ import annotations

import numpy as np
import pytest

from train_app.advantages import episode_advantages, return_to_go, turn_advantages

SCALES = ("batch", "group", "none")


def random_groups(seed, count=3, size=5):
    """[count][size] rollouts of up to 12 turns; rewards are small multiples of a tenth, as judges give them."""
    chance = np.random.default_rng(seed)
    return [[list(chance.integers(0, 4, chance.integers(1, 13)) / 10) for _ in range(size)] for _ in range(count)]


def both(groups, scale="batch", gamma=0.97):
    return turn_advantages(groups, gamma, scale), episode_advantages(groups, scale)


def flat(groups):
    return np.concatenate([values for group in groups for values in group])


def test_return_to_go_discounts_what_comes_later():
    (values,) = return_to_go([[0.0, 0.0, 1.0]], gamma=0.5)
    assert values.tolist() == [0.25, 0.5, 1.0]


def test_a_turn_is_compared_with_its_siblings_at_the_same_turn():
    ((winner, loser),) = turn_advantages([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]], gamma=1.0)
    assert winner[0] > 0 > loser[0]
    assert winner[1] > 0 > loser[1]
    assert winner[2] == loser[2] == 0.0  # nothing was at stake any more


def test_an_ended_rollout_counts_as_zero_for_later_turns():
    ((alive, dead),) = turn_advantages([[[0.0, 0.0, 2.0], [0.0]]], gamma=1.0)
    assert (len(alive), len(dead)) == (3, 1)
    assert alive[2] > 0 > dead[0]


def test_episode_credit_is_one_number_per_rollout():
    ((a, b),) = episode_advantages([[[0.0, 2.0], [0.0, 0.0, 0.0]]])
    assert len(set(a.tolist())) == len(set(b.tolist())) == 1
    assert a[0] == -b[0] > 0


@pytest.mark.parametrize("scale", SCALES)
def test_equal_rollouts_teach_exactly_nothing_whatever_their_sums_round_to(scale):
    groups = [[[0.1, 0.7, 0.3]] * 3, [[0.1] * 7] * 7]
    for advantages in both(groups, scale):
        assert not flat(advantages).any()


@pytest.mark.parametrize("scale", SCALES)
def test_a_rollout_that_is_alone_in_its_group_teaches_nothing(scale):
    for advantages in both([[[1.0, 2.0]]], scale):
        assert not flat(advantages).any()


@pytest.mark.parametrize("scale", SCALES)
def test_empty_groups_and_batches_are_no_error(scale):
    assert both([[]], scale) == ([[]], [[]])
    assert both([], scale) == ([], [])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", SCALES)
def test_the_group_s_advantages_sum_to_zero(seed, scale):
    groups = random_groups(seed)
    for group in episode_advantages(groups, scale):
        assert sum(values[0] for values in group) == pytest.approx(0, abs=1e-9)
    for group, rewards in zip(turn_advantages(groups, 0.9, scale), groups, strict=True):
        shortest = min(map(len, rewards))
        assert np.allclose(sum(values[:shortest] for values in group), 0)  # while all live


@pytest.mark.parametrize("seed", range(5))
def test_neither_order_nor_a_constant_reward_changes_the_credit(seed):
    groups = random_groups(seed)
    shuffled = [group[::-1] for group in groups]
    for straight, turned in zip(both(groups), both(shuffled), strict=True):
        for group, other in zip(straight, turned, strict=True):
            assert all(np.allclose(a, b) for a, b in zip(group, other[::-1], strict=True))
    equal_lengths = [[rollout[:1] * 4 for rollout in group] for group in groups]
    raised = [[[reward + 5 for reward in rollout] for rollout in group] for group in equal_lengths]
    for before, after in zip(both(equal_lengths), both(raised), strict=True):
        assert np.allclose(flat(before), flat(after))


@pytest.mark.parametrize("seed", range(3))
def test_scales_divide_by_the_deviation_of_batch_or_group_or_by_nothing(seed):
    groups = random_groups(seed)
    plain = turn_advantages(groups, 0.97, "none")
    batch = turn_advantages(groups, 0.97, "batch")
    assert np.allclose(flat(batch), flat(plain) / flat(plain).std(), rtol=1e-4)
    assert flat(batch).std() == pytest.approx(1.0, abs=1e-3)
    for group, scaled in zip(plain, turn_advantages(groups, 0.97, "group"), strict=True):
        assert np.allclose(np.concatenate(scaled), np.concatenate(group) / np.concatenate(group).std(), rtol=1e-4)


def test_an_episode_s_deviation_is_of_episodes_however_long_they_are():
    groups = [[[1.0], [0.0] * 50]]
    ((short, long),) = episode_advantages(groups, "group")
    assert (short[0], long[0]) == (pytest.approx(1, abs=1e-4), pytest.approx(-1, abs=1e-4))


def test_without_a_scale_advantages_are_rewards():
    ((a, b),) = episode_advantages([[[3.0], [1.0]]], "none")
    assert (a.tolist(), b.tolist()) == ([1.0], [-1.0])
