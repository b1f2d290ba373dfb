"""The weights an RL job needs beside those it trains: the start model's for the KL, and the sampler's copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel


class StartWeights:
    """A frozen copy of the weights that train: the start model, whatever trains.

    With full fine-tuning that is the whole model, with an adapter the adapter alone; a new adapter starts at zero, one
    that is continued where its training ended. Both cases are the same here, and the copy is never saved.

    Args:
        model: Before any step, and before a checkpoint is loaded.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._start = [p.detach().clone() for p in self._parameters]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model has its start weights; no gradient may be computed."""
        self._swap()
        try:
            with torch.no_grad():
                yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for i, parameter in enumerate(self._parameters):
            parameter.data, self._start[i] = self._start[i], parameter.data


@contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Within, dropout is off, and nothing else is as in `model.eval()`: gradient checkpointing stays."""
    on = [module for module in model.modules() if isinstance(module, torch.nn.Dropout) and module.training]
    for module in on:
        module.eval()
    try:
        yield
    finally:
        for module in on:
            module.train()


@torch.no_grad()
def dense_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The policy as one plain model's state dict: a LoRA adapter is added to the layers it belongs to.

    A base in 4 bits is multiplied out, so that the sampler computes with the weights that the trainer sees.
    """
    if not isinstance(model, PeftModel):
        return model.state_dict()
    base = model.get_base_model()
    weights: dict[str, torch.Tensor] = {}
    for name, value in base.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if ".lora_" in name or ".weight." in name:  # `….weight.absmax` and the like say how 4 bits are scaled
            continue
        layer, below, _ = owner.partition(".base_layer")
        if leaf == "weight":
            value = _plain(base.get_submodule(owner).weight)
            if below:
                adapted: Any = base.get_submodule(layer)
                value = value + adapted.get_delta_weight("default")
        weights[f"{layer}.{leaf}"] = value
    return weights


def _plain(weight: Any) -> torch.Tensor:
    """A layer's weight in floating point."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight  # type: ignore[no-any-return]
    from bitsandbytes.functional import dequantize_4bit

    plain: torch.Tensor = dequantize_4bit(weight.data, state)
    return plain
