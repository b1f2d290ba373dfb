"""Tables that recipes of fine-tuning and of reinforcement learning share."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel, Field

from crafter_pipeline.recipes.base import Recipe


class Algorithm(Recipe):
    """[algorithm]: what kind of job it is, and by which method."""

    type: Literal["offline", "online"] | None = None
    """offline: fine-tuning; online: reinforcement learning."""
    method: Literal["sft", "supervised_finetune", "policy_gradient", "ppo", "gspo"] | None = None
    """sft or supervised_finetune; policy_gradient, ppo or gspo."""
    variety: str | None = None
    """fft, lora or qlora; gspo, grpo, dapo, … ."""


class Topology(Recipe):
    """[topology], [compute.topology]: which GPUs do what."""

    type: str | None = None
    gpus_for_vllm: int | None = Field(default=None, ge=0)
    gpus_for_training: int | None = Field(default=None, ge=0)
    gpus_for_ref: int | None = Field(default=None, ge=0)
    tensor_parallel: int | None = Field(default=None, ge=1)
    reference_placement: str | None = None


class Compute(Recipe):
    """[compute]: the hardware that is asked for."""

    gpu_type: str | None = None
    gpu_count: int | None = Field(default=None, ge=0)
    nodes: int | None = Field(default=None, ge=1)
    topology: Topology | None = None


class Lora(Recipe):
    """[lora], [training.lora]: an adapter."""

    r: int | None = Field(default=None, ge=1)
    rank: int | None = Field(default=None, ge=1)
    """Another word for r."""
    alpha: int | None = Field(default=None, ge=1)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    target_modules: list[str] | str | None = None
    """Layers, or "all-linear"."""


class Policy(Recipe):
    """[policy]: the model, how it is sampled and trained; it may stand in place of [model]."""

    model_name: str | None = None
    """A base model."""
    source: str | None = None
    """A trained model."""
    model: str | None = None
    """The same model as in [model], or one by the form of its name."""
    trainer_mode: Literal["full", "lora", "qlora"] | None = None
    label: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = None
    repetition_penalty: float | None = Field(default=None, gt=0)
    stop_sequences: list[str] | None = None
    inference_url: str | None = None


def optional_fields(model: type[BaseModel], *, but: Collection[str] = ()) -> dict[str, Any]:
    """Every field of a config but some, each of which may be left out: for `pydantic.create_model`."""
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if name not in but:
            optional = copy.copy(info)
            optional.default, optional.default_factory = None, None
            fields[name] = (info.annotation | None, optional)  # type: ignore[operator]
    return fields
