"""The whole loop in one file."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from crafter_pipeline.config.base import Config, refuse_held_out
from crafter_pipeline.config.data import FilterConfig
from crafter_pipeline.config.play import MLP_POLICY, CollectConfig, EvaluateConfig
from crafter_pipeline.config.promotion import PromotionConfig
from crafter_pipeline.config.services import BackendConfig, TaskAppConfig
from crafter_pipeline.config.training import DaggerConfig, RlConfig, SftConfig
from crafter_pipeline.model_names import MLP

Baseline = Literal["random", "teacher", "mlp"]
_MLP_JOB = SftConfig(
    base_model=MLP,
    n_epochs=10,  # the lowest validation loss comes after four; play gets better for longer
    batch_size=256,
    learning_rate=1e-3,
    weight_decay=1e-4,
)
_MLP_READS = ("sparse", "compact", "rich", "image")


class PipelineConfig(Config):
    """The whole loop."""

    name: str = Field(default="pipeline", pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Label of the run."""
    environment: str = "crafter"
    """Name in the task app's registry; collect, evaluate and RL use it."""
    env_config: dict[str, Any] = {}
    """Further options of the environment; collect, evaluate and RL use them."""
    task_app: TaskAppConfig = TaskAppConfig()
    """Where the environment is served."""
    backend: BackendConfig = BackendConfig()
    """Where models are trained and served."""
    collect: CollectConfig = CollectConfig()
    """Which episodes the teacher plays."""
    filter: FilterConfig = FilterConfig()
    """Which of them become training examples."""
    sft: SftConfig = SftConfig()
    """The fine-tuning job."""
    dagger: DaggerConfig = DaggerConfig()
    """Rounds of DAgger on the fine-tuned model."""
    rl: RlConfig = RlConfig()
    """The reinforcement-learning job, from the model before it."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How models are judged."""
    baselines: tuple[Baseline, ...] = ("random", "teacher")
    """Who is judged beside the student. mlp: a stateless network, trained on the same rows (extra `baseline`), for
    crafter; it and the random player are served by our own backend alone."""
    promotion: PromotionConfig | None = None
    """Whether the RL model is to become champion, and on which worlds it is compared with it; what is not named here is
    as in `evaluate`. Unset: no model is promoted."""

    @model_validator(mode="before")
    @classmethod
    def _promoted_as_evaluated(cls, data: Any) -> Any:  # the last of these comes first
        if not isinstance(data, dict):
            return data
        promotion, evaluate = data.get("promotion"), data.get("evaluate", {})
        if isinstance(promotion, dict) and isinstance(evaluate, dict):
            of_its_own = ("seeds", "baseline_seeds", "bootstrap")
            shared = {name: value for name, value in evaluate.items() if name not in of_its_own}
            return {**data, "promotion": {**shared, **promotion}}
        return data

    @model_validator(mode="before")
    @classmethod
    def _environment_everywhere(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        everyone = ("collect", "evaluate", "dagger", "rl")
        for key, sections in (("environment", ("collect", "evaluate")), ("env_config", everyone)):
            for section in sections if key in data else ():
                part = data.get(section, {})
                if isinstance(part, dict):
                    data[section] = {key: data[key], **part}
        return data

    @model_validator(mode="after")
    def _one_validation_set(self) -> Self:
        if self.filter.export.validation_share:
            for name, sft in (("sft", self.sft), ("dagger.sft", self.dagger.sft)):
                if sft.validation_share:
                    raise ValueError(f"{name}.validation_share: filter.export.validation_share holds rows back already")
        return self

    @model_validator(mode="after")
    def _mlp_can_read(self) -> Self:
        if "mlp" in self.baselines:
            from crafter_pipeline.environments import CRAFTER, find_environment  # it reads configs itself

            if find_environment(self.environment) is not CRAFTER:
                raise ValueError(f"baselines: mlp plays crafter, not {self.environment}; leave it out")
            if self.collect.policy.observation not in _MLP_READS:
                raise ValueError(
                    f"baselines: mlp reads {', '.join(_MLP_READS)}, and collect.policy.observation is "
                    f"{self.collect.policy.observation!r}; change it, or leave mlp out"
                )
        return self

    @property
    def mlp_job(self) -> SftConfig:
        """The job of the baseline `mlp`: the same in every run, but for the seed, which is that of `sft`."""
        return _MLP_JOB.model_copy(update={"seed": self.sft.seed})

    def judged(self, label: str) -> EvaluateConfig:
        """How a player is judged: a baseline is asked in its own way, the teacher as it was when it taught."""
        policy = {"teacher": self.collect.policy, "mlp": MLP_POLICY}.get(label, self.evaluate.policy)
        return self.evaluate.model_copy(update={"policy": policy})

    @model_validator(mode="after")
    def _held_out_stays_held_out(self) -> Self:
        refuse_held_out("collect.seeds", self.collect.seeds.seeds)
        if self.dagger.rounds:
            refuse_held_out("dagger.seeds", self.dagger.round_seeds(self.dagger.rounds - 1).seeds)
        refuse_held_out("rl: its largest seed", (self.rl.last_seed,))
        return self
