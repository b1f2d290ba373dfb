"""What is judged every night."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from crafter_pipeline.config.base import FEWEST_SEEDS, HELD_OUT_SEEDS_START, SeedRange
from crafter_pipeline.config.play import SPREAD, EvaluateConfig
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.files import safe_name
from crafter_pipeline.tables import merged


class NightlyConfig(EvaluateConfig):
    """Which models are judged every night, and how: on the same worlds, each night played anew."""

    models: tuple[str, ...] = Field(default=("champion", "latest:rl", "latest:sft"), min_length=1)
    """Names in the model registry, or built-in models; a name that no model has yet is passed over."""
    rebaseline: bool = False
    """Whether tonight becomes the baseline; else the first night is, and stays it."""
    suite: str | None = None
    """A suite that says environment, limit and worlds, e.g. crafter-200, and crafter-balrog how all models are asked;
    keys beside it win."""
    seeds: SeedRange = SeedRange(start=HELD_OUT_SEEDS_START, count=32)
    """Worlds of every night."""

    @model_validator(mode="before")
    @classmethod
    def _of_a_suite(cls, data: Any) -> Any:
        from crafter_pipeline.evaluation.suites import find_suite  # suites are made of configs

        if not isinstance(data, dict) or not isinstance(data.get("suite"), str):
            return data
        try:
            suite = find_suite(data["suite"])
        except ConfigError as e:
            raise ValueError(f"suite: {e}") from None
        said = {
            "environment": suite.environment,
            "max_env_steps": suite.max_env_steps,
            "env_config": dict(suite.env_config),
            "seeds": suite.seeds.model_dump(),
        }
        said["policy"] = dict(suite.policy or suite.own_policy)
        return merged(said, data)

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.seeds.count < FEWEST_SEEDS:
            raise ValueError(f"seeds.count is {self.seeds.count}; a difference is shown from {FEWEST_SEEDS} seeds on")
        if self.baseline_seeds is not None:
            raise ValueError("baseline_seeds has no meaning here: random and teacher are models like others")
        folders = [folder_of(name) for name in self.models]
        twice = [name for name, folder in zip(self.models, folders, strict=True) if folders.count(folder) > 1]
        if twice:
            raise ValueError(f"models names {' and '.join(twice)}, which are one and the same folder of nights")
        return self

    def evaluation(self) -> EvaluateConfig:
        """How each of the models is judged."""
        return EvaluateConfig.model_validate(self.model_dump(include=set(EvaluateConfig.model_fields)))

    def conditions(self) -> dict[str, Any]:
        """What has to be equal for two nights to be comparable, as JSON data."""
        free = {"models", "rebaseline", "suite", "baseline_seeds", "bootstrap", *SPREAD}
        return self.model_dump(mode="json", exclude=free)


def folder_of(name: str) -> str:
    """The folder of a model's nights: `latest:rl` has `latest-rl`."""
    return safe_name(name.replace(":", "-"))
