"""The reward of a turn: achievements newly unlocked in it, or the wire's `step_rewards` shaping of that.

Shaping is active only if `enabled` and `mode = "decision_stepwise"`; then the shaped value is the turn's reward and
the default one stands beside it as `base_reward`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crafter_pipeline.errors import FieldError, suggest

MODE = "decision_stepwise"
STRATEGIES = {
    **dict.fromkeys(("consistent", "simple", "consistent_stepwise", "decision_consistent"), "consistent"),
    **dict.fromkeys(
        ("per_achievement", "per-achievement", "perachievement", "achievement_weighted", "complex"), "per_achievement"
    ),
}
"""Every name of the wire -> the strategy it means."""

INVENTORY_WEIGHTS = {
    "wood": 0.10,
    "sapling": 0.08,
    "stone": 0.15,
    "coal": 0.18,
    "iron": 0.22,
    "drink": 0.07,
    "food": 0.07,
    "energy": 0.04,
    "wood_pickaxe": 0.40,
    "stone_pickaxe": 0.55,
    "iron_pickaxe": 0.75,
    "wood_sword": 0.35,
    "stone_sword": 0.50,
    "iron_sword": 0.70,
}
COUNT_WEIGHTS = {
    "collect_wood": 0.08,
    "collect_sapling": 0.06,
    "collect_stone": 0.10,
    "collect_coal": 0.12,
    "collect_iron": 0.14,
    "collect_drink": 0.06,
}
OTHER_WEIGHT = 0.05


@dataclass(frozen=True, slots=True)
class Counters:
    """What shaping compares before and after a turn."""

    inventory: Mapping[str, int]
    achievements: Mapping[str, int]
    """How often each achievement was reached."""


class StepRewards(BaseModel):
    """`step_rewards` of a policy or env config."""

    model_config = ConfigDict(extra="allow", frozen=True)

    enabled: bool = False
    mode: str = "off"
    strategy: str = "consistent"
    indicator_lambda: float = 1.0
    step_beta: float | None = None
    """Echoed only."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Per achievement; default 1."""
    k_limits: dict[str, int] = Field(default_factory=dict)
    """Credits per achievement and episode; default 1; 0 or less: no limit."""


def read_step_rewards(config: Any, achievements: tuple[str, ...]) -> StepRewards | None:
    """The active shaping of a config value, or None. FieldError names a wrong strategy, achievement or type."""
    if not isinstance(config, dict) or not config.get("enabled") or config.get("mode") != MODE:
        return None
    try:
        parsed = StepRewards.model_validate({k: v for k, v in config.items() if v is not None})
    except ValidationError as e:
        error = e.errors()[0]
        raise FieldError(".".join(map(str, error["loc"])), error["msg"]) from None
    if parsed.strategy not in STRATEGIES:
        hint = suggest(parsed.strategy, STRATEGIES)
        raise FieldError("strategy", f"there is no strategy {parsed.strategy!r}; {hint}")
    for part, names in (("weights", parsed.weights), ("k_limits", parsed.k_limits)):
        for name in names:
            if name not in achievements:
                hint = suggest(name, achievements)
                raise FieldError(f"{part}.{name}", f"there is no achievement {name!r}; {hint}")
    return parsed


class Shaper:
    """Shaping over one episode: it remembers how often each achievement was credited."""

    def __init__(self, config: StepRewards) -> None:
        self._config = config
        self._strategy = STRATEGIES[config.strategy]
        self._lambda = config.indicator_lambda or 1.0
        self._credits: dict[str, int] = {}
        self._indicators = self._total = self._resources = 0.0
        self._new = 0
        self._unique: list[str] = []
        self.samples: list[dict[str, Any]] = []
        """The wire's `decision_samples`, one a turn."""

    def reward(
        self,
        turn: int,
        actions: tuple[str, ...],
        unlocked: tuple[str, ...],
        base: float,
        before: Counters,
        after: Counters,
    ) -> tuple[float, dict[str, Any]]:
        """The shaped reward of a turn (index from 0) and the wire's `info.stepwise`."""
        indicator = int(bool(unlocked))
        stepwise: dict[str, Any] = {
            "decision_index": turn + 1,
            "indicator": indicator,
            "new_achievements": list(unlocked),
            "strategy": self._strategy,
            "base_reward": base,
        }
        sample: dict[str, Any] = {
            "decision_index": turn + 1,
            "indicator": indicator,
            "base": base,
            "strategy": self._strategy,
            "actions": [{"tool": "interact_many", "args": {"actions": list(actions)}}],
        }
        if self._strategy == "consistent":
            value = self._lambda * indicator
        else:
            components = self._credit(unlocked)
            gained = _gains(before.inventory, after.inventory)
            counted = _gains(before.achievements, after.achievements)
            resources = sum(n * INVENTORY_WEIGHTS.get(name, OTHER_WEIGHT) for name, n in gained.items())
            resources += sum(n * COUNT_WEIGHTS.get(name, OTHER_WEIGHT) for name, n in counted.items())
            value = self._lambda * (sum(c["weight"] for c in components) + resources)
            self._resources += resources
            stepwise |= {
                "components": components,
                "credited_achievements": [c["achievement"] for c in components],
                "resource_reward": resources,
                "inventory_deltas": gained,
                "achievement_count_deltas": counted,
            }
            sample |= {"components": components, "resource_reward": resources}
        stepwise["reward"] = sample["r_i"] = value
        self._indicators += indicator
        self._total += value
        self._new += len(unlocked)
        self._unique += unlocked
        self.samples.append(sample)
        return value, stepwise

    def _credit(self, unlocked: tuple[str, ...]) -> list[dict[str, Any]]:
        components = []
        for name in unlocked:
            limit, given = self._config.k_limits.get(name, 1), self._credits.get(name, 0)
            if limit <= 0 or given < limit:
                self._credits[name] = given + 1
                components.append({"achievement": name, "weight": self._config.weights.get(name, 1.0)})
        return components

    def summary(self) -> dict[str, Any]:
        """The wire's `metrics.details.stepwise`."""
        config = self._config
        return {
            "indicator_sum": self._indicators,
            "reward_sum": self._total,
            "resource_reward": self._resources,
            "new_achievements_total": self._new,
            "mode": MODE,
            "strategy": self._strategy,
            "indicator_lambda": self._lambda,
            "step_beta": config.step_beta,
            "weights": dict(config.weights),
            "k_limits": dict(config.k_limits),
            "unique_achievements_total": len(self._unique),
            "unique_achievements": sorted(self._unique),
            "final_achievements": sorted(self._unique),
        }


def _gains(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {name: n - before.get(name, 0) for name, n in after.items() if n > before.get(name, 0)}
