"""Which split a world belongs to, and whether its rows keep their thoughts: by its seed, so that no two rows of one
world are in two splits, and all rows of a world are of one kind."""

from __future__ import annotations

import hashlib
from typing import Literal

from crafter_pipeline.config import ExportConfig

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_of(environment: str | None, seed: int | None, export: ExportConfig) -> Split:
    """The split of a world. It depends on nothing else: more traces never move a world to another split.

    A rollout without a seed is for training: that it is not the world of a test row cannot be known.
    """
    if seed is None:
        return "train"
    drawn = _drawn(f"{export.split_seed}:{environment}:{seed}")
    if drawn < export.test_share:
        return "test"
    return "validation" if drawn < export.test_share + export.validation_share else "train"


def keeps_thoughts(environment: str | None, seed: int | None, export: ExportConfig) -> bool:
    """Whether the rows of a world keep their thoughts; those of a rollout without a seed do."""
    return seed is None or _drawn(f"thoughts:{export.split_seed}:{environment}:{seed}") < export.thinking_share


def _drawn(key: str) -> float:
    """At least 0, below 1."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64
