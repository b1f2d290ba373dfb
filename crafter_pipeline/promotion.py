"""Who may become champion: the evidence that a promotion brings, and the rule that it has to pass.

The champion is the model that others are measured by; the training backend keeps its name. A model takes the name only
by playing better than its holder on the gate's worlds, on which nobody trains and which are not the held-out ones.
Who promotes decides by this rule, and the backend holds everybody to it.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from crafter_pipeline.config.base import FEWEST_SEEDS, GATE_SEEDS_START, HELD_OUT_SEEDS_START
from crafter_pipeline.environments import ENVIRONMENTS, find_environment
from crafter_pipeline.errors import DataError, suggest
from crafter_pipeline.evaluation import Comparison, Evaluation, mean_interval
from crafter_pipeline.model_names import CHAMPION as CHAMPION
from crafter_pipeline.report.text import interval, signed

RESAMPLES = 10_000
"""Behind the interval that decides, whoever asks."""

Count = Annotated[int, Field(ge=0, le=1000)]
Seed = Annotated[int, Field(ge=0)]


def random_player(environment: str) -> str:
    """Who has to be beaten while there is no champion."""
    return f"{find_environment(environment).name}-random"


# --------------------------------------------------------------------------- evidence


class Evidence(BaseModel):
    """What two players unlocked in the same worlds: enough to compute again what is said of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    """As configs name it."""
    max_env_steps: int = Field(ge=1)
    """Limit of an episode, the same for both."""
    candidate: str
    """Full id of the model that wants the name."""
    against: str
    """Full id of the one that has it; the random player where nobody has."""
    seeds: tuple[Seed, ...]
    """Worlds that both played, ascending."""
    candidate_counts: tuple[Count, ...]
    """Achievements of the candidate per world."""
    against_counts: tuple[Count, ...]
    """Achievements of the other one per world."""

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if self.environment not in ENVIRONMENTS:
            raise ValueError(f"there is no environment {self.environment!r}; {suggest(self.environment, ENVIRONMENTS)}")
        if not len(self.seeds) == len(self.candidate_counts) == len(self.against_counts) or not self.seeds:
            raise ValueError(
                f"{len(self.seeds)} seeds, {len(self.candidate_counts)} candidate_counts and "
                f"{len(self.against_counts)} against_counts: give as many of each, and at least one"
            )
        if any(a >= b for a, b in pairwise(self.seeds)):
            raise ValueError("seeds must ascend, each once: a world that counts twice makes the interval too narrow")
        return self

    @classmethod
    def of(cls, environment: str, candidate: Evaluation, against: Evaluation) -> Evidence:
        """Of two evaluations, on the worlds that both played. DataError when they cannot be compared."""
        if candidate.max_steps != against.max_steps:
            raise DataError(
                f"{candidate.label} played up to {candidate.max_steps} env steps and {against.label} up to "
                f"{against.max_steps}: not comparable."
            )
        ours, theirs = (dict(zip(e.seeds, e.counts, strict=True)) for e in (candidate, against))
        seeds = tuple(sorted(ours.keys() & theirs.keys()))
        if not seeds:
            raise DataError(f"{candidate.label} and {against.label} share no seed: nothing to pair.")
        return cls(
            environment=find_environment(environment).name,
            max_env_steps=candidate.max_steps,
            candidate=candidate.model,
            against=against.model,
            seeds=seeds,
            candidate_counts=tuple(ours[s] for s in seeds),
            against_counts=tuple(theirs[s] for s in seeds),
        )

    @property
    def against_label(self) -> str:
        """What tables and plots call the other one."""
        return "random" if self.against == random_player(self.environment) else CHAMPION

    def comparison(self) -> Comparison:
        """The candidate minus the other one, pair by pair. Equal evidence gives an equal interval."""
        deltas = [ours - theirs for ours, theirs in zip(self.candidate_counts, self.against_counts, strict=True)]
        return Comparison(self.against_label, "candidate", fmean(deltas), mean_interval(deltas, RESAMPLES), self.seeds)


# --------------------------------------------------------------------------- the rule


def refusal(comparison: Comparison) -> str | None:
    """Why b does not take the place of a; None: it does.

    It does when they were compared on worlds of the gate alone, on enough of them to settle anything, and the whole
    interval of the difference lies above zero.
    """
    foreign = [s for s in comparison.seeds if not GATE_SEEDS_START <= s < HELD_OUT_SEEDS_START]
    if foreign:
        return (
            f"seed {foreign[0]} is none of the gate's: a promotion is decided on seeds {GATE_SEEDS_START:,} to "
            f"{HELD_OUT_SEEDS_START - 1:,}"
        )
    if len(comparison.seeds) < FEWEST_SEEDS:
        return f"{len(comparison.seeds)} seeds that both played settle nothing: at least {FEWEST_SEEDS} are needed"
    if comparison.ci95[0] <= 0:
        return f"{difference(comparison)}: the interval does not lie above zero"
    return None


def difference(comparison: Comparison) -> str:
    """'+0.42 [+0.10, +0.73] achievements per episode against the champion on 64 seeds'."""
    other = "random player" if comparison.a == "random" else comparison.a
    return (
        f"{signed(comparison.delta, 2)} {interval(comparison.ci95, 2, sign=True)} achievements per episode against the "
        f"{other} on {len(comparison.seeds)} seeds"
    )


# --------------------------------------------------------------------------- what came of it


class Promotion(BaseModel):
    """What came of asking for a promotion."""

    model_config = ConfigDict(frozen=True)

    promoted: bool
    """Whether the candidate has become champion now."""
    candidate: str
    """Full id."""
    champion_before: str | None
    """Full id; None: there was none."""
    why: str
    """The outcome in one sentence."""
    evidence: Evidence | None = None
    """None: the candidate is champion already, nothing was played."""
    comparison: Comparison | None = None
    """What the evidence shows."""

    @property
    def champion(self) -> str | None:
        """Full id of who is champion after it."""
        return self.candidate if self.promoted else self.champion_before


def decide(evidence: Evidence, champion: str | None) -> Promotion:
    """Whether the candidate of `evidence` takes the place of `champion`."""
    comparison = evidence.comparison()
    reason = refusal(comparison)
    if reason is None:
        why = f"{evidence.candidate} is champion now: {difference(comparison)}."
    else:
        stays = "There is still no champion" if champion is None else f"{champion} stays champion"
        why = f"{stays}. {evidence.candidate}: {reason}."
    return Promotion(
        promoted=reason is None,
        candidate=evidence.candidate,
        champion_before=champion,
        why=why,
        evidence=evidence,
        comparison=comparison,
    )


def champion_already(model: str) -> Promotion:
    """Nothing to do."""
    return Promotion(
        promoted=False, candidate=model, champion_before=model, why=f"{model} is champion already: nothing to do."
    )


class Rollback(BaseModel):
    """A champion that went, and the one that is back."""

    model_config = ConfigDict(frozen=True)

    champion: str
    """Full id of who is champion again."""
    champion_before: str
    """Full id of who was."""
    reason: str
    """Why, in the words of who asked for it."""
    evidence: Evidence | None = None
    """By which it had become champion."""

    @property
    def why(self) -> str:
        """The outcome in one sentence."""
        return f"{self.champion} is champion again, in the place of {self.champion_before}" + (
            f": {self.reason}" if self.reason else ""
        )
