"""What is counted while a dataset is written, and what it amounts to."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from crafter_pipeline.config import HELD_OUT_SEEDS_START, TRAIN_SEEDS_END
from crafter_pipeline.dataset.manifest import Histogram
from crafter_pipeline.dataset.selection import SelectedRollout, SelectedTurn

NO_GOAL = "none"
BINS = 20


@dataclass(slots=True)
class Tally:
    """Counts over the rows that were written."""

    unlocks: Counter[str] = field(default_factory=Counter)
    goals: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    providers: Counter[str] = field(default_factory=Counter)
    environments: Counter[str] = field(default_factory=Counter)
    parse_failures: int = 0
    lengths: array[int] = field(default_factory=lambda: array("q"))
    """Of each row, in tokens or characters."""
    rollouts: dict[tuple[int, str], SelectedRollout] = field(default_factory=dict)
    """Those with a row."""

    def add(self, turns: Sequence[SelectedTurn], length: int) -> None:
        """Count a row; a conversation holds all turns of its rollout."""
        rollout = turns[0].rollout
        self.rollouts[rollout.source, rollout.session_id] = rollout
        self.lengths.append(length)
        for turn in turns:
            self.unlocks.update(turn.unlocked)
            self.parse_failures += turn.parse_failure is not None
        self.goals.update({turn.goal or NO_GOAL for turn in turns})
        self.models[turns[0].model or "unknown"] += 1
        self.providers[turns[0].provider or "unknown"] += 1
        self.environments[rollout.environment or "unknown"] += 1

    def facts(self) -> dict[str, Any]:
        """The counts as fields of the manifest."""
        rollouts = list(self.rollouts.values())
        rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
        seeds = self.seeds()
        return {
            "rollouts": len(rollouts),
            "mean_reward": math.fsum(rewards) / len(rewards) if rewards else 0.0,
            "achievements": _sorted(Counter(name for rollout in rollouts for name in rollout.achievements)),
            "unlocks": _sorted(self.unlocks),
            "goals": _sorted(self.goals),
            "models": _sorted(self.models),
            "providers": _sorted(self.providers),
            "environments": _sorted(self.environments),
            "parse_failures": self.parse_failures,
            "seeds": {
                "count": len(seeds),
                "min": seeds[0] if seeds else None,
                "max": seeds[-1] if seeds else None,
                "ranges": _ranges(seeds),
            },
            "rewards": histogram("episode return", rewards),
        }

    def seeds(self) -> list[int]:
        """Different world seeds, ascending."""
        return sorted({rollout.seed for rollout in self.rollouts.values() if rollout.seed is not None})

    def warnings(self) -> Iterator[str]:
        """What a user of the dataset must know about its worlds and answers."""
        spoiled = [seed for seed in self.seeds() if TRAIN_SEEDS_END <= seed < HELD_OUT_SEEDS_START]
        if spoiled:
            yield (
                f"{len(spoiled)} dev or gate seeds (from {spoiled[0]} on) are among the examples: "
                "checkpoints chosen on dev seeds will look better than they are."
            )
        unknown = sum(rollout.seed is None for rollout in self.rollouts.values())
        if unknown:
            yield f"{unknown} rollouts have no seed: that they are not held-out ones cannot be checked."
        if self.parse_failures:
            yield (
                f"{self.parse_failures} answers could not be read by their environment and are examples all the same; "
                "turns.drop_parse_failures leaves them out."
            )


def histogram(unit: str, values: Sequence[float]) -> Histogram:
    """Up to `BINS` equal bins; few different whole numbers get a bin each. No values: no bins."""
    if not len(values):
        return Histogram(unit, (), ())
    low, high = float(min(values)), float(max(values))
    whole = all(float(v).is_integer() for v in values)
    if whole and high - low < BINS:
        edges = np.arange(low, high + 2)
    else:
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts, _ = np.histogram(np.asarray(values, dtype=float), edges)
    return Histogram(unit, tuple(edges.tolist()), tuple(counts.tolist()))


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _ranges(seeds: Sequence[int]) -> list[list[int]]:
    ranges: list[list[int]] = []
    for seed in seeds:
        if ranges and ranges[-1][1] == seed - 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ranges
