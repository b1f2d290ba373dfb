"""The environments that the task app can serve. A new one is a file here and a line in `REGISTRY`."""

from __future__ import annotations

from typing import Any, Protocol

from crafter_pipeline.contracts import Reply
from crafter_pipeline.environments import EnvironmentInfo, find_environment
from task_app.environments.crafter import CrafterEnvironment
from task_app.policies import Answer, Policy
from task_app.rewards import Counters


class Step(Protocol):
    """What one action brought."""

    @property
    def reward(self) -> float:
        """The default reward."""

    @property
    def unlocked(self) -> tuple[str, ...]:
        """Milestones reached for the first time in the episode."""

    @property
    def done(self) -> bool:
        """The episode is over: the end of the story, or the step limit."""

    @property
    def died(self) -> bool:
        """It ended badly, and really: no action follows."""


class Episode(Protocol):
    """One episode, played once."""

    def observe(self, style: str) -> str:
        """What a policy may know now, as text."""

    def step(self, action: str) -> Step:
        """Play one action."""

    def counters(self) -> Counters:
        """What shaping compares before and after a turn."""

    @property
    def unlocked(self) -> tuple[str, ...]:
        """Milestones reached so far."""

    @property
    def solved(self) -> bool:
        """Nothing is left to achieve."""


class Environment(Protocol):
    """What the task app needs of an environment."""

    info: EnvironmentInfo

    def system_prompt(self, policy: Policy) -> str:
        """What the model is told before each observation."""

    def tools(self, policy: Policy) -> tuple[dict[str, Any], ...]:
        """Tools offered to the model; empty: text answers."""

    def read(self, reply: Reply, policy: Policy) -> Answer:
        """The actions of an answer."""

    def start(self, seed: int, max_steps: int) -> Episode:
        """A new episode of at most `max_steps` actions."""

    def taskset(self) -> dict[str, Any]:
        """The wire's taskset: the tasks as a data set."""

    def task(self, seed: int | None) -> dict[str, Any]:
        """The wire's TaskInfo, of one seed or in general."""


REGISTRY: dict[str, Environment] = {e.info.name: e for e in (CrafterEnvironment(),)}
"""By the name in `crafter_pipeline.environments`."""


def environment_of(name: str) -> Environment:
    """The environment of an app name or alias. ConfigError names the known ones."""
    return REGISTRY[find_environment(name).name]
