"""Log-probabilities of answers by a model: what RL's update, its KL and distillation's teacher compute alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers.modeling_utils import PreTrainedModel

from crafter_pipeline.config.training import TrainingConfig
from train_app.forward_size import ForwardLimit, activation_bytes, checkpoints_activations
from train_app.model_shapes import shape_in
from train_app.workers.devices import Hardware
from train_app.workers.inference.sampling import Sample
from train_app.workers.last_layer import ask_for_last, has_last_layer


def limit_of(
    model: PreTrainedModel | PeftModel, config: TrainingConfig | None = None, hardware: Hardware | None = None
) -> ForwardLimit:
    """How large a forward of a model may be.

    Args:
        config, hardware: What it trains with; None: no backward pass follows.
    """
    embeddings: Any = model.get_input_embeddings()
    vocabulary = int(embeddings.num_embeddings)
    shape = shape_in(model.config.to_dict())
    if config is None or hardware is None or shape is None:
        return ForwardLimit.of(vocabulary)
    checkpointing = checkpoints_activations(config, hardware.device.type)
    return ForwardLimit.of(vocabulary, activation_bytes(config, shape, bf16=hardware.bf16, checkpointing=checkpointing))


def like_sized(samples: Sequence[Sample], indexes: Sequence[int], limit: ForwardLimit) -> list[list[int]]:
    """Cut some of the samples into slices of like length, each within the limit, or of a single sample."""
    slices: list[list[int]] = []
    longest_prompt = longest_answer = 0
    for i in sorted(indexes, key=lambda i: (len(samples[i].prompt_ids), len(samples[i].ids))):
        prompt, answer = len(samples[i].prompt_ids), len(samples[i].ids)
        wider = max(longest_prompt, prompt), max(longest_answer, answer)
        if slices and limit.holds(len(slices[-1]) + 1, *wider):
            slices[-1].append(i)
            longest_prompt, longest_answer = wider
        else:
            slices.append([i])
            longest_prompt, longest_answer = prompt, answer
    return slices


def padded_ids(samples: Sequence[Sample], pad_id: int) -> dict[str, torch.Tensor]:
    """prompt_ids, prompt_mask [n, P] padded on the left; completion_ids, completion_mask [n, C] on the right."""
    prompts, answers = [s.prompt_ids for s in samples], [s.ids for s in samples]
    P, C = max(map(len, prompts)), max(map(len, answers))
    return {
        "prompt_ids": torch.tensor([[*[pad_id] * (P - len(p)), *p] for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (P - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": torch.tensor([[*a, *[pad_id] * (C - len(a))] for a in answers]),
        "completion_mask": torch.tensor([[1] * len(a) + [0] * (C - len(a)) for a in answers]),
    }


def right_padded(values: Sequence[Any]) -> torch.Tensor:
    """Rows of floats as [n, longest], zeros behind."""
    padded_NC = np.zeros((len(values), max(map(len, values))), dtype=np.float32)
    for i, row in enumerate(values):
        padded_NC[i, : len(row)] = row
    return torch.from_numpy(padded_NC)


def score(
    model: torch.nn.Module, ids_NL: torch.Tensor, mask_NL: torch.Tensor, length: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies [N, C] of the last `length` = C tokens, over the full vocabulary, in fp32.

    The head scores the answers alone: of 80 tokens of a turn, 75 are prompt.
    """
    wanted = ask_for_last(has_last_layer(model), ids_NL.size(0), ids_NL.size(1), length + 1, ids_NL.device)
    logits = model(input_ids=ids_NL, attention_mask=mask_NL, use_cache=False, **wanted).logits
    logp_NCV = torch.log_softmax(logits[:, :-1].float() / temperature, -1)
    logp_NC = logp_NCV.gather(-1, ids_NL[:, -length:, None])[..., 0]
    with torch.no_grad():
        entropy_NC = -(logp_NCV.exp() * logp_NCV).sum(-1)
    return logp_NC, entropy_NC
