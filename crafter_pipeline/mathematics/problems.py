"""A problem, the three splits, and which seed belongs to which."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from crafter_pipeline.config import DEV_SEEDS_START, HELD_OUT_SEEDS_START

SPLITS = ("train", "validation", "test")
"""Learn, choose, judge."""
_TENTHS = ("train",) * 8 + ("validation", "test")


@dataclass(frozen=True, slots=True)
class Problem:
    """One task."""

    text: str
    """As people write it."""
    words: str
    """The same in words of the tiny student, separated by blanks; of problems that were not made here: `text`."""
    answer: str
    """The solution. It stays with who asks the question."""


class Source(Protocol):
    """Where problems come from. Equal splits and numbers give equal problems."""

    def problem(self, split: str, number: int) -> Problem:
        """A problem of a split. DataError if there is no such split."""

    def size(self, split: str) -> int | None:
        """Different problems of a split; 0: there is no such split; None: not counted."""


def split_of(seed: int) -> str:
    """train below 900,000, validation (dev and gate) up to 1,000,000, test from there on."""
    if seed < DEV_SEEDS_START:
        return "train"
    return "validation" if seed < HELD_OUT_SEEDS_START else "test"


def split_by(key: str) -> str:
    """The split that owns whatever has this key: eight tenths train, one validation, one test."""
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return _TENTHS[int.from_bytes(digest) % 10]
