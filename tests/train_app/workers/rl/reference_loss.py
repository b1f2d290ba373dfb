"""The update of RL in plain torch: what TRL must compute. Nothing here is fast, and nothing is padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from crafter_pipeline.config import RlConfig
from train_app.workers.rl.rows import Row

Logprobs = Callable[[Sequence[int], Sequence[int]], torch.Tensor]
"""(prompt ids, answer ids) -> [T] log-probabilities of the answer."""


def logprobs_of(model: torch.nn.Module, temperature: float = 1.0) -> Logprobs:
    """A model's, one row at a time."""

    def score(prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
        logits_TV = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        return (logits_TV / temperature).log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]

    return score


def reference_loss(
    rows: Sequence[Row], config: RlConfig, policy: Logprobs, start: Logprobs, answer_tokens: int
) -> torch.Tensor:
    """The loss of one minibatch that holds the whole batch."""
    terms, tokens = [], sum(len(row.sample.ids) for row in rows)
    for row in rows:
        new_T = policy(row.sample.prompt_ids, row.sample.ids)
        log_ratio_T = new_T - torch.tensor(row.sample.logprobs)
        if config.ratio == "sequence":
            log_ratio_T = log_ratio_T.mean().expand_as(log_ratio_T)
        ratio_T, advantage_T = log_ratio_T.exp(), torch.tensor(row.advantage, dtype=torch.float32)
        kl_weight_T = config.kl * ratio_T  # the answer was sampled by other weights: Deepseek-V3.2's unbiased estimate
        bounded_T = ratio_T.clamp(1 - config.clip_low, 1 + config.clip_high)
        if config.clip_cap is not None:
            ratio_T = ratio_T.clamp(max=config.clip_cap)
        loss_T = -torch.minimum(ratio_T * advantage_T, bounded_T * advantage_T)
        if config.kl:
            away_T = start(row.sample.prompt_ids, row.sample.ids).detach() - new_T
            loss_T = loss_T + kl_weight_T * (away_T.exp() - away_T - 1)
        terms.append(loss_T)
    if config.loss == "dapo":  # mean over all tokens
        return torch.cat(terms).sum() / tokens
    if config.loss == "grpo":  # mean of the means per turn
        return torch.stack([loss_T.mean() for loss_T in terms]).mean()
    return torch.cat(terms).sum() / (len(rows) * answer_tokens)  # sum over a constant length
