"""A number that is measured, and its goal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of `latest.json`."""

    name: str
    """`<subject>.<what>`: its key in the results."""
    what: str
    """For the table, in a few words."""
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def goal(self) -> str:
        """`≥ 80×`; empty where there is none."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g} {self.unit}".strip()
        return f"≤ {self.at_most:g} {self.unit}".strip() if self.at_most is not None else ""

    def met(self, value: float | None) -> bool | None:
        """Whether the goal is reached; None without a goal or a value."""
        if value is None or not self.goal:
            return None
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)
