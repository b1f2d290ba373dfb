"""What an episode is for a task app: the request that is sent, and what is read from the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from crafter_pipeline.config import JudgeConfig
from crafter_pipeline.contracts import EnvSpec, PolicySpec, RecordSpec, RolloutRequest, RolloutResponse, SafetySpec
from crafter_pipeline.errors import ConfigError
from train_app.curriculum import Task
from train_app.specs import RlSpec, SftSpec
from train_app.specs.base import as_table
from train_app.workers.rollouts.task_apps import RolloutFailed


@dataclass(frozen=True, slots=True)
class Episodes:
    """Which episodes a job plays, and where."""

    job_id: str
    task_app_urls: tuple[str, ...]
    environment: str
    policy_name: str
    """What traces call the policy."""
    env_config: Mapping[str, Any]
    max_env_steps: int
    max_turns: int
    """Model calls per episode."""
    policy: Mapping[str, Any]
    """`policy.config`; model, address and sampling are set by the player."""
    temperature: float
    concurrency: int
    """Rollouts in flight."""
    step_rewards: Mapping[str, Any] | None = None
    store: bool = False
    """Whether they reach the task app's trace DB."""
    judge: JudgeConfig | None = None

    @classmethod
    def of(cls, spec: RlSpec | SftSpec, job_id: str) -> Episodes:
        """Those of RL, or those that a fine-tuning job plays on its dev seeds."""
        if isinstance(spec, RlSpec):
            return cls(
                job_id=job_id,
                task_app_urls=(spec.task_app_url, *spec.config.task_app_urls),
                environment=spec.environment,
                policy_name=spec.policy_name or spec.environment,
                env_config=spec.config.env_config,
                max_env_steps=spec.config.max_env_steps,
                max_turns=min(spec.max_turns or spec.config.max_env_steps, spec.config.max_env_steps),
                policy=spec.policy,
                temperature=spec.config.temperature,
                concurrency=spec.config.concurrency,
                step_rewards=spec.config.step_rewards,
                store=spec.config.trace_rollouts,
                judge=spec.config.judge,
            )
        dev = spec.config.dev
        if dev is None or spec.task_app_url is None:
            raise ConfigError("dev: episodes on dev seeds need the table dev and a task app, metadata.task_app_url.")
        return cls(
            job_id=job_id,
            task_app_urls=(spec.task_app_url,),
            environment=dev.environment,
            policy_name=dev.environment,
            env_config=dev.env_config,
            max_env_steps=dev.max_env_steps,
            max_turns=dev.max_env_steps,
            policy=dev.policy.model_dump(mode="json", exclude_none=True),
            temperature=dev.temperature,
            concurrency=len(dev.seeds),
        )

    def on_dev_seeds(self, temperature: float) -> Episodes:
        """The same to judge the policy: no shaped rewards, no judge, and nothing is stored."""
        return replace(self, temperature=temperature, step_rewards=None, judge=None, store=False)

    def request(self, run_id: str, task: Task, inference_url: str, seconds: float) -> RolloutRequest:
        """The body of `POST /rollout`.

        Args:
            inference_url: Where the policy answers this rollout, the whole path: task apps differ in what they append.
            seconds: Deadline of the episode.
        """
        shaping = {} if self.step_rewards is None else {"step_rewards": dict(self.step_rewards)}
        return RolloutRequest(
            run_id=run_id,
            mode="rl",
            env=EnvSpec(
                env_name=self.environment,
                seed=task.seed,
                config={**self.env_config, **task.start, "max_env_steps": self.max_env_steps},
            ),
            policy=PolicySpec(
                policy_name=self.policy_name,
                config={
                    **self.policy,
                    "model": "policy",
                    "inference_url": inference_url,
                    "trace_correlation_id": f"trace_{run_id}",
                    "temperature": self.temperature,
                    "top_p": 1.0,
                    "max_llm_calls": self.max_turns,
                    **shaping,
                },
            ),
            ops=["agent", "env"] * self.max_turns,
            record=RecordSpec(
                trajectories=False,
                store=self.store,
                return_trace=self.judge is not None,
                trace_format="compact" if self.judge is None else "structured",
            ),
            on_done="terminate",
            safety=SafetySpec(max_time_s=seconds),
            training_session_id=self.job_id,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the task app says of an episode."""

    turn_rewards: tuple[float, ...]
    achievements: tuple[str, ...]
    parse_failures: int
    env_steps: int
    trace_id: str | None
    trace: dict[str, Any] | None
    not_applied: Mapping[str, str]
    """Field of the request that the task app does not apply -> the reason."""


def read_outcome(answer: RolloutResponse, run_id: str) -> Outcome:
    """Read an answer to the request `run_id`.

    Task apps of others tell the rewards and achievements of the turns in the steps alone.

    Raises:
        RolloutFailed: it is the answer to another rollout, of an episode that was stopped, or without its rewards.
    """
    if answer.run_id != run_id:
        raise RolloutFailed(f"the answer is that of rollout {answer.run_id!r}, not of {run_id!r}")
    if answer.aborted:
        raise RolloutFailed("the episode was stopped before its end")
    try:
        outcome = _read(answer)
    except (AttributeError, TypeError, ValueError) as e:
        raise RolloutFailed(f"its answer cannot be read: {e}") from e
    if not outcome.turn_rewards or not all(map(math.isfinite, outcome.turn_rewards)):
        raise RolloutFailed("its turn_rewards are missing or not finite")
    return outcome


def _read(answer: RolloutResponse) -> Outcome:
    details = answer.metrics.details
    steps = [step for trajectory in answer.trajectories for step in trajectory.get("steps") or ()]
    rewards, achievements = details.get("turn_rewards"), details.get("achievements")
    if rewards is None:
        rewards = [step.get("reward") or 0.0 for step in steps]
    if achievements is None:
        added = [(step.get("info") or {}).get("achievements_added") or () for step in steps]
        achievements = dict.fromkeys(name for names in added for name in names)
    return Outcome(
        turn_rewards=tuple(float(reward) for reward in rewards),
        achievements=tuple(achievements),
        parse_failures=int(details.get("parse_failures") or 0),
        env_steps=int(details.get("env_steps") or answer.metrics.num_steps),
        trace_id=answer.trace_correlation_id,
        trace=answer.trace,
        not_applied=as_table(details.get("not_applied")),
    )
