"""The numbers of an RL iteration: of its rollouts, of its rows, of its update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch

from train_app.samples import Rules, is_clipped
from train_app.workers.rl.rows import Batch, Slice
from train_app.workers.rollouts.player import PlayedRollout


def rollout_metrics(groups: Sequence[Sequence[PlayedRollout]]) -> dict[str, float]:
    """Of what the rollouts are like; how they were played, their player tells (`BatchStats`)."""
    rollouts = [rollout for group in groups for rollout in group]
    if not rollouts:
        return {}
    rewards = np.array([sum(r.turn_rewards) for r in rollouts])
    turns = [len(r.samples) for r in rollouts]
    samples = [sample for r in rollouts for sample in r.samples]
    calls = max(len(samples), 1)
    told = {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "reward_min": float(rewards.min()),
        "reward_max": float(rewards.max()),
        "achievements": fmean(len(r.achievements) for r in rollouts),
        "turns": float(len(samples)),
        "turns_per_rollout": fmean(turns),
        "env_steps_per_rollout": fmean(r.length_steps for r in rollouts),
        "sampled_tokens": float(sum(len(s.ids) for s in samples)),
        "tokens_per_turn": sum(len(s.ids) for s in samples) / calls,
        "prompt_tokens_per_turn": sum(len(s.prompt_ids) for s in samples) / calls,
    }
    judged = {
        "env_reward": [sum(r.env_rewards) for r in rollouts if r.env_rewards is not None],
        "outcome_score": [r.outcome_score for r in rollouts if r.outcome_score is not None],
        "event_score": [r.event_score for r in rollouts if r.event_score is not None],
    }
    return told | {name: fmean(values) for name, values in judged.items() if values}


def batch_metrics(batch: Batch) -> Mapping[str, float]:
    """Of the rows that are trained, and of what was left out."""
    told = {
        "rows": float(len(batch.rows)),
        "tokens": float(sum(len(row.sample.ids) for row in batch.rows)),
        "stale_rows": float(batch.stale),
        "zero_variance_groups": float(batch.zero_variance_groups),
    }
    return told if batch.reverse_kl is None else told | {"reverse_kl": batch.reverse_kl}


@dataclass(frozen=True, slots=True)
class Seen:
    """A row as its minibatch saw it."""

    minibatch: int
    logprobs_T: np.ndarray
    start_logprobs_T: np.ndarray | None


class UpdateMetrics:
    """Collects what the slices of one iteration tell: means over trained tokens, not over slices.

    Args:
        rules: Of the loss.
        rows: How many are trained.
        sampled_by_these: Whether the sampler had the weights with which the iteration begins.
    """

    def __init__(self, rules: Rules, rows: int, *, sampled_by_these: bool = True) -> None:
        self._sampled_by_these = sampled_by_these
        self._rules = rules
        self._sums: dict[str, float] = {}
        self._tokens = 0
        self._first_sum, self._first_tokens, self._first_max = 0.0, 0, 0.0
        self._ratio_max = 0.0
        self.grad_norms: list[float] = []
        """Of each optimiser step, before clipping."""
        self.seen: list[Seen | None] = [None] * rows

    def add(
        self,
        part: Slice,
        minibatch: int,
        inputs: Mapping[str, torch.Tensor],
        logp_NC: torch.Tensor,
        entropy_NC: torch.Tensor,
    ) -> None:
        """A slice, after its forward and before its step."""
        if not part.rows:
            return
        mask_NC = inputs["completion_mask"].bool()
        log_ratio_NC = (logp_NC - inputs["old_per_token_logps"]) * mask_NC
        # Before the first step of an iteration trainer and sampler have equal weights. What differs now is not the
        # policy: it is the two computations, and no clipping has hidden it yet.
        if minibatch == 0 and self._sampled_by_these:
            difference_NC = log_ratio_NC.abs()
            self._first_sum += float(difference_NC.sum())
            self._first_max = max(self._first_max, float(difference_NC.max()))
            self._first_tokens += int(mask_NC.sum())
        if self._rules.ratio == "sequence":
            mean_N1 = log_ratio_NC.sum(1, keepdim=True) / mask_NC.sum(1, keepdim=True)
            log_ratio_NC = mean_N1.expand_as(log_ratio_NC)
        ratio_NC, advantage_NC = log_ratio_NC.exp(), inputs["advantages"]
        clipped_NC = is_clipped(ratio_NC, advantage_NC, self._rules)
        values = {
            "entropy": entropy_NC,
            "clip_fraction": clipped_NC,
            "clip_fraction_low": clipped_NC & (ratio_NC < 1),
            "clip_fraction_high": clipped_NC & (ratio_NC > 1),
            "policy_kl": ratio_NC - 1 - log_ratio_NC,
        }
        start_NC = inputs.get("ref_per_token_logps")
        if start_NC is not None:
            away_NC = start_NC - logp_NC
            values["kl"] = away_NC.exp() - away_NC - 1
        for name, value_NC in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float((value_NC * mask_NC).sum())
        self._ratio_max = max(self._ratio_max, float(ratio_NC[mask_NC].max()))
        self._tokens += int(mask_NC.sum())
        self._see(part, minibatch, mask_NC, logp_NC, start_NC)

    def _see(
        self,
        part: Slice,
        minibatch: int,
        mask_NC: torch.Tensor,
        logp_NC: torch.Tensor,
        start_NC: torch.Tensor | None,
    ) -> None:
        lengths_N = mask_NC.sum(1).tolist()
        logps, starts = logp_NC.float().cpu().numpy(), None if start_NC is None else start_NC.float().cpu().numpy()
        for i, (row, length) in enumerate(zip(part.rows, lengths_N, strict=True)):
            self.seen[row] = Seen(minibatch, logps[i, :length], None if starts is None else starts[i, :length])

    def metrics(self) -> dict[str, float]:
        """policy_kl is from the sampler's policy, kl from the start model."""
        told = dict(_means(self._sums, self._tokens))
        if self._tokens:
            told["ratio_max"] = self._ratio_max
        if self._first_tokens:
            told["logprob_diff_mean"] = self._first_sum / self._first_tokens
            told["logprob_diff_max"] = self._first_max
        if self.grad_norms:
            told |= {"grad_norm": fmean(self.grad_norms), "grad_norm_max": max(self.grad_norms)}
        return told


def _means(sums: Mapping[str, float], count: int) -> Iterable[tuple[str, float]]:
    return ((name, value / count) for name, value in sums.items()) if count else ()
