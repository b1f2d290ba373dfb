"""Rows of one forward: padded beside each other, or packed one behind the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100
"""Label of a position that is not trained."""


@dataclass(frozen=True, slots=True)
class Padded:
    """Collates rows to [B, T], the longest row's length, padded on the right."""

    pad_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        size, longest = len(rows), max(len(row["input_ids"]) for row in rows)
        ids_BT = torch.full((size, longest), self.pad_id, dtype=torch.long)
        mask_BT = torch.zeros((size, longest), dtype=torch.long)
        labels_BT = torch.full((size, longest), IGNORED, dtype=torch.long)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            ids_BT[i, :length] = torch.as_tensor(row["input_ids"])
            labels_BT[i, :length] = torch.as_tensor(row["labels"])
            mask_BT[i, :length] = 1
        return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}


@dataclass(frozen=True, slots=True)
class Packed:
    """Collates rows to few sequences [S, T] of many rows each.

    There is no attention mask: position ids start at 0 with every row, and from them transformers makes the mask in
    which no row sees another.
    """

    pad_id: int
    capacity: int | None
    """Tokens per sequence; None: one sequence, as FlashAttention wants it."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        bins = best_fit(lengths, self.capacity or sum(lengths))
        size, longest = len(bins), max(sum(lengths[i] for i in members) for members in bins)
        ids_ST = torch.full((size, longest), self.pad_id, dtype=torch.long)
        labels_ST = torch.full((size, longest), IGNORED, dtype=torch.long)
        positions_ST = torch.zeros((size, longest), dtype=torch.long)  # a pad is a row of its own
        for s, members in enumerate(bins):
            start = 0
            for i in members:
                end = start + lengths[i]
                ids_ST[s, start:end] = torch.as_tensor(rows[i]["input_ids"])
                labels_ST[s, start:end] = torch.as_tensor(rows[i]["labels"])
                labels_ST[s, start] = IGNORED  # the row before does not predict it
                positions_ST[s, start:end] = torch.arange(lengths[i])
                start = end
        return {"input_ids": ids_ST, "position_ids": positions_ST, "labels": labels_ST}


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of rows per sequence, none fuller than `capacity`: the longest row first, each where it fits best."""
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [b for b, free in enumerate(room) if free >= lengths[i]]
        if not fitting:
            bins.append([])
            room.append(capacity)
            fitting = [len(bins) - 1]
        best = min(fitting, key=lambda b: room[b])
        bins[best].append(i)
        room[best] -= lengths[i]
    return bins
