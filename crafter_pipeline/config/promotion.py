"""How a candidate is measured before it becomes champion."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from crafter_pipeline.config.base import FEWEST_SEEDS, GATE_SEEDS_START, HELD_OUT_SEEDS_START, SeedRange
from crafter_pipeline.config.play import EvaluateConfig


class GateSeeds(SeedRange):
    """Worlds of the gate: nobody trains on them, and they are not the held-out ones."""

    start: int = Field(default=GATE_SEEDS_START, ge=GATE_SEEDS_START, lt=HELD_OUT_SEEDS_START)
    """First seed."""
    count: int = Field(default=64, ge=FEWEST_SEEDS, le=HELD_OUT_SEEDS_START - GATE_SEEDS_START)
    """How many; fewer than six show nothing."""

    @model_validator(mode="after")
    def _end_of_the_gate(self) -> Self:
        if self.start + self.count > HELD_OUT_SEEDS_START:
            raise ValueError(
                f"{self.count} seeds from {self.start} on reach into the held-out ones, which judge and do not choose; "
                f"the gate ends before {HELD_OUT_SEEDS_START}"
            )
        return self


class PromotionConfig(EvaluateConfig):
    """How the candidate and the champion are asked, and on which worlds of the gate: both play all of them."""

    seeds: GateSeeds = GateSeeds()
    """Worlds of the gate, 950,000 to 999,999."""
    bootstrap: int = Field(default=10_000, ge=100)
    """Resamples behind the interval of each player; the one that decides has 10,000 always."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _of_any_range(cls, seeds: Any) -> Any:
        return seeds.model_dump() if isinstance(seeds, SeedRange) else seeds

    @model_validator(mode="after")
    def _no_baseline(self) -> Self:
        if self.baseline_seeds is not None:
            raise ValueError("baseline_seeds has no meaning here: both players play all of the seeds")
        return self
