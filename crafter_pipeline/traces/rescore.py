"""Rewards of stored rollouts, computed again under their own shaping or another one.

A trace holds what every reward depends on: what each turn unlocked, what it gained (`Turn.info["gains"]`, or the
deltas of a stored shaping), the environment's own reward. Nothing is played, nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crafter_pipeline.contracts import Rollout, Turn
from crafter_pipeline.environments import CRAFTER, ENVIRONMENTS
from crafter_pipeline.errors import FieldError
from crafter_pipeline.rewards import STRATEGIES, Counters, Shaper, StepRewards, read_step_rewards

_NOTHING = Counters({}, {})


@dataclass(frozen=True, slots=True)
class Rescored:
    """One stored rollout and what it would have earned."""

    run_id: str
    environment: str
    seed: int
    model: str
    stored: float
    """Episode return as stored."""
    new: float | None
    """Episode return under the shaping asked for; None: the trace lacks facts, see `problem`."""
    turn_rewards: tuple[float, ...]
    """What `new` is the sum of."""
    reproduced: bool | None
    """Whether the stored shaping gives the stored rewards, turn by turn; None: the writer kept no shaping config."""
    problem: str
    """Why `new` is None, or where the stored rewards are not reproduced; empty: nothing to say."""

    @property
    def difference(self) -> float | None:
        """new - stored."""
        return None if self.new is None else self.new - self.stored

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "run_id": self.run_id,
            "environment": self.environment,
            "seed": self.seed,
            "model": self.model,
            "stored_return": self.stored,
            "new_return": self.new,
            "difference": self.difference,
            "turn_rewards": list(self.turn_rewards),
            "reproduced": self.reproduced,
            "problem": self.problem,
        }


class _NoFacts(Exception):
    """The trace does not say what a shaping asks for."""


def stored_shaping(rollout: Rollout) -> Mapping[str, Any] | None:
    """The `step_rewards` that the rollout was played with; None: no table was sent."""
    for config in ("policy_config", "env_config"):  # the order in which the task app reads them
        table = (rollout.metadata.get(config) or {}).get("step_rewards")
        if table is not None:
            return table if isinstance(table, Mapping) else None
    return None


def rescore(rollout: Rollout, shaping: Mapping[str, Any] | None = None) -> Rescored:
    """The rollout's rewards under a `step_rewards` table; None: under its own.

    Raises:
        FieldError: the table is wrong for the rollout's environment.
    """
    achievements = ENVIRONMENTS.get(rollout.environment, CRAFTER).achievements
    reproduced, problem = _check(rollout, achievements)
    rewards: Sequence[float] | None
    try:
        wanted = stored_shaping(rollout) if shaping is None else shaping
        rewards = _turn_rewards(rollout, read_step_rewards(wanted, achievements))
    except FieldError:
        if shaping is not None:
            raise
        rewards = None  # of a table that is not valid any more; `_check` says so
    except _NoFacts as e:
        rewards, problem = None, str(e)
    return Rescored(
        run_id=rollout.run_id,
        environment=rollout.environment,
        seed=rollout.seed,
        model=rollout.model,
        stored=rollout.total_reward,
        new=None if rewards is None else math.fsum(rewards),
        turn_rewards=tuple(rewards or ()),
        reproduced=reproduced,
        problem=problem,
    )


def _check(rollout: Rollout, achievements: tuple[str, ...]) -> tuple[bool | None, str]:
    """(whether the stored shaping gives the stored rewards, what is wrong)."""
    if "policy_config" not in rollout.metadata:
        return None, ""
    try:
        expected = _turn_rewards(rollout, read_step_rewards(stored_shaping(rollout), achievements))
    except FieldError as e:
        return False, f"its stored step_rewards cannot be read: {e}"
    except _NoFacts as e:
        return None, str(e)
    for turn, reward in zip(rollout.turns, expected, strict=True):
        if not _close(turn.reward, reward):
            return False, f"turn {turn.index} is stored with {turn.reward:g}, its shaping gives {reward:g}"
    total = math.fsum(expected)
    if not _close(rollout.total_reward, total):
        return False, f"the return is stored as {rollout.total_reward:g}, its turns sum to {total:g}"
    return True, ""


def _turn_rewards(rollout: Rollout, shaping: StepRewards | None) -> list[float]:
    """The reward of each turn. _NoFacts when the shaping needs what the trace does not hold."""
    shaper = None if shaping is None else Shaper(shaping)
    resources = shaping is not None and STRATEGIES[shaping.strategy] == "per_achievement"
    rewards = []
    for turn in rollout.turns:
        reward = _base_reward(rollout, turn)
        if shaper is not None:
            gained = _gains(turn) if resources else _NOTHING
            reward, _ = shaper.reward(turn.index, turn.actions, turn.unlocked, reward, _NOTHING, gained)
        rewards.append(reward - _penalty(turn))
    return rewards


def _base_reward(rollout: Rollout, turn: Turn) -> float:
    """The environment's own reward of a turn."""
    if rollout.environment == CRAFTER.name:
        goal = (rollout.metadata.get("setup") or {}).get("task")
        return float(len(turn.unlocked) if goal is None else goal in turn.unlocked)
    stepwise = turn.info.get("stepwise") or {}
    return float(stepwise.get("base_reward", turn.reward + _penalty(turn)))


def _penalty(turn: Turn) -> float:
    """What an answer that could not be read cost on top."""
    return float(turn.info.get("parse_failure_penalty") or 0.0)


def _gains(turn: Turn) -> Counters:
    gains, stepwise = turn.info.get("gains"), turn.info.get("stepwise") or {}
    if gains is not None:
        found = Counters(gains.get("inventory") or {}, gains.get("achievements") or {})
    else:
        found = Counters(stepwise.get("inventory_deltas") or {}, stepwise.get("achievement_count_deltas") or {})
    if turn.unlocked and not found.achievements:  # an unlock always counts, so nobody wrote it down
        raise _NoFacts(f"turn {turn.index} has no gains in the trace (an older writer): per_achievement needs them")
    return found


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over rollouts; `stored` and `new` over those that could be computed again."""

    rollouts: int
    rescored: int
    stored: float
    new: float
    mismatches: int
    """Rollouts whose stored rewards are not what their stored shaping gives."""
    unchecked: int
    """Rollouts whose writer kept no shaping config."""

    @classmethod
    def of(cls, results: Sequence[Rescored]) -> Totals:
        """Add up."""
        done = [r for r in results if r.new is not None]
        return cls(
            rollouts=len(results),
            rescored=len(done),
            stored=math.fsum(r.stored for r in done),
            new=math.fsum(r.new for r in done if r.new is not None),
            mismatches=sum(r.reproduced is False for r in results),
            unchecked=sum(r.reproduced is None for r in results),
        )

    def to_json(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "rollouts": self.rollouts,
            "rescored": self.rescored,
            "stored_return": self.stored,
            "new_return": self.new,
            "difference": self.new - self.stored,
            "mismatches": self.mismatches,
            "unchecked": self.unchecked,
        }
