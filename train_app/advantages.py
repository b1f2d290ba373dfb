"""Credit for each turn of a group of rollouts, as pure functions of their rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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


def turn_advantages(groups: Sequence[Sequence[Sequence[float]]], gamma: float) -> list[list[np.ndarray]]:
    """Return-to-go minus the group's mean at the same turn, over the batch's standard deviation.

    An ended rollout counts as zero in the mean of later turns: dying early is not free. Groups whose rollouts never
    differ get exact zeros.

    Args:
        groups: [G][K][T] rewards: rollouts of equal (task, seed), with one reward per turn.

    Returns:
        [G][K] arrays of [T].
    """
    centred: list[list[np.ndarray]] = []
    for group in groups:
        returns = return_to_go(group, gamma)
        longest = max((len(r) for r in returns), default=0)
        padded_KT = np.zeros((len(returns), longest))
        for k, values in enumerate(returns):
            padded_KT[k, : len(values)] = values
        baseline_T = padded_KT.mean(0)
        centred.append([values - baseline_T[: len(values)] for values in returns])
    return _scaled(centred)


def episode_advantages(groups: Sequence[Sequence[Sequence[float]]]) -> list[list[np.ndarray]]:
    """The episode's return minus the group's mean, broadcast to its turns (GRPO), scaled as `turn_advantages`."""
    centred = []
    for group in groups:
        totals_K = np.array([sum(rollout) for rollout in group], dtype=float)
        centred.append([np.full(len(r), a) for r, a in zip(group, totals_K - totals_K.mean(), strict=True)])
    return _scaled(centred)


def _scaled(groups: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    flat = np.concatenate([np.zeros(1), *(values for group in groups for values in group)])[1:]
    deviation = float(flat.std()) if flat.size else 0.0
    return [[values / (deviation + 1e-6) for values in group] for group in groups]
