"""Environments that live on between requests: made, stepped, snapshotted, branched and dropped one call at a time.

Everything is kept in memory and in one event loop. What is not used for an hour is dropped; snapshots give way to newer
ones. Ids cannot be guessed.
"""

from __future__ import annotations

import copy
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crafter_pipeline.contracts import StopReason
from crafter_pipeline.rewards import Shaper, StepRewards
from task_app.environments import Environment, Episode, Setup, Step
from task_app.requests import Refusal

MAX_LIVE = 10_000
MAX_SNAPSHOTS = 10_000
IDLE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class LiveSetup:
    """What stays the same over resets."""

    setup: Setup
    max_env_steps: int
    style: str
    """Of the observation's text."""
    step_rewards: StepRewards | None
    rl_run_id: str | None
    """As given by the caller; told again with each snapshot."""
    not_applied: tuple[str, ...] = ()
    """Keys of the config that mean nothing here."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a live environment needs to go on."""

    how: LiveSetup
    seed: int
    episode: bytes
    shaper: Shaper | None
    turns: int
    steps: int
    end: StopReason | None


class LiveEnvironment:
    """One episode under way, with its shaping. `steps` counts game actions, `turns` calls of `step`."""

    def __init__(self, environment: Environment, seed: int, how: LiveSetup) -> None:
        self.id = _new_id("env")
        self.how = how
        self.busy = False
        """A rollout or a slow step is under way: nobody else may touch it."""
        self._environment = environment
        self._begin(seed)

    def _begin(self, seed: int) -> None:
        self.seed = seed
        self.episode: Episode = self._environment.start(seed, self.how.max_env_steps, self.how.setup)
        shaping = self.how.step_rewards
        self.shaper = None if shaping is None else Shaper(shaping, self._environment.info)
        self.turns = self.steps = 0
        self.end: StopReason | None = None

    @classmethod
    def thawed(cls, environment: Environment, snapshot: Snapshot) -> LiveEnvironment:
        """Another environment that goes on from a snapshot."""
        live = cls.__new__(cls)
        live.id, live.how, live.busy, live._environment = _new_id("env"), snapshot.how, False, environment
        live.thaw(snapshot)
        return live

    def reset(self, seed: int | None = None) -> None:
        """A new episode, on the same seed unless another one is given."""
        self._begin(self.seed if seed is None else seed)

    def freeze(self) -> Snapshot:
        """A copy of everything."""
        shaper = copy.deepcopy(self.shaper)
        return Snapshot(self.how, self.seed, self.episode.snapshot(), shaper, self.turns, self.steps, self.end)

    def thaw(self, snapshot: Snapshot) -> None:
        """Go back, or on, to a snapshot."""
        self.seed, self.turns, self.steps, self.end = snapshot.seed, snapshot.turns, snapshot.steps, snapshot.end
        self.episode = self._environment.restore(snapshot.episode)
        self.shaper = copy.deepcopy(snapshot.shaper)

    def step(self, actions: Sequence[str]) -> dict[str, Any]:
        """Play actions until the last one or the episode's end. Refusal 409 if it has ended before."""
        if self.end is not None:
            raise Refusal(409, "episode_over", f"The episode has ended ({self.end}). POST /reset or /create another.")
        before = None if self.shaper is None else self.episode.counters()
        played: list[Step] = []
        for action in actions:
            played.append(self.episode.step(action))
            self.end = played[-1].end
            if self.end is not None:
                break
        reward = sum(step.reward for step in played)
        unlocked = tuple(name for step in played for name in step.unlocked)
        info: dict[str, Any] = {"achievements_added": unlocked, "actions": [step.action for step in played]}
        if not_executed := list(actions[len(played) :]):
            info["not_executed"] = not_executed
        if self.shaper is not None and before is not None:
            after = self.episode.counters()
            done = tuple(step.action for step in played)
            reward, info["stepwise"] = self.shaper.reward(self.turns, done, unlocked, reward, before, after)
        self.turns += 1
        self.steps += len(played)
        if self.end is not None:
            info["stop_reason"] = self.end
        return {
            "observation": self.observation(),
            "done": self.end is not None,
            "truncated": self.end is not None and not self.end.terminal,
            "info": info,
            "reward": reward,
            "step_idx": self.steps,
        }

    def observation(self) -> dict[str, Any]:
        """The state, and what a policy would read of it as `text`."""
        return {**self.episode.state(), "text": self.episode.observe(self.how.style)}

    def view(self) -> dict[str, Any]:
        """As /create, /reset and /restore tell it."""
        info: dict[str, Any] = {"seed": self.seed, "setup": self.how.setup.record()}
        if self.how.not_applied:
            info["not_applied"] = self.how.not_applied
        if self.end is not None:
            info["stop_reason"] = self.end
        return {"env_id": self.id, "observation": self.observation(), "info": info, "step_idx": self.steps}


