"""The judge without a model: every criterion is a function of the trace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from crafter_pipeline.contracts import Rollout
from crafter_pipeline.errors import FieldError, suggest
from crafter_pipeline.judging import criteria
from crafter_pipeline.judging.facts import RolloutFacts
from crafter_pipeline.judging.review import Review, Scorecard
from crafter_pipeline.judging.rubric import PROGRAMMATIC, Rubric, Rubrics


class ProgrammaticJudge:
    """Scores the criteria of `criteria.OUTCOME` and `criteria.EVENTS`. Equal episodes get equal scores."""

    async def review(self, rollout: Rollout, rubrics: Rubrics) -> Review:
        """`score`, in a thread: a long episode takes a tenth of a second."""
        return await asyncio.to_thread(self.score, rollout, rubrics)

    def score(self, rollout: Rollout, rubrics: Rubrics) -> Review:
        """Judge. FieldError names a criterion without a function, DataError says what the trace lacks."""
        check_rubrics(rubrics)
        facts, outcome = RolloutFacts(rollout), None
        events: tuple[Scorecard, ...] = ()
        if rubrics.outcome is not None:
            scores = {c.id: criteria.OUTCOME[c.id](facts) for c in rubrics.outcome.criteria}
            outcome = Scorecard.of(rubrics.outcome, scores)
        if rubrics.events is not None:
            rubric = rubrics.events
            events = tuple(
                Scorecard.of(rubric, {c.id: criteria.EVENTS[c.id](turn) for c in rubric.criteria}) for turn in facts
            )
        return Review(PROGRAMMATIC, outcome, events)


def check_rubrics(rubrics: Rubrics) -> None:
    """Whether a program can score them; FieldError names the first criterion that has no function."""
    _check(rubrics.outcome, "outcome", criteria.OUTCOME)
    _check(rubrics.events, "events", criteria.EVENTS)


def _check(rubric: Rubric | None, name: str, known: Iterable[str]) -> None:
    if rubric is None:
        return
    if rubric.aggregation == "custom":
        raise FieldError(f"{name}.aggregation", "custom needs a plug-in judge; send sum or weighted_sum")
    for i, criterion in enumerate(rubric.criteria):
        if criterion.id not in known:
            hint = suggest(criterion.id, known)
            raise FieldError(
                f"{name}.criteria.{i}.id", f"no program scores {criterion.id!r}; {hint}, or name a chat model as judge"
            )
