"""What a judge says of an episode, and how that becomes reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from crafter_pipeline.contracts import Rollout
from crafter_pipeline.judging.rubric import Rubric, Rubrics


class Score(NamedTuple):
    """One criterion's score, 0 to 1, and why."""

    value: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Scorecard:
    """The scores of a turn or an episode."""

    scores: Mapping[str, Score]
    """By criterion."""
    total: float
    summary: str = ""
    rubric: Rubric | None = None
    """None: a plug-in's own number."""

    @classmethod
    def of(cls, rubric: Rubric, scores: Mapping[str, Score], summary: str = "") -> Scorecard:
        """With the rubric's total."""
        return cls(scores, rubric.total({name: score.value for name, score in scores.items()}), summary, rubric)

    def to_wire(self) -> dict[str, Any]:
        """{criteria {id: {score, reason, weight, description}}, total, summary}."""
        known = {c.id: c for c in self.rubric.criteria} if self.rubric is not None else {}
        criteria = {}
        for name, score in self.scores.items():
            criterion = known.get(name)
            criteria[name] = {
                "score": score.value,
                "reason": score.reason,
                "weight": criterion.weight if criterion else 1.0,
                "description": criterion.description if criterion else "",
            }
        return {"criteria": criteria, "total": self.total, "summary": self.summary}


@dataclass(frozen=True, slots=True)
class Review:
    """A judged episode."""

    judge: str
    """`programmatic`, a model's name, or a plug-in's."""
    outcome: Scorecard | None
    """None: the outcome was not judged."""
    events: tuple[Scorecard, ...]
    """One per turn, in their order; empty: turns were not judged."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the judge tells of its work: calls, tokens."""

    def to_wire(self) -> dict[str, Any]:
        """{event_reviews, outcome_review, event_totals, details}."""
        return {
            "event_reviews": [card.to_wire() for card in self.events],
            "outcome_review": None if self.outcome is None else self.outcome.to_wire(),
            "event_totals": [card.total for card in self.events],
            "details": dict(self.details),
        }


class Judge(Protocol):
    """Scores episodes."""

    async def review(self, rollout: Rollout, rubrics: Rubrics) -> Review:
        """Judge an episode by the rubrics that are there.

        Raises:
            FieldError: the rubric asks for what this judge cannot score.
            PipelineError: this episode could not be judged.
        """


async def judge_rollout(rollout: Rollout, rubrics: Rubrics, judge: Judge) -> Review:
    """Judge an episode: the one door for evaluation, training and the service. Raises as `Judge.review`."""
    return await judge.review(rollout, rubrics)


def blend_rewards(
    rewards: Sequence[float], review: Review, *, env: float, event: float, outcome: float
) -> tuple[float, ...]:
    """The reward of each turn: env x its own, event x the turn's review, and outcome x the episode's in the last turn.

    Args:
        rewards: The environment's, one per turn.
        review: Of the same episode.
        env, event, outcome: Weights.
    """
    blended = [env * reward for reward in rewards]
    if review.events:
        blended = [value + event * card.total for value, card in zip(blended, review.events, strict=True)]
    if review.outcome is not None and blended:
        blended[-1] += outcome * review.outcome.total
    return tuple(blended)
