"""Where models come from: made from a random seed, or loaded from a folder or a hub.

`crafter-tiny` is a Qwen3 architecture of about 0.45 M parameters with a word tokenizer: small enough to train on two
CPU cores in minutes, and the code that trains it is the code that trains Qwen3-4B.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_utils import PreTrainedModel

from crafter_pipeline import tokens
from crafter_pipeline.errors import PipelineError
from crafter_pipeline.tokens import END_OF_TEXT, TINY, TINY_CONTEXT, TURN_END, chat_template

TINY_SHAPE: dict[str, Any] = dict(
    hidden_size=96,
    intermediate_size=288,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The word tokenizer over the vocabulary of every registered environment."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens.tiny_tokenizer(),
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        chat_template=chat_template(),
        model_max_length=TINY_CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_tiny(seed: int) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """An untrained `crafter-tiny`; equal seeds give equal weights."""
    tokenizer = tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=TINY_CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **TINY_SHAPE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    return model, tokenizer


def load_student(source: str, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, fp32 on CPU.

    Args:
        source: `crafter-tiny`, a folder of ours or Hugging Face's (a LoRA adapter's folder too), or a hub name.
        seed: For a model made here.

    Raises:
        PipelineError: when there are no weights at `source`.
    """
    if source == TINY:
        return make_tiny(seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if Path(source, "adapter_config.json").exists():
            from peft import AutoPeftModelForCausalLM

            model = AutoPeftModelForCausalLM.from_pretrained(source, dtype=torch.float32).merge_and_unload()
        else:
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError) as e:
        raise PipelineError(
            f"No weights for {source!r}: {str(e).splitlines()[0]} "
            f"Give a folder with weights, or serve a stand-in: `--alias {source}=crafter-tiny`."
        ) from e
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def use_cpu_threads(threads: int | None = None) -> None:
    """Give torch the machine's cores (or `threads`), quietly."""
    import os

    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))
