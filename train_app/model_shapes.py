"""How large a model is, read from its config.json or GGUF header: no weights, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crafter_pipeline.model_names import student_size
from crafter_pipeline.tokens import TINY_CONTEXT, tiny_tokenizer
from train_app.adapters import base_of, is_adapter


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder-only transformer, as far as memory and time depend on it."""

    layers: int
    hidden: int
    intermediate: int
    """Of one expert, where there are several."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    """Head and embedding share their weights."""
    experts: int = 1
    active_experts: int = 1
    """Per token."""
    context: int | None = None
    """Longest text in tokens, where the model says it."""

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of the linear layers of one block."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        feed_forward = ((self.hidden, self.intermediate),) * 2 + ((self.intermediate, self.hidden),)
        attention = ((self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden))
        return attention + feed_forward * self.experts

    @property
    def linear_parameters(self) -> int:
        """Of all blocks, without embedding and head."""
        return self.layers * sum(a * b for a, b in self.linears)

    @property
    def active_parameters(self) -> int:
        """What one token is multiplied by, without the head."""
        idle = 3 * self.hidden * self.intermediate * (self.experts - self.active_experts)
        return self.linear_parameters - self.layers * idle

    @property
    def parameters(self) -> int:
        """All; norms and biases are left out, they are a thousandth."""
        return self.linear_parameters + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter_parameters(self, rank: int, targets: tuple[str, ...] = ()) -> int:
        """Of LoRA on every linear layer, or on as many per block as are named."""
        sizes = sorted((a + b for a, b in self.linears), reverse=True)
        return self.layers * rank * sum(sizes[: len(targets)] if targets else sizes)


def student_shape(hidden: int, layers: int) -> Shape:
    """A student that is made here: Qwen3's proportions, heads of 32, at least four of them."""
    heads = max(4, hidden // 64 * 2)
    words = tiny_tokenizer().get_vocab_size()
    return Shape(layers, hidden, 3 * hidden, heads, heads // 2, 32, words, tied=True, context=TINY_CONTEXT)


def shape_of(source: str) -> Shape | None:
    """The shape of `crafter-tiny`, a folder (an adapter's base), a GGUF file or a model in the hub's cache; None: its
    files do not say it in words that are known here."""
    if (size := student_size(source)) is not None:
        return student_shape(*size)
    if is_adapter(source):
        return shape_of(base_of(source))
    if source.endswith(".gguf"):
        return _of_gguf(source)
    path = Path(source, "config.json") if Path(source).is_dir() else _cached(source)
    if path is None or not path.is_file():
        return None
    try:
        return shape_in(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def is_at_hand(source: str) -> bool:
    """Whether anything lies at `source`, named as for `shape_of`; its weights are not looked at."""
    folder, colon, name = source.rpartition(":") if source.endswith(".gguf") else ("", "", source)
    return (
        student_size(source) is not None
        or (Path(folder, name) if colon else Path(source)).exists()
        or _cached(source) is not None
    )


def shape_in(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a `config.json` tells, or None, see `shape_of`."""
    try:
        return _of_config(config)
    except (ValueError, KeyError, TypeError):
        return None


def _of_config(config: Mapping[str, Any]) -> Shape:
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    experts = int(config.get("num_experts") or config.get("num_local_experts") or 1)
    return Shape(
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        intermediate=int((config.get("moe_intermediate_size") if experts > 1 else None) or config["intermediate_size"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", True)),
        experts=experts,
        active_experts=int(config.get("num_experts_per_tok") or 1) if experts > 1 else 1,
        context=int(config.get("max_position_embeddings") or 0) or None,
    )


def _of_gguf(source: str) -> Shape | None:
    try:
        import gguf
    except ImportError:
        return None
    folder, colon, name = source.rpartition(":")
    path = Path(folder, name) if colon else Path(source)
    try:
        reader = gguf.GGUFReader(str(path))
        told = {key.partition(".")[2]: field for key, field in reader.fields.items()}
        number = {key: int(told[key].contents()) for key in told if isinstance(told[key].contents(), int)}
        tensors = {tensor.name for tensor in reader.tensors}
        hidden, heads = number["embedding_length"], number["attention.head_count"]
        vocabulary = number.get("vocab_size") or len(reader.fields["tokenizer.ggml.tokens"].contents())
        return Shape(
            layers=number["block_count"],
            hidden=hidden,
            intermediate=number.get("expert_feed_forward_length") or number["feed_forward_length"],
            heads=heads,
            kv_heads=number.get("attention.head_count_kv", heads),
            head_dim=number.get("attention.key_length", hidden // heads),
            vocabulary=vocabulary,
            tied="output.weight" not in tensors,
            experts=number.get("expert_count", 1),
            active_experts=number.get("expert_used_count", 1),
            context=number.get("context_length"),
        )
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _cached(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name that the hub could have
        return None
    return Path(found) if isinstance(found, str) else None
