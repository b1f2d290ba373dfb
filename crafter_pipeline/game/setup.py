"""How an episode is set up: in which world it begins, where, what it is about, and what ends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crafter_pipeline.contracts import StopReason
from crafter_pipeline.errors import FieldError

from .curriculum import find_start, find_task
from .engine import Game, StepResult
from .rules import ACHIEVEMENTS
from .world_config import DIFFICULTIES, UNCHANGED, WorldConfig, make_world


@dataclass(frozen=True, slots=True)
class CrafterSetup:
    """In which world an episode begins, where, and what it is about."""

    world: WorldConfig = UNCHANGED
    start: str | None = None
    """Name of a start state; it brings its own world."""
    task: str | None = None
    """Name of a task; it brings its own start."""

    def record(self) -> dict[str, Any]:
        """What differs from the unchanged game."""
        facts: dict[str, Any] = {}
        if self.world != UNCHANGED:
            name = next((name for name, world in DIFFICULTIES.items() if world == self.world), None)
            facts = {"difficulty": name} if name else {"world": self.world.changes()}
        return facts | {key: value for key, value in (("start", self.start), ("task", self.task)) if value}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> CrafterSetup:
        """The setup that `record` told of. FieldError names what this game does not know."""
        start, task, knobs = record.get("start"), record.get("task"), record.get("world")
        if knobs is not None and not isinstance(knobs, Mapping):
            raise FieldError("world", "this is no table of knobs")
        world = make_world(str(record.get("difficulty", "normal")), knobs)
        return cls(
            world,
            None if start is None else find_start(str(start)).name,
            None if task is None else find_task(str(task)).name,
        )

    def begin(self, seed: int, max_steps: int) -> Game:
        """A new game, or one that begins in a start state, where the seed decides what happens by chance."""
        if self.task is not None:
            return find_task(self.task).begin(seed, max_steps, self.world)
        if self.start is not None:
            return find_start(self.start).begin(seed, max_steps)
        return Game(seed, max_steps=max_steps, world=self.world)


def outcome(game: Game, goal: str | None, result: StepResult) -> tuple[float, StopReason | None]:
    """(reward of a step, why the episode is over or None).

    Args:
        game: After the step.
        goal: The achievement that alone is rewarded, and ends the episode; None: every one counts.
        result: Of the step.
    """
    reward = float(len(result.unlocked) if goal is None else goal in result.unlocked)
    if goal is not None and reward:
        return reward, StopReason.SOLVED
    if result.died:
        return reward, StopReason.DEATH
    if result.unlocked and len(game.unlocked) == len(ACHIEVEMENTS):
        return reward, StopReason.SOLVED
    return reward, StopReason.ENV_LIMIT if result.done else None
