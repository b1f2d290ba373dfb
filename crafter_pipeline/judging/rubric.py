"""What an episode is judged by, in the wire's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from crafter_pipeline.errors import FieldError

PROGRAMMATIC = "programmatic"
"""Names the judge without a model, wherever a chat model could be named."""
Aggregation = Literal["sum", "weighted_sum", "custom", "inherit"]


class Criterion(BaseModel):
    """One thing that is looked at; scored from 0 to 1."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    id: str = Field(min_length=1, max_length=200)
    description: str = ""
    weight: float = Field(default=1.0, gt=0)
    required: bool = False
    """A score of 0 makes the whole total 0."""


class Rubric(BaseModel):
    """Criteria and how their scores become one total."""

    model_config = ConfigDict(extra="allow", frozen=True)

    version: str = "1.0"
    goal_text: str = ""
    """What the player is after, for judges that read."""
    criteria: tuple[Criterion, ...] = Field(min_length=1)
    aggregation: Aggregation = "weighted_sum"
    """sum: of the scores. weighted_sum: the weighted mean, 0 to 1. inherit: weighted_sum. custom: a plug-in's own."""

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        ids = [c.id for c in self.criteria]
        twice = next((name for name in ids if ids.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the criterion {twice!r} is there twice")
        return self

    def total(self, scores: Mapping[str, float]) -> float:
        """One number of a score per criterion. FieldError for `custom`."""
        if self.aggregation == "custom":
            raise FieldError("aggregation", "custom needs a plug-in judge; send sum or weighted_sum")
        if any(c.required and scores[c.id] == 0.0 for c in self.criteria):
            return 0.0
        if self.aggregation == "sum":
            return sum(scores[c.id] for c in self.criteria)
        return sum(c.weight * scores[c.id] for c in self.criteria) / sum(c.weight for c in self.criteria)


@dataclass(frozen=True, slots=True)
class Rubrics:
    """The two rubrics of an environment; a missing one is not judged."""

    outcome: Rubric | None = None
    """Of the whole episode."""
    events: Rubric | None = None
    """Of each turn."""

    def only(self, *, outcome: bool, events: bool) -> Rubrics:
        """Those that are asked for."""
        return Rubrics(self.outcome if outcome else None, self.events if events else None)

    def to_wire(self) -> dict[str, Any]:
        """As `/info` shows them."""
        return {
            "outcome": None if self.outcome is None else self.outcome.model_dump(mode="json"),
            "events": None if self.events is None else self.events.model_dump(mode="json"),
        }


def read_rubric(value: Any, field: str) -> Rubric | None:
    """A rubric, or the wire's short form, a list of criteria. None or empty: none. FieldError names what is wrong."""
    if isinstance(value, Rubric):
        return value
    table = {"criteria": value} if isinstance(value, list | tuple) else value
    if table is None or (isinstance(table, Mapping) and not table.get("criteria")):
        return None
    if not isinstance(table, Mapping):
        raise FieldError(field, "send a list of criteria, or a rubric {version, goal_text, criteria, aggregation}")
    try:
        return Rubric.model_validate({k: v for k, v in table.items() if v is not None})
    except ValidationError as e:
        error = e.errors()[0]
        where = ".".join(map(str, (field, *error["loc"])))
        raise FieldError(where, error["msg"].removeprefix("Value error, ")) from None


def read_rubrics(value: Any, field: str = "rubric") -> Rubrics:
    """`{outcome, events}` (or `event`), as in `/info` and in requests. FieldError names what is wrong."""
    if not isinstance(value, Mapping):
        raise FieldError(field, "send a table with the rubrics outcome and events")
    events = "events" if value.get("events") else "event"
    rubrics = Rubrics(
        read_rubric(value.get("outcome"), f"{field}.outcome"), read_rubric(value.get(events), f"{field}.{events}")
    )
    if rubrics == Rubrics():
        raise FieldError(
            field, "it holds no criteria; send outcome or events, each a list of {id, description, weight}"
        )
    return rubrics
