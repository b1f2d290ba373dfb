"""What a validation found: one row per player, one finding per check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal

from crafter_pipeline.errors import ValidationFailed
from crafter_pipeline.validation.arena import Played

State = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    state: State
    says: str
    """What was found, or why nothing was looked for."""
    remedy: str = ""
    """What to do about it; empty unless it failed."""
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlayerScore:
    """How one player did over its worlds."""

    player: str
    episodes: int
    mean_return: float
    """Sum of an episode's rewards, shaped if rewards are shaped; mean over episodes."""
    min_return: float
    max_return: float
    mean_achievements: float
    mean_steps: float

    @classmethod
    def of(cls, episodes: Iterable[Played]) -> PlayerScore:
        """The score of one player's episodes. ValueError if there are none."""
        played = list(episodes)
        if not played:
            raise ValueError("a player without episodes has no score")
        returns = [p.total for p in played]
        return cls(
            player=played[0].player,
            episodes=len(played),
            mean_return=fmean(returns),
            min_return=min(returns),
            max_return=max(returns),
            mean_achievements=fmean(len(p.achievements) for p in played),
            mean_steps=fmean(len(p.rewards) for p in played),
        )


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """Everything one validation found."""

    environment: str
    url: str
    seeds: tuple[int, ...]
    max_env_steps: int
    step_rewards: Mapping[str, Any] | None
    players: tuple[PlayerScore, ...]
    checks: tuple[Check, ...]
    seconds: float

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that failed."""
        return tuple(check for check in self.checks if check.state == "failed")

    @property
    def verdict(self) -> str:
        """One sentence; names every failed check and its remedy."""
        if not self.failed:
            return f"{self.environment} passed {sum(c.state == 'passed' for c in self.checks)} checks."
        reasons = " ".join(f"{check.name}: {check.says} {check.remedy}" for check in self.failed)
        return f"{self.environment} is not fit for training. {reasons}"

    @classmethod
    def without_play(cls, environment: str, url: str, check: Check) -> ValidationReport:
        """Of an environment that could not be played."""
        return cls(environment, url, (), 0, None, (), (check,), 0.0)

    def require(self) -> None:
        """ValidationFailed with the verdict if a check failed."""
        if self.failed:
            raise ValidationFailed(self.verdict)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"passed": not self.failed, **asdict(self)}
