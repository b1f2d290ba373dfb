"""Which split a world belongs to: by its seed, so that no two rows of one world are in two splits."""

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
    key = f"{export.split_seed}:{environment}:{seed}".encode()
    drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) / 2**64
    if drawn < export.test_share:
        return "test"
    return "validation" if drawn < export.test_share + export.validation_share else "train"
