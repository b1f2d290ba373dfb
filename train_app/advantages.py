"""Credit for each turn of a group of rollouts, as pure functions of their rewards.

A group are rollouts of one task: equal world, equal start. What a rollout earned beyond its group's mean is what the
policy can learn from; rollouts that failed are not in their group, and do not move its mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Scale = Literal["batch", "group", "none"]
"""Divide by the standard deviation of the batch's advantages, of the group's (GRPO), or not at all (Dr. GRPO)."""
TINY = 1e-6
"""Added to a deviation: a batch in which nothing differs stays at zero."""


def return_to_go(rewards: Sequence[Sequence[float]], gamma: float) -> list[np.ndarray]:
    """Discounted sum of the rewards from each turn on: G_t = r_t + gamma * G_{t+1}.

    Args:
        rewards: Per rollout, one reward per turn (lengths may differ).
    """
    returns = []
    for rollout in rewards:
        values_T = np.zeros(len(rollout))
        running = 0.0
        for t in range(len(rollout) - 1, -1, -1):
            running = rollout[t] + gamma * running
            values_T[t] = running
        returns.append(values_T)
    return returns


def turn_advantages(
    groups: Sequence[Sequence[Sequence[float]]], gamma: float, scale: Scale = "batch"
) -> list[list[np.ndarray]]:
    """Return-to-go minus the group's mean at the same turn: credit for each turn.

    An ended rollout counts as zero in the mean of later turns: dying early is not free. Where the rollouts of a group
    do not differ, the advantage is exactly zero.

    The baseline is biased. Rollouts of a group share only their first state: at turn t each stands somewhere else, and
    the mean of where the others stand is not the value of this rollout's state. A turn in a state that was already
    good is credited for what earlier turns achieved. The per-episode advantage has no such bias and far more
    variance: every turn of an episode, good or bad, gets the credit of the whole.

    Args:
        groups: [G][K][T] rewards: rollouts of equal task, with one reward per turn.
        gamma: Discount per turn.

    Returns:
        [G][K] arrays of [T].
    """
    centred: list[list[np.ndarray]] = []
    for group in groups:
        returns = return_to_go(group, gamma)
        padded_KT = np.zeros((len(returns), max((len(r) for r in returns), default=0)))
        for k, values in enumerate(returns):
            padded_KT[k, : len(values)] = values
        centred_KT = _centred(padded_KT)
        centred.append([centred_KT[k, : len(values)] for k, values in enumerate(returns)])
    deviations = _deviations([np.concatenate([np.zeros(0), *group]) for group in centred], scale)
    return [[values / d for values in group] for group, d in zip(centred, deviations, strict=True)]


def episode_advantages(groups: Sequence[Sequence[Sequence[float]]], scale: Scale = "batch") -> list[list[np.ndarray]]:
    """The episode's return minus the group's mean, the same for each of its turns (GRPO). Unbiased.

    Deviations are those of episodes: one number each, however long it was.

    Args:
        groups: [G][K][T] rewards.

    Returns:
        [G][K] arrays of [T].
    """
    centred = [_centred(np.array([[sum(rollout)] for rollout in group]).reshape(len(group), 1)) for group in groups]
    deviations = _deviations([centred_K1[:, 0] for centred_K1 in centred], scale)
    return [
        [np.full(len(rollout), value / d) for rollout, value in zip(group, centred_K1[:, 0], strict=True)]
        for group, centred_K1, d in zip(groups, centred, deviations, strict=True)
    ]


def _centred(values_KT: np.ndarray) -> np.ndarray:
    """Minus the mean of each column; columns of equal values give exact zeros, which rounding would not."""
    if not values_KT.size:
        return values_KT
    differs_T = np.ptp(values_KT, axis=0) > 0
    return np.where(differs_T, values_KT - values_KT.mean(0), 0.0)


def _deviations(groups: Sequence[np.ndarray], scale: Scale) -> list[float]:
    """What each group's advantages are divided by."""
    if scale == "none":
        return [1.0] * len(groups)
    if scale == "group":
        return [(float(values.std()) if values.size else 0.0) + TINY for values in groups]
    everything = np.concatenate([np.zeros(0), *groups])
    return [(float(everything.std()) if everything.size else 0.0) + TINY] * len(groups)
