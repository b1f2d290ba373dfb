"""From rollouts to what the trainer's steps see: a row per turn, minibatches, padded slices.

A row is one call of the model: the prompt's ids as served, the ids as sampled, the sampler's log-probabilities. Text
is never tokenised again; the same text may have other ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from crafter_pipeline.config import RlConfig
from train_app.advantages import episode_advantages, turn_advantages
from train_app.forward_size import ForwardLimit
from train_app.workers.inference.sampling import Sample
from train_app.workers.rl.scoring import like_sized, padded_ids, right_padded
from train_app.workers.rollouts.player import PlayedRollout

TeacherLogprobs = Callable[[Sequence[Sample]], list[np.ndarray]]
"""A teacher's log-probability of each sampled token, [T] per sample."""


@dataclass(frozen=True, slots=True)
class Row:
    """One turn to train on."""

    sample: Sample
    advantage: np.ndarray
    """[T] of the sampled tokens, the episode's weight included: one value for all, or in distillation one each."""
    rollout: PlayedRollout
    turn: int
    """Within the rollout, from 0."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one iteration, and what was left out."""

    rows: list[Row]
    stale: int
    """Turns that were sampled by weights too old."""
    zero_variance_groups: int
    """Groups whose rollouts do not differ."""
    groups: int
    reverse_kl: float | None = None
    """In distillation: mean over the sampled tokens of log p_student - log p_teacher."""


def batch_of(
    groups: Sequence[Sequence[PlayedRollout]],
    config: RlConfig,
    version: int,
    teacher: TeacherLogprobs | None = None,
) -> Batch:
    """One row per turn that has something to teach, in the order played.

    Left out: turns whose advantage is zero, among them all of a group whose rollouts do not differ; turns sampled by
    weights older than `config.max_staleness` versions; beyond `config.max_samples`, the smallest advantages.

    Args:
        groups: [G][K] rollouts; those of a group have the same task. Failed ones are not among them.
        version: Of the weights that are about to be trained.
        teacher: In distillation.
    """
    rows, differs = _distilled(groups, teacher) if teacher else _rewarded(groups, config)
    fresh = [row for row in rows if version - row.sample.version <= config.max_staleness]
    reverse_kl = None
    if teacher:
        # The batch's mean is the baseline. Without one, a student far from its teacher is pushed away from everything
        # it says, clipping stops where that helped, and what it never said gains: measured, the divergence grew.
        reverse_kl = -_mean_over_tokens([row.advantage for row in fresh])
        fresh = [replace(row, advantage=row.advantage + reverse_kl) for row in fresh]
    kept = [row for row in fresh if row.advantage.any()]
    if config.weigh == "episodes":
        kept = [replace(row, advantage=row.advantage / len(row.rollout.samples)) for row in kept]
    if config.max_samples is not None:
        strongest = np.argsort([-_strength(row) for row in kept], kind="stable")[: config.max_samples]
        kept = [kept[i] for i in sorted(strongest)]
    if config.weigh == "episodes" and kept:  # mean weight 1: a batch of equal lengths trains as with `turns`
        scale = len(kept) / sum(1 / len(row.rollout.samples) for row in kept)
        kept = [replace(row, advantage=row.advantage * scale) for row in kept]
    return Batch(kept, len(rows) - len(fresh), differs.count(False), len(groups), reverse_kl)


def _rewarded(groups: Sequence[Sequence[PlayedRollout]], config: RlConfig) -> tuple[list[Row], list[bool]]:
    """A row per turn, and per group whether any advantage is not zero."""
    rewards = [[rollout.turn_rewards for rollout in group] for group in groups]
    if config.advantage == "return_to_go":
        advantages = turn_advantages(rewards, config.gamma, config.scale)
    else:
        advantages = episode_advantages(rewards, config.scale)
    rows = [
        Row(sample, np.full(len(sample.ids), advantage), rollout, turn)
        for group, group_advantages in zip(groups, advantages, strict=True)
        for rollout, values in zip(group, group_advantages, strict=True)
        for turn, (sample, advantage) in enumerate(zip(rollout.samples, values, strict=True))
    ]
    return rows, [any(values.any() for values in group) for group in advantages]


def _distilled(groups: Sequence[Sequence[PlayedRollout]], teacher: TeacherLogprobs) -> tuple[list[Row], list[bool]]:
    """A row per turn, whatever its reward: log p_teacher - log p_student of each sampled token."""
    turns = [(rollout, turn) for group in groups for rollout in group for turn in range(len(rollout.samples))]
    samples = [rollout.samples[turn] for rollout, turn in turns]
    rows = [
        Row(sample, logprobs - np.asarray(sample.logprobs), rollout, turn)
        for sample, logprobs, (rollout, turn) in zip(samples, teacher(samples), turns, strict=True)
    ]
    return rows, [True] * len(groups)


def _strength(row: Row) -> float:
    return float(np.abs(row.advantage).mean())


def _mean_over_tokens(values: Sequence[np.ndarray]) -> float:
    return float(np.concatenate(values).mean()) if values else 0.0


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of one forward and backward, padded: what the trainer's loss takes."""

    rows: list[int]
    """Their places in `Batch.rows`; empty: one masked row in the place of a minibatch that has none."""
    share: float
    """Of the minibatch's rows."""
    tensors: dict[str, torch.Tensor]
    """n rows, P longest prompt, C longest answer: prompt_ids, prompt_mask [n, P] padded on the left; completion_ids,
    completion_mask, old_per_token_logps, advantages [n, C] padded on the right; num_items_in_batch []: trained tokens
    of the whole batch."""


def minibatches_of(rows: Sequence[Row], count: int, pad_id: int, seed: str, limit: ForwardLimit) -> list[list[Slice]]:
    """The batch in random order as `count` minibatches, however many rows there are, each of like-sized slices.

    Args:
        count: Optimiser steps; no row is dropped, and none is repeated.
        pad_id: Any valid id; padded positions are masked.
        seed: Of the order: equal seeds give equal minibatches, in a job that was resumed, too.
        limit: Of a slice.
    """
    tokens = torch.tensor(sum(len(row.sample.ids) for row in rows))
    chance = np.random.default_rng(list(seed.encode()))
    parts = np.array_split(chance.permutation(len(rows)), count)
    samples = [row.sample for row in rows]
    return [
        [
            Slice(indexes, len(indexes) / len(part), _padded([rows[i] for i in indexes], pad_id, tokens))
            for indexes in like_sized(samples, part.tolist(), limit)
        ]
        or [Slice([], 1.0, _masked(pad_id, tokens))]
        for part in parts
    ]


def _padded(rows: Sequence[Row], pad_id: int, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        **padded_ids([row.sample for row in rows], pad_id),
        "old_per_token_logps": right_padded([row.sample.logprobs for row in rows]),
        "advantages": right_padded([row.advantage for row in rows]),
        "num_items_in_batch": tokens,
    }


def _masked(pad_id: int, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """One row of which nothing is trained: its loss and its gradient are zero."""
    ids, zeros = torch.tensor([[pad_id]]), torch.zeros((1, 1))
    return {
        "prompt_ids": ids,
        "prompt_mask": torch.ones((1, 1), dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": torch.zeros((1, 1), dtype=torch.long),
        "old_per_token_logps": zeros,
        "advantages": zeros,
        "num_items_in_batch": tokens,
    }
