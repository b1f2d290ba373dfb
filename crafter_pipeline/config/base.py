"""What every config is made of: strict, frozen models, and the seeds that may and may not be trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field

Split = Literal["train", "dev", "gate", "held_out"]
"""Which worlds: to learn from, to choose by, to promote by, to judge by."""

TRAIN_SEEDS_END = 900_000
DEV_SEEDS_START = 900_000
GATE_SEEDS_START = 950_000
HELD_OUT_SEEDS_START = 1_000_000
SPLIT_STARTS: dict[Split, int] = dict(
    zip(get_args(Split), (0, DEV_SEEDS_START, GATE_SEEDS_START, HELD_OUT_SEEDS_START), strict=True)
)
"""Where each split's seeds begin, ascending."""
FEWEST_SEEDS = 6
"""Fewest shared seeds that can settle anything: below six, even a sign test that wins on every seed stays above
p = 0.05 (two-sided, 2 · 2⁻⁵ = 0.0625), while a percentile interval of so few values is far too narrow."""


class Config(BaseModel):
    """Frozen, strict, documented by the docstring under each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    def digest(self) -> str:
        """Twelve hex digits that change when any value changes."""
        return digest_of(self.model_dump(mode="json"))


C = TypeVar("C", bound=BaseModel)


class SeedRange(Config):
    """`count` seeds from `start` on: start, start+1, …"""

    start: int = Field(default=0, ge=0)
    """First seed."""
    count: int = Field(default=1, ge=1, le=1_000_000)
    """How many."""

    @property
    def seeds(self) -> range:
        return range(self.start, self.start + self.count)


def digest_of(value: Any) -> str:
    """Twelve hex digits of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]


def split_of(seed: int) -> Split:
    """The split that a world seed belongs to."""
    return next((name for name, start in reversed(SPLIT_STARTS.items()) if seed >= start), "train")


def one_split(where: str, seeds: Iterable[int]) -> Split | None:
    """The split that all of these belong to; None: there are none. Raises ValueError where they are of several."""
    first: dict[Split, int] = {}
    for seed in seeds:
        first.setdefault(split_of(seed), seed)
    if len(first) > 1:
        named = " and ".join(f"{seed} ({split})" for split, seed in first.items())
        raise ValueError(
            f"{where} mixes splits: {named}. What was trained on, chosen by and judged by are three numbers: evaluate "
            "them apart"
        )
    return next(iter(first), None)


def refuse_held_out(where: str, seeds: Iterable[int]) -> None:
    """Raise if a seed that is meant for judging is about to be trained on."""
    bad = [s for s in seeds if s >= HELD_OUT_SEEDS_START]
    if bad:
        raise ValueError(
            f"{where} contains held-out seed {bad[0]}; training seeds lie below {TRAIN_SEEDS_END}, "
            f"held-out ones from {HELD_OUT_SEEDS_START} on"
        )
