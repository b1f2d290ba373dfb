"""Where models come from: made from a random seed, or loaded from a folder, a GGUF file or the hub's cache.

`crafter-tiny` is a Qwen3 architecture of about 0.45 M parameters with a word tokenizer: small enough to train on two
CPU cores in minutes, and the code that trains it is the code that trains Qwen3-4B.

A model is loaded to sample from it (`load_student`: adapters merged) or to train it (`load_trainable`: adapters go on).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from crafter_pipeline import tokens
from crafter_pipeline.config.training import TrainingConfig
from crafter_pipeline.errors import ConfigError, PipelineError, suggest
from crafter_pipeline.model_names import student_size
from crafter_pipeline.tokens import END_OF_TEXT, TINY, TINY_CONTEXT, TURN_END, chat_template
from train_app.adapters import base_of, is_adapter
from train_app.model_shapes import shape_of
from train_app.workers.adapters import made_here
from train_app.workers.devices import Hardware, refuse_four_bit_on_mps
from train_app.workers.last_layer import with_last_layer


@dataclass(frozen=True, slots=True)
class Trainable:
    """A model as a trainer of TRL takes it."""

    model: PreTrainedModel | PeftModel
    """Weights in fp32 where they are trained; a PeftModel when an adapter goes on."""
    tokenizer: PreTrainedTokenizerBase
    peft_config: LoraConfig | None
    """The adapter that the trainer shall start; None: everything is trained, or an adapter goes on."""
    note: str | None = None
    """What a user may not expect, for a warning."""


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


def make_tiny(seed: int, name: str = TINY) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """An untrained `crafter-tiny`, or one of another size (`crafter-tiny-128x3`); equal seeds give equal weights."""
    tokenizer, shape = tiny_tokenizer(), shape_of(name)
    assert shape is not None
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=TINY_CONTEXT,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    return model, tokenizer


def load_student(
    source: str, seed: int = 0, hardware: Hardware | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model to sample from, adapters merged, and its tokenizer.

    Args:
        source: `crafter-tiny`, a folder of ours or Hugging Face's (an adapter's too), a GGUF file (`a/b.gguf`, or
            `FOLDER:b.gguf`), or the name of a hub model that lies in the cache.
        seed: For a model made here.
        hardware: Where to and in which dtype; None: fp32 on CPU.

    Raises:
        PipelineError: when there are no weights at `source`.
    """
    model = _whole_model(source, seed, hardware, hardware.dtype if hardware else torch.float32)
    return model, _tokenizer(source)


def load_trainable(source: str, config: TrainingConfig, hardware: Hardware) -> Trainable:
    """A model to train.

    fft trains all weights in fp32, an adapter's merged into its base. lora and qlora go on with an adapter's own
    weights, or start a new adapter on frozen weights in the hardware's dtype, for qlora in 4 bits.

    Args:
        source: As `load_student` takes it.

    Raises:
        ConfigError: no chat template, layers that cannot have an adapter, 4 bits on MPS.
        PipelineError: when there are no weights at `source`.
    """
    tokenizer = _tokenizer(source)
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{source}: its tokenizer has no chat template, so nobody knows how a conversation looks to this model. "
            "Take the instruct variant, or put the template into the model's folder as chat_template.jinja."
        )
    if config.train_kind == "fft":
        return Trainable(_whole_model(source, config.seed, hardware, torch.float32), tokenizer, None)
    four_bit = config.train_kind == "qlora"
    if four_bit:
        refuse_four_bit_on_mps(hardware)
    continued = is_adapter(source)
    base = base_of(source) if continued else source
    model = _base(base, config.seed, hardware, hardware.dtype, four_bit=four_bit)
    model.name_or_path = made_here(base, config.seed) if student_size(base) else base  # what peft records
    if continued:
        adapted = PeftModel.from_pretrained(model, source, is_trainable=True)
        adapted.peft_config["default"].base_model_name_or_path = model.name_or_path
        return Trainable(adapted, tokenizer, None, _difference(adapted.peft_config["default"], config))
    return Trainable(model, tokenizer, _adapter(model, config))


def parameters_of(source: str) -> int:
    """How many parameters a source has, its weights unread; an adapter counts with its base.

    Raises:
        PipelineError: when there is no model at `source`.
    """
    base = base_of(source) if is_adapter(source) else source
    config = None if student_size(base) else _model_config(base)
    with torch.device("meta"):
        model = make_tiny(0, base)[0] if config is None else AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters())


# --------------------------------------------------------------------------- adapters


@contextmanager
def full_precision(model: torch.nn.Module) -> Iterator[Callable[[torch.nn.Module], None]]:
    """Within, TRL may round the adapter of a 4-bit model to bf16; call what this yields with its model to undo it.

    A checkpoint's adapter is read as fp32, so a resumed job would train in other numbers than one that ran through;
    and steps smaller than bf16's would be lost.

        with full_precision(model) as undo:
            trainer = SFTTrainer(model, …)
            undo(trainer.model)
    """
    before = {
        name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad and _is_low_rank(name)
    }

    def undo(trained: torch.nn.Module) -> None:
        for name, p in trained.named_parameters():
            if p.requires_grad and _is_low_rank(name):
                p.data = before.get(name, p.data).to(p.device, torch.float32)

    yield undo


def _is_low_rank(name: str) -> bool:
    return ".lora_" in name


def _adapter(model: PreTrainedModel, config: TrainingConfig) -> LoraConfig:
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=_targets(model, config.lora_target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )


