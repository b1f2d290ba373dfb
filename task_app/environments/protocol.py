"""What the task app needs of an environment.

An environment is a stateless description that makes episodes; an episode is played once. Everything an episode does is
plain Python without waiting, so that thousands live in one event loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from crafter_pipeline.answers import Answer
from crafter_pipeline.contracts import Reply, StopReason
from crafter_pipeline.environments import EnvironmentInfo
from crafter_pipeline.rewards import Counters
from task_app.policies import Policy


@dataclass(frozen=True, slots=True)
class Step:
    """What one action brought."""

    action: str
    """What was executed: the action, or what stands for an answer that could not be read."""
    reward: float
    """The environment's own reward."""
    unlocked: tuple[str, ...] = ()
    """Milestones reached for the first time in the episode."""
    end: StopReason | None = None
    """The episode is over: no action follows."""
    event: str = ""
    """What happened, in a few words for the next prompt: `+1 wood`, `blocked`; empty: nothing worth a word."""
    hurt: bool = False
    """The player lost health."""


class Setup(Protocol):
    """How an environment is set up for an episode: `env.config`, read and checked. Equal setups are equal."""

    def record(self) -> dict[str, Any]:
        """What differs from the default, for trace and answer."""


class Episode(Protocol):
    """One episode."""

    def observe(self, style: str) -> str:
        """What a policy may know now, as text in one of `EnvironmentInfo.observations`."""

    def picture(self, pixels: int) -> bytes:
        """What a policy may know now, as a PNG of pixels x pixels; only if `Environment.has_pictures`."""

    def step(self, action: str) -> Step:
        """Play one action."""

    def unreadable(self, answer: Answer) -> Step:
        """What an answer costs that holds no action."""

    def counters(self) -> Counters:
        """What shaping compares before and after a turn."""

    def snapshot(self) -> bytes:
        """The whole state, for `Environment.restore`."""

    def state(self) -> dict[str, Any]:
        """The observation of the low-level routes, as JSON."""

    @property
    def unlocked(self) -> tuple[str, ...]:
        """Milestones reached so far."""

    @property
    def details(self) -> dict[str, Any]:
        """The environment's own facts of the result, for `metrics.details`."""


class Environment(Protocol):
    """An entry of the registry."""

    info: EnvironmentInfo
    has_pictures: bool
    config_keys: frozenset[str]
    """Keys of `env.config` that `prepare` reads; others are recorded as not applied."""

    def prepare(self, config: Mapping[str, Any]) -> Setup:
        """Read `env.config`. FieldError names the key (relative to the config) that is wrong."""

    def start(self, seed: int, max_steps: int, setup: Setup) -> Episode:
        """A new episode of at most `max_steps` actions."""

    def restore(self, snapshot: bytes) -> Episode:
        """The episode of a snapshot. ValueError if it is none of this environment."""

    def system_prompt(self, policy: Policy, setup: Setup) -> str:
        """What the model is told before each observation of an episode with this setup."""

    def tools(self, policy: Policy) -> tuple[dict[str, Any], ...]:
        """Tools offered to the model; empty: text answers."""

    def read(self, reply: Reply, policy: Policy) -> Answer:
        """The actions of an answer."""

    def taskset(self) -> dict[str, Any]:
        """The wire's taskset: the tasks as a data set."""

    def task(self, seed: int | None) -> dict[str, Any]:
        """The wire's TaskInfo, of one seed or in general."""

    def rubrics(self) -> dict[str, Any]:
        """{"outcome": rubric or None, "events": rubric or None}, in the wire's shape."""
