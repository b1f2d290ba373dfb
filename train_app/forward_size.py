"""What a training forward holds in memory, and how large one of RL may be. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from crafter_pipeline.config.training import TrainingConfig
from train_app.model_shapes import Shape

FORWARD_ROWS = 64
FORWARD_TOKENS = 8192
"""Beyond it, a forward of any model is fast enough."""
FORWARD_BYTES = 2 << 30
"""Activations of a forward. Of 135 M parameters in fp32, 2 GiB are about 900 tokens, with checkpointing 8192."""
FORWARD_SCORES = 1 << 26
"""Answer positions x vocabulary of a forward; a position's scores are held four times over in fp32: 1 GiB."""


@dataclass(frozen=True, slots=True)
class ForwardLimit:
    """What a forward of several rows stays within; a single row may be longer. All with padding."""

    rows: int = FORWARD_ROWS
    tokens: int = FORWARD_TOKENS
    answers: int = FORWARD_TOKENS
    """Positions that reach the head."""

    @classmethod
    def of(cls, vocabulary: int, bytes_per_token: int = 0) -> Self:
        """The limit of a model.

        Args:
            bytes_per_token: That the backward pass needs; 0: there is none.
        """
        tokens = min(FORWARD_TOKENS, FORWARD_BYTES // max(bytes_per_token, 1))
        return cls(FORWARD_ROWS, max(1, tokens), max(1, FORWARD_SCORES // max(vocabulary, 1)))

    def holds(self, rows: int, prompt: int, answer: int) -> bool:
        """Whether a forward of so many rows, each padded to these lengths, stays within."""
        return rows <= self.rows and rows * (prompt + answer) <= self.tokens and rows * answer <= self.answers


def checkpoints_activations(config: TrainingConfig, device: str) -> bool:
    """Whether activations are computed twice on this device (cpu, mps, cuda)."""
    asked = config.gradient_checkpointing
    return device == "cuda" if asked is None else asked


def activation_bytes(config: TrainingConfig, shape: Shape, *, bf16: bool, checkpointing: bool) -> int:
    """What the backward pass needs of a token; with checkpointing a row per layer, and one block at a time.

    Attention matrices are never written out, on a CPU neither.
    """
    number = 2 if bf16 else 4
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # Per token and layer: both norms' inputs and outputs, q, k, v before and after their norms and turns, attention's
    # output, and the feed-forward's gate, its activation, up, and their product.
    block = number * (
        6 * shape.hidden + 4 * (queries + 2 * keys) + queries + 5 * shape.intermediate * shape.active_experts
    )
    if config.train_kind != "fft":
        block += number * len(shape.linears[:7]) * (shape.hidden + config.lora_rank)  # what the adapters' inputs keep
    return number * shape.hidden * shape.layers + block if checkpointing else block * shape.layers
