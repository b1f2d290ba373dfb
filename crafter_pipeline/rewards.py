"""The reward of a turn: achievements newly unlocked in it, or the wire's `step_rewards` shaping of that.

Shaping is active only if `enabled` and `mode = "decision_stepwise"`; then the shaped value is the turn's reward and
the default one stands beside it as `base_reward`. docs/rewards.md has a worked example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from crafter_pipeline.environments import CRAFTER, EnvironmentInfo
from crafter_pipeline.errors import FieldError, suggest

MODE = "decision_stepwise"
MODES = (MODE, "off", "env_sparse")
"""The wire's modes; the other two both mean the environment's own reward."""
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
"""The wire's weight of everything else, health and diamonds among it: healing is paid, like any other gain."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What shaping compares before and after a turn."""

    inventory: Mapping[str, int]
    achievements: Mapping[str, int]
    """How often each achievement was reached."""


class StepRewards(BaseModel):
    """`step_rewards` of a policy or env config."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    enabled: bool = False
    mode: str = "off"
    strategy: str = "consistent"
    indicator_lambda: float = 1.0
    """Factor of the whole shaped reward; the wire says that 0 means 1."""
    step_beta: float | None = Field(default=None, validation_alias=AliasChoices("step_beta", "beta"))
    """Echoed only."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Per achievement; default 1."""
    k_limits: dict[str, int] = Field(default_factory=dict)
    """Credits per achievement and episode; default 1; 0 or less: no limit."""

    @field_validator("mode", "strategy", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @property
    def active(self) -> bool:
        """Whether turns are paid by it."""
        return self.enabled and self.mode == MODE


STEP_REWARD_KEYS = (*StepRewards.model_fields, "beta")


def read_step_rewards(config: Any, achievements: tuple[str, ...]) -> StepRewards | None:
    """The active shaping of a config value, or None. A table that is switched off is checked all the same.

    FieldError names what is wrong: no table, an unknown key, mode, strategy or achievement (with the nearest one), a
    wrong type.
    """
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise FieldError("", f"send a table with keys of {', '.join(StepRewards.model_fields)}")
    for key in config:
        if key not in STEP_REWARD_KEYS:
            raise FieldError(str(key), f"unknown key; {suggest(str(key), STEP_REWARD_KEYS)}")
    try:
        parsed = StepRewards.model_validate({k: v for k, v in config.items() if v is not None})
    except ValidationError as e:
        error = e.errors()[0]
        raise FieldError(".".join(map(str, error["loc"])), error["msg"]) from None
    for field, name, known in (("mode", parsed.mode, MODES), ("strategy", parsed.strategy, STRATEGIES)):
        if name not in known:
            raise FieldError(field, f"there is no {field} {name!r}; {suggest(name, known)}")
    for part, names in (("weights", parsed.weights), ("k_limits", parsed.k_limits)):
        for name in names:
            if name not in achievements:
                raise FieldError(f"{part}.{name}", f"there is no achievement {name!r}; {suggest(name, achievements)}")
    return parsed if parsed.active else None


class Shaper:
    """Shaping over one episode of an environment: it remembers how often each achievement was credited."""

    def __init__(self, config: StepRewards, environment: EnvironmentInfo = CRAFTER) -> None:
        self._config, self._environment = config, environment
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
            "actions": [{"tool": self._environment.tool_name, "args": self._environment.tool_arguments(actions)}],
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
