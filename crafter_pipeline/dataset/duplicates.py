"""Rows that say again what an earlier row said."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from rensa import RMinHash, RMinHashLSH

SIMILARITY = 0.9
"""Jaccard similarity of word pairs from which on two prompts count as one."""
PERMUTATIONS, BANDS = 64, 8
"""MinHash finds 99 % of the pairs at the threshold; each find is then compared exactly."""


class NearDuplicates:
    """Rows with the same answer on prompts that hardly differ, e.g. in a step counter or one field of the map."""

    def __init__(self) -> None:
        self._index = RMinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS, num_bands=BANDS)
        self._kept: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, prompt: str, answer: str) -> bool:
        """Whether the row is new. Only new rows are remembered: a chain of small steps does not end in one row.

        Args:
            prompt: What the model acted on.
            answer: What the row teaches; rows with different answers are never alike.
        """
        shingles = list(_shingles(prompt, answer))
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=0)
        sketch.update(shingles)
        hashes = np.unique(np.array([hash(s) for s in shingles], dtype=np.int64))
        if any(_similarity(hashes, self._kept[i]) >= SIMILARITY for i in self._index.query(sketch)):
            return False
        self._index.insert(len(self._kept), sketch)
        self._kept.append(hashes)
        return True


def _shingles(prompt: str, answer: str) -> Iterator[str]:
    """Neighbouring words, each with the answer, so that rows with different answers share none."""
    mark = f"{zlib.crc32(answer.encode('utf-8', 'replace')):x}"
    words = prompt.split()
    for first, second in zip(["", *words], [*words, ""], strict=True):
        yield f"{mark} {first} {second}"


def _similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard similarity of two sorted sets of hashes."""
    shared = np.intersect1d(a, b, assume_unique=True).size
    return shared / (a.size + b.size - shared)
