"""Stored rollouts, judged after the fact: by several judges, many rollouts at once, the scores kept beside them.

A rollout that a judge fails on has a problem in place of a score; the others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from crafter_pipeline.clients.backend import BackendClient
from crafter_pipeline.contracts import Rollout
from crafter_pipeline.errors import BackendError, DataError, JudgeError, ModelError, PipelineError
from crafter_pipeline.judging.review import Judge, Review, Score, Scorecard, judge_rollout
from crafter_pipeline.judging.rubric import Rubric, Rubrics
from crafter_pipeline.traces.store import TraceStore
from crafter_pipeline.traces.wire import trace_payload

CONCURRENCY = 8
REFUSED = (401, 403, 404, 405)
"""Of a backend that judges nothing for us: no other rollout would fare better."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the judges said of one stored rollout."""

    path: Path
    """The trace database that holds it."""
    run_id: str
    environment: str
    seed: int
    model: str
    reward: float
    """Episode return."""
    reviews: Mapping[str, Review]
    """By judge; one that failed is missing."""
    problems: Mapping[str, str]
    """By judge: why there is no review."""
    earlier: Mapping[str, float]
    """The scores that it has in its database."""

    @property
    def scores(self) -> dict[str, float]:
        """By judge, see `score_of`."""
        return {name: score_of(review) for name, review in self.reviews.items()}

    def to_json(self) -> dict[str, Any]:
        """A line of `judge --out`."""
        return {
            "run_id": self.run_id,
            "database": str(self.path),
            "environment": self.environment,
            "seed": self.seed,
            "model": self.model,
            "reward": self.reward,
            "judge_scores": self.scores,
            "reviews": {name: review.to_wire() for name, review in self.reviews.items()},
            "problems": dict(self.problems),
        }


def score_of(review: Review) -> float:
    """A review as one number: the outcome's total, or where only turns were judged their mean."""
    if review.outcome is not None:
        return review.outcome.total
    return fmean(card.total for card in review.events) if review.events else 0.0


class BackendJudge:
    """Asks a training backend, `POST /api/judge/v1/score`: ours, or the hosted one.

    Args:
        model: Who judges there: `programmatic`, which only ours knows, or a chat model.
        provider: Where that model is, as the backend names it; None: the backend's own.
    """

    def __init__(self, client: BackendClient, *, model: str, provider: str | None = None) -> None:
        self._client, self._model, self._provider = client, model, provider

    async def review(self, rollout: Rollout, rubrics: Rubrics) -> Review:
        """Judge. BackendError when it refuses, JudgeError when its answer is no review."""
        answer = await asyncio.to_thread(self._client.judge, self._body(rollout, rubrics))
        if answer.get("status", "ok") != "ok":
            why = answer.get("error") or answer.get("details") or "no reason given"
            raise JudgeError(f"The backend could not judge {rollout.run_id}: {why}")
        try:
            outcome = answer.get("outcome_review")
            events = tuple(_card(card, rubrics.events) for card in answer.get("event_reviews") or ())
            return Review(self._model, None if outcome is None else _card(outcome, rubrics.outcome), events)
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise JudgeError(
                f"The backend's review of {rollout.run_id} cannot be read ({type(e).__name__}: {e})."
            ) from e

    def _body(self, rollout: Rollout, rubrics: Rubrics) -> dict[str, Any]:
        trace = trace_payload(rollout, "structured")
        sent = {key: trace[key] for key in ("event_history", "markov_blanket_message_history", "metadata")}
        options: dict[str, Any] = {
            "model": self._model,
            "event": rubrics.events is not None,
            "outcome": rubrics.outcome is not None,
        }
        if self._provider is not None:
            options["provider"] = self._provider
        rubric = {
            name: [c.model_dump(mode="json") for c in part.criteria]
            for name, part in (("event", rubrics.events), ("outcome", rubrics.outcome))
            if part is not None
        }
        return {
            "policy_name": rollout.policy,
            "task_app": {"id": rollout.environment},
            "trace": sent,
            "rubric": rubric,
            "options": options,
        }


def _card(answer: Mapping[str, Any], rubric: Rubric | None) -> Scorecard:
    criteria = answer.get("criteria") or {}
    scores = {
        str(name): Score(float(entry["score"]), str(entry.get("reason") or "")) for name, entry in criteria.items()
    }
    return Scorecard(scores, float(answer["total"]), str(answer.get("summary") or ""), rubric)


async def judge_stored(
    rollouts: Iterable[tuple[Path, Rollout]],
    judges: Mapping[str, Judge],
    rubrics_of: Callable[[Rollout], Rubrics],
    concurrency: int = CONCURRENCY,
) -> AsyncIterator[Judgement]:
    """Each rollout's judgement, in the order of `rollouts`, of which at most `concurrency` are in memory at a time.

    Raises:
        FieldError: the rubric asks for what a judge cannot score.
        ServiceError: a judge's service cannot be reached or refuses the key.
    """
    waiting = iter(rollouts)
    tasks = [_begin(path, rollout, judges, rubrics_of) for path, rollout in islice(waiting, concurrency)]
    try:
        while tasks:
            yield await tasks.pop(0)
            tasks += [_begin(path, rollout, judges, rubrics_of) for path, rollout in islice(waiting, 1)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _begin(
    path: Path, rollout: Rollout, judges: Mapping[str, Judge], rubrics_of: Callable[[Rollout], Rubrics]
) -> asyncio.Task[Judgement]:
    return asyncio.create_task(_judged(path, rollout, judges, rubrics_of(rollout)))


async def _judged(path: Path, rollout: Rollout, judges: Mapping[str, Judge], rubrics: Rubrics) -> Judgement:
    reviews, problems = {}, {}
    for name, judge in judges.items():
        try:
            reviews[name] = await judge_rollout(rollout, rubrics, judge)
        except PipelineError as e:
            if not _of_this_rollout(e):
                raise
            problems[name] = str(e)
    earlier = rollout.metadata.get("judge_scores")
    return Judgement(
        path=path,
        run_id=rollout.run_id,
        environment=rollout.environment,
        seed=rollout.seed,
        model=rollout.model,
        reward=rollout.total_reward,
        reviews=reviews,
        problems=problems,
        earlier=earlier if isinstance(earlier, Mapping) else {},
    )


def _of_this_rollout(error: PipelineError) -> bool:
    """Whether another rollout may well be judged where this one was not."""
    if isinstance(error, BackendError):
        return error.status is not None and error.status not in REFUSED
    if isinstance(error, ModelError):
        return error.kind not in ("refused", "unreachable")
    return isinstance(error, DataError | JudgeError)


def keep_scores(store: TraceStore, judgement: Judgement) -> None:
    """Lay the scores over those that the rollout has in its database, where filters see them."""
    scores = {**judgement.earlier, **judgement.scores}
    if judgement.scores and not store.annotate(judgement.run_id, {"judge_scores": scores}):
        raise DataError(f"{judgement.path} holds no rollout {judgement.run_id} any more; its scores are not stored.")


def summary(judgements: Sequence[Judgement], judges: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{judge: {mean, scored, failed, pearson_r}}; pearson_r is with the return, None where it is not defined."""
    from crafter_pipeline.evaluation.summary import pearson

    found = {}
    for name in judges:
        pairs = [(j.scores[name], j.reward) for j in judgements if name in j.scores]
        found[name] = {
            "mean": fmean(score for score, _ in pairs) if pairs else None,
            "scored": len(pairs),
            "failed": len(judgements) - len(pairs),
            "pearson_r": pearson([score for score, _ in pairs], [reward for _, reward in pairs]),
        }
    return found
