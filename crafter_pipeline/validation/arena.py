"""Playing an environment step by step, over HTTP alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from crafter_pipeline.clients.task_app import LiveEnvironment, LiveStep, TaskAppClient
from crafter_pipeline.environments import EnvironmentInfo
from crafter_pipeline.validation.players import Player, RandomPlayer, idle_action

PERSISTENCE = 0.75
"""How often the farmer goes on with what it did, if nothing pays more."""


@dataclass(frozen=True, slots=True)
class Played:
    """One episode."""

    player: str
    seed: int
    rewards: tuple[float, ...]
    """Per turn, shaped if rewards are shaped."""
    achievements: tuple[str, ...]

    @property
    def total(self) -> float:
        return sum(self.rewards)


@dataclass(frozen=True, slots=True)
class Arena:
    """A served environment and how episodes are played in it."""

    client: TaskAppClient
    info: EnvironmentInfo
    max_env_steps: int
    step_rewards: Mapping[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """`env.config` of every episode."""
        config: dict[str, Any] = {"max_env_steps": self.max_env_steps}
        if self.info.observations:
            config["observation"] = self.info.observations[0]
        if self.step_rewards is not None:
            config["step_rewards"] = dict(self.step_rewards)
        return config

    @contextmanager
    def environment(self, seed: int) -> Iterator[LiveEnvironment]:
        """A new environment, dropped at the end."""
        made = self.client.create(self.info.name, seed, self.config)
        try:
            yield made
        finally:
            self.client.terminate(made.env_id)

    def step(self, env_id: str, action: str) -> LiveStep:
        """One turn of one action."""
        return self.client.step(env_id, self.info.tool_name, self.info.tool_arguments((action,)))


def play(arena: Arena, seed: int, player: Player) -> Played:
    """One episode of a player. ValueError if the player cannot read what it is shown."""
    rewards: list[float] = []
    unlocked: list[str] = []
    with arena.environment(seed) as live:
        text = live.text
        while len(rewards) < arena.max_env_steps:
            step = arena.step(live.env_id, player.act(text))
            rewards.append(step.reward)
            unlocked += step.info.get("achievements_added") or ()
            text = step.text
            if step.done:
                break
    return Played(player.name, seed, tuple(rewards), tuple(unlocked))


def farm(arena: Arena, seed: int) -> Played:
    """One episode of the greedy farmer: of every turn's possible actions the one that pays most at once.

    It looks one step ahead by restoring a snapshot per action. Among equals it takes one that does anything at all,
    mostly the last one again: so it wanders until something pays, and stays there.
    """
    draw, last = Random(seed), ""
    rewards: list[float] = []
    unlocked: list[str] = []
    client, live = arena.client, arena.client.create(arena.info.name, seed, arena.config)
    here = live.env_id
    try:
        while len(rewards) < arena.max_env_steps:
            snapshot = client.snapshot(here)
            client.terminate(here)
            here = ""
            copies = {action: client.restore(snapshot).env_id for action in arena.info.actions}
            tried = {action: arena.step(copy, action) for action, copy in copies.items()}
            last = _greedy(tried, idle_action(arena.info), last, draw)
            here, best = copies.pop(last), tried[last]
            for copy in copies.values():
                client.terminate(copy)
            rewards.append(best.reward)
            unlocked += best.info.get("achievements_added") or ()
            if best.done:
                break
    finally:
        if here:
            client.terminate(here)
    return Played("farmer", seed, tuple(rewards), tuple(unlocked))


def _greedy(tried: Mapping[str, LiveStep], idle: str | None, last: str, draw: Random) -> str:
    """The action of the highest reward."""
    most = max(step.reward for step in tried.values())
    best = [action for action, step in tried.items() if step.reward == most]
    nothing = tried[idle].observation if idle is not None else None
    best = [action for action in best if tried[action].observation != nothing] or best
    return last if last in best and draw.random() < PERSISTENCE else draw.choice(best)


Moment = tuple[Any, float, bool, tuple[str, ...]]
"""Observation, reward, done, achievements of a step."""


@dataclass(frozen=True, slots=True)
class Twins:
    """The same actions in two environments of one seed, and in one restored from the second's middle."""

    seed: int
    first: tuple[Moment, ...]
    """From the start on; the first moment is the start itself."""
    second: tuple[Moment, ...]
    restored: tuple[Moment, ...]
    """From the snapshot on."""

    @property
    def steps(self) -> int:
        """How many steps were compared."""
        return len(self.second) + len(self.restored) - 2

    @property
    def difference(self) -> str | None:
        """Where they differ first; None: nowhere."""
        if where := _differs(self.first, self.second):
            return f"seed {self.seed}: two environments differ {where}"
        if where := _differs(self.second[len(self.second) - len(self.restored) :], self.restored):
            return f"seed {self.seed}: an environment restored from a snapshot differs {where}"
        return None


def play_twins(arena: Arena, seed: int) -> Twins:
    """Random actions of one seed: once, then again with a snapshot in the middle, then from the snapshot on."""
    player = RandomPlayer(arena.info, seed)
    actions = [player.act("") for _ in range(arena.max_env_steps)]
    with arena.environment(seed) as live:
        first = _play_script(arena, live, actions)
    middle = (len(first) - 1) // 2
    with arena.environment(seed) as live:
        begun = _play_script(arena, live, actions[:middle])
        snapshot = arena.client.snapshot(live.env_id)
        ended = _play_script(arena, live, actions[middle:])
    second = (*begun, *ended[1:])
    restored = arena.client.restore(snapshot)
    try:
        continued = _play_script(arena, restored, actions[middle:])
    finally:
        arena.client.terminate(restored.env_id)
    before = begun[-1]  # the observation after a restore stands for the step before the snapshot
    return Twins(seed, first, second, ((continued[0][0], *before[1:]), *continued[1:]))


def _play_script(arena: Arena, live: LiveEnvironment, actions: list[str]) -> tuple[Moment, ...]:
    moments: list[Moment] = [(live.observation, 0.0, False, ())]
    for action in actions:
        step = arena.step(live.env_id, action)
        added = tuple(step.info.get("achievements_added") or ())
        moments.append((step.observation, step.reward, step.done, added))
        if step.done:
            break
    return tuple(moments)


def _differs(a: tuple[Moment, ...], b: tuple[Moment, ...]) -> str | None:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        for what, one, other in zip(("observation", "reward", "end", "achievements"), x, y, strict=True):
            if one != other:
                return f"at step {i} in the {what}{_keys(one, other)}"
    return None if len(a) == len(b) else f"in length: {len(a) - 1} and {len(b) - 1} steps"


def _keys(one: Any, other: Any) -> str:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return f" ({one} and {other})"
    return f" ({', '.join(sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k)))})"
