"""What every config is made of: strict, frozen models, and the seeds that may and may not be trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

TRAIN_SEEDS_END = 900_000
DEV_SEEDS_START = 900_000
GATE_SEEDS_START = 950_000
HELD_OUT_SEEDS_START = 1_000_000
FEWEST_SEEDS = 6
"""Fewer pairs show nothing, see `crafter_pipeline.evaluation`."""


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


def refuse_held_out(where: str, seeds: Iterable[int]) -> None:
    """Raise if a seed that is meant for judging is about to be trained on."""
    bad = [s for s in seeds if s >= HELD_OUT_SEEDS_START]
    if bad:
        raise ValueError(
            f"{where} contains held-out seed {bad[0]}; training seeds lie below {TRAIN_SEEDS_END}, "
            f"held-out ones from {HELD_OUT_SEEDS_START} on"
        )
