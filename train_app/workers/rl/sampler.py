"""Who samples the policy of an RL job: an engine of this process, or vLLM on CUDA, and how new weights reach it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoConfig

from crafter_pipeline.config import RlConfig
from train_app.adapters import base_of, is_adapter
from train_app.workers.devices import Hardware
from train_app.workers.inference.chat import ChatModel
from train_app.workers.inference.engine import Engine
from train_app.workers.inference.sampling import Sampler
from train_app.workers.inference.vllm import VllmEngine, VllmOptions, VllmServer, vllm_serves
from train_app.workers.inference.worker import context_of, end_ids
from train_app.workers.students import Trainable, load_student
from train_app.workers.weights import dense_weights

GPUS = "CUDA_VISIBLE_DEVICES"
ALONE_SHARE = 0.9
"""Of its memory, where a GPU only samples."""
WeightsOf = Callable[[torch.nn.Module], Mapping[str, torch.Tensor]]


class Policy:
    """The sampler's copy of the policy.

    Args:
        sampler: What samples; it is closed with the policy.
        model: Speaks for it.
        weights: What is sent of the trained model.
    """

    def __init__(self, sampler: Sampler, model: ChatModel, weights: WeightsOf) -> None:
        self.sampler, self.model, self._weights = sampler, model, weights
        self._published: int | None = None

    def publish(self, trained: torch.nn.Module, version: int) -> None:
        """Sample by these weights from now on; a version that is there already, after an evaluation, is not sent
        again: a version has one weight, and vLLM refuses its name."""
        if version != self._published:
            self.sampler.publish(self._weights(trained), version)
            self._published = version

    def close(self) -> None:
        """Stop sampling."""
        self.sampler.close()


def policy_of(
    source: str, trainable: Trainable, config: RlConfig, hardware: Hardware, folder: Path, gpus: str = ""
) -> Policy:
    """A sampler that starts from `source`: vLLM on CUDA where it is installed, else an engine of ours.

    Args:
        folder: The job's, for vLLM's log and for weights on their way to it.
        gpus: Those that only sample, see `split_gpus`; empty: vLLM shares the trainer's.

    Raises:
        ServiceError: vLLM did not start.
    """
    if vllm_serves(source, hardware.device):
        return _by_vllm(source, trainable, config, hardware, folder, gpus)
    served, _ = load_student(source, config.seed, hardware)
    tokenizer = trainable.tokenizer
    ends = end_ids(served, tokenizer)
    engine = Engine(served, ends, int(tokenizer.pad_token_id), max_batch=config.concurrency, seed=config.seed)
    return Policy(engine, ChatModel(engine, tokenizer, context_of(served.config, tokenizer)), dense_weights)


def _by_vllm(
    source: str, trainable: Trainable, config: RlConfig, hardware: Hardware, folder: Path, gpus: str
) -> Policy:
    """LoRA: its adapter is published; everything else as whole weights, with which vLLM is started anew each time."""
    base = base_of(source) if is_adapter(source) else source
    adapts = config.train_kind == "lora"
    adapter = _adapter_config(trainable) if adapts else None
    tokenizer, base_config = trainable.tokenizer, AutoConfig.from_pretrained(base)
    options = VllmOptions(
        context=context_of(base_config, tokenizer),
        dtype="bfloat16" if hardware.bf16 else "float32",
        lora_rank=None if adapter is None else adapter["r"],
        seed=config.seed,
    )
    if gpus:
        options = replace(options, gpus=gpus, gpu_share=ALONE_SHARE)
    server = VllmServer(base, options, folder / "vllm.log")
    server.start()
    engine = VllmEngine(
        server, base, end_ids(trainable.model, tokenizer), folder / "vllm-weights", adapter_config=adapter
    )
    weights = _adapter_weights if adapts else dense_weights
    return Policy(engine, ChatModel(engine, tokenizer, options.context), weights)


def _adapter_config(trainable: Trainable) -> dict[str, Any]:
    """peft's `adapter_config.json` of the adapter that trains."""
    model = trainable.model
    config = model.peft_config["default"] if isinstance(model, PeftModel) else trainable.peft_config
    told: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=sorted))  # type: ignore[union-attr]
    return told


def _adapter_weights(trained: torch.nn.Module) -> dict[str, torch.Tensor]:
    assert isinstance(trained, PeftModel)
    return get_peft_model_state_dict(trained)


def split_gpus() -> str:
    """The first GPU that this process may see trains; the others, which are returned, sample. Call it before CUDA is
    touched."""
    first, _, others = os.environ.get(GPUS, "").partition(",")
    if others:
        os.environ[GPUS] = first
    return others
