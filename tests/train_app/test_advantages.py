"""Credit per turn and per episode."""

from __future__ import annotations

import numpy as np
import pytest

from train_app.advantages import episode_advantages, return_to_go, turn_advantages


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


def test_equal_rollouts_teach_nothing():
    for group in turn_advantages([[[1.0, 0.0]] * 4], gamma=0.9) + episode_advantages([[[1.0, 0.0]] * 4]):
        assert not np.concatenate(group).any()


def test_the_advantages_of_a_batch_have_unit_deviation():
    rng = np.random.default_rng(0)
    groups = [[list(rng.integers(0, 2, 20).astype(float)) for _ in range(8)] for _ in range(4)]
    flat = np.concatenate([v for group in turn_advantages(groups, 0.97) for v in group])
    assert flat.std() == pytest.approx(1.0, abs=1e-3)


def test_episode_credit_is_one_number_per_rollout():
    ((a, b),) = episode_advantages([[[0.0, 2.0], [0.0, 0.0, 0.0]]])
    assert len(set(a.tolist())) == len(set(b.tolist())) == 1
    assert a[0] == -b[0] > 0