class LiveEnvironments:
    """Every live environment and snapshot of a task app, the least recently used first.

    Args:
        environment: What they are made of.
        most, most_snapshots: Bounds; beyond the first nothing is made, beyond the second the oldest is forgotten.
        idle_seconds: What was not used for so long is dropped.
        clock: Seconds.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        most: int = MAX_LIVE,
        most_snapshots: int = MAX_SNAPSHOTS,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.environment = environment
        self._most, self._most_snapshots, self._idle_seconds, self._clock = most, most_snapshots, idle_seconds, clock
        self._live: OrderedDict[str, tuple[float, LiveEnvironment]] = OrderedDict()
        self._snapshots: OrderedDict[str, Snapshot] = OrderedDict()

    def __len__(self) -> int:
        return len(self._live)

    def create(self, seed: int, how: LiveSetup) -> LiveEnvironment:
        """A new one. Refusal 429 when there are too many."""
        self._make_room(1)
        return self._keep(LiveEnvironment(self.environment, seed, how))

    def get(self, env_id: str) -> LiveEnvironment:
        """The one of an id. Refusal 404 if there is none, 409 while a rollout plays on it."""
        found = self._live.get(env_id)
        if found is None:
            raise Refusal(
                404,
                "unknown_env",
                f"There is no live environment {env_id!r}: never made, terminated or dropped as idle.",
            )
        live = found[1]
        if live.busy:
            raise Refusal(
                409, "env_busy", f"A rollout or step is under way on {env_id!r}. Wait for it, or POST /run/abort."
            )
        return self._keep(live)

    def drop(self, env_id: str) -> None:
        """Forget one. Refusals as `get`."""
        del self._live[self.get(env_id).id]

    def snapshot(self, env_id: str) -> tuple[str, Snapshot]:
        """Keep the state of one under a new id."""
        snapshot, snapshot_id = self.get(env_id).freeze(), _new_id("snap")
        while len(self._snapshots) >= self._most_snapshots:
            self._snapshots.popitem(last=False)
        self._snapshots[snapshot_id] = snapshot
        return snapshot_id, snapshot

    def restore(self, snapshot_id: str) -> LiveEnvironment:
        """A new environment that goes on from a snapshot; as often as wanted. Refusal 404, 429."""
        snapshot = self._snapshots.get(snapshot_id)
        if snapshot is None:
            raise Refusal(
                404, "unknown_snapshot", f"There is no snapshot {snapshot_id!r}, or newer ones took its place."
            )
        self._make_room(1)
        return self._keep(LiveEnvironment.thawed(self.environment, snapshot))

    def branch(self, env_ids: Sequence[str], children: int) -> dict[str, list[str]]:
        """Copies of each: {its id: their ids}. All or nothing: Refusal 404, 409, 429."""
        snapshots = {env_id: self.get(env_id).freeze() for env_id in env_ids}
        self._make_room(len(snapshots) * children)
        return {
            env_id: [self._keep(LiveEnvironment.thawed(self.environment, snapshot)).id for _ in range(children)]
            for env_id, snapshot in snapshots.items()
        }

    def _keep(self, live: LiveEnvironment) -> LiveEnvironment:
        self._live[live.id] = (self._clock(), live)
        self._live.move_to_end(live.id)
        return live

    def _make_room(self, wanted: int) -> None:
        oldest = self._clock() - self._idle_seconds
        for env_id, (used_at, live) in list(self._live.items()):
            if used_at >= oldest:
                break
            if not live.busy:
                del self._live[env_id]
        if len(self._live) + wanted > self._most:
            raise Refusal(429, "too_many_envs", f"{len(self._live)} environments are live. POST /terminate some.")


def _new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"