def _targets(model: PreTrainedModel, asked: tuple[str, ...]) -> list[str]:
    """The asked-for layers, each found in the model by the end of its name, the head left out of it."""
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    head_name = next((name for name, module in model.named_modules() if module is head), "lm_head")
    for target in asked:
        if target == head_name.rpartition(".")[2] or target == head_name:
            raise ConfigError(
                f"lora_target_modules: {target!r} is the head, whose weight the loss multiplies by directly (and which "
                "small models share with their embedding): an adapter on it would never be trained. Leave it out."
            )
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = sorted({name.rpartition(".")[2] for name in names} - {head_name.rpartition(".")[2]})
            raise ConfigError(f"lora_target_modules: no linear layer is called {target!r}; {suggest(target, known)}")
    return list(asked)


def _difference(adapter: Any, config: TrainingConfig) -> str | None:
    """A sentence about what was asked for and a continued adapter has differently."""
    kept = {"lora_rank": adapter.r, "lora_alpha": adapter.lora_alpha, "lora_dropout": adapter.lora_dropout}
    other = [f"{name} = {value}" for name, value in kept.items() if value != getattr(config, name)]
    if config.lora_target_modules and set(config.lora_target_modules) != set(adapter.target_modules):
        other.append(f"lora_target_modules = {sorted(adapter.target_modules)}")
    return f"The adapter goes on as it was made: {', '.join(other)}; train_kind fft would merge it." if other else None


# --------------------------------------------------------------------------- loading


def _whole_model(source: str, seed: int, hardware: Hardware | None, dtype: torch.dtype) -> PreTrainedModel:
    if not is_adapter(source):
        return _base(source, seed, hardware, dtype)
    model = _base(base_of(source), seed, hardware, dtype)
    with _named(source):
        merged = PeftModel.from_pretrained(model, source).merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    merged.requires_grad_(True)  # peft froze the base
    return merged


def _base(
    source: str, seed: int, hardware: Hardware | None, dtype: torch.dtype, *, four_bit: bool = False
) -> PreTrainedModel:
    """A model without adapters."""
    name, gguf = gguf_file(source)
    if four_bit and (student_size(source) or gguf):  # weights become 4-bit while they are loaded from a folder
        with tempfile.TemporaryDirectory(prefix="plain-") as folder:
            _base(source, seed, None, torch.float32).save_pretrained(folder)
            return _base(folder, seed, hardware, dtype, four_bit=True)
    if student_size(source):
        model: Any = with_last_layer(make_tiny(seed, source)[0])
        return model.to(device=hardware.device, dtype=dtype) if hardware else model
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    if hardware is not None:
        options["attn_implementation"] = _attention(_model_config(source), hardware)
        if hardware.device.type != "cpu":
            options["device_map"] = {"": hardware.device}
        if four_bit:
            options["quantization_config"] = _four_bits(hardware)
    with _named(source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True, **options)
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise PipelineError(f"{source}: {len(missing)} weights are missing, {missing[0]!r} for one. Fetch it again.")
    assert isinstance(model, PreTrainedModel)
    if gguf:  # its numbers are plain ones by now, and a model that is called quantised is neither trained nor saved
        quantizer: Any = model.hf_quantizer
        quantizer.remove_quantization_config(model)
    if four_bit:
        _keep_layout(model)
    return with_last_layer(model)


def _keep_layout(model: PreTrainedModel) -> None:
    """Compute alike in training and evaluation.

    On CPUs with bf16 products, bitsandbytes packs 4-bit weights anew for the first forward of a model in `eval()`. It
    fails where a layer's width is no multiple of 32 (inputs: of 64), and the packed weights stay when training goes on:
    no gradient passes through them, and multiplied out they are in the wrong order.
    """
    modules: Any = model.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _four_bits(hardware: Hardware) -> BitsAndBytesConfig:
    """NF4 weights that are computed with in the hardware's dtype."""
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=hardware.dtype)


def gguf_file(source: str) -> tuple[str, str | None]:
    """(folder or hub name, GGUF file in it) of `a/b.gguf` and `FOLDER:b.gguf`; (source, None) of any other source."""
    if not source.endswith(".gguf"):
        return source, None
    folder, colon, file = source.rpartition(":")
    if colon:
        return folder, file
    return str(Path(source).parent), Path(source).name


def _model_config(source: str) -> PreTrainedConfig:
    name, gguf = gguf_file(source)
    with _named(source):
        return AutoConfig.from_pretrained(name, **({"gguf_file": gguf} if gguf else {}))


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    if student_size(source):
        return tiny_tokenizer()
    name, gguf = gguf_file(source)
    if is_adapter(source) and not _has_tokenizer(source):  # adapters made elsewhere often come without
        return _tokenizer(base_of(source))
    with _named(source):
        tokenizer = AutoTokenizer.from_pretrained(name, **({"gguf_file": gguf} if gguf else {}))
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _has_tokenizer(folder: str) -> bool:
    return any(Path(folder, name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def _attention(config: PreTrainedConfig, hardware: Hardware) -> str:
    """The hardware's attention, or eager for an architecture that lacks it."""
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    flags = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
    has = getattr(architecture, flags.get(hardware.attention, ""), True)
    return hardware.attention if has else "eager"


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Turns what a loader raises into a sentence that names the source."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        first = next(iter(str(e).strip().splitlines()), repr(e))
        raise PipelineError(
            f"No weights for {source!r}: {first} Give a folder with weights, a GGUF file or a hub name that lies in "
            f"the cache, or serve a stand-in: `--alias {source}={TINY}`."
        ) from e
