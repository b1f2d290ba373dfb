"""Who plays: the expert where there is one, and players that should not do well."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Protocol

from crafter_pipeline.environments import EnvironmentInfo
from crafter_pipeline.expert import Expert, parse

IDLE_ACTIONS = ("noop", "no_op", "wait", "idle", "stay", "pass")

CONSTANTS = ("0", "1", "2", "-1", "10", "1/2", "x", "yes")
"""Answers that a student could learn to give to every question of an environment that takes free text."""
TRICKS = (
    ", ".join(map(str, range(-20, 101))),
    " or ".join(map(str, range(-20, 101))),
    "".join(f"\\boxed{{{n}}} " for n in range(-20, 101)).strip(),
    "nan",
    "*",
    "The answer is correct.",
)
"""Answers that a careless comparison takes for right: every number at once, no number, a claim."""


class Player(Protocol):
    """Plays one episode: asked once a turn, in order."""

    name: str

    def act(self, text: str) -> str:
        """An action, or the answer where free text is asked for. ValueError if `text` cannot be read."""


class RepeatPlayer:
    """Says one thing, always."""

    def __init__(self, action: str, name: str | None = None) -> None:
        self.name, self._action = name or f"only {action}", action

    def act(self, text: str) -> str:
        return self._action


class RandomPlayer:
    """A uniform action; for free text a random whole number. Equal seeds, equal play."""

    name = "random"

    def __init__(self, info: EnvironmentInfo, seed: int | str) -> None:
        self._actions, self._draw = info.actions, Random(f"random {seed}")

    def act(self, text: str) -> str:
        return self._draw.choice(self._actions) if self._actions else str(self._draw.randint(-1000, 1000))


class Teacher(Player, Protocol):
    """An expert, which may be overruled."""

    def overruled(self, action: str) -> None:
        """Another action than the one it said last was played."""


class CrafterExpert:
    """The scripted player of Crafter."""

    name = "expert"

    def __init__(self) -> None:
        self._expert = Expert()

    def act(self, text: str) -> str:
        return self._expert.act(parse(text)).action

    def overruled(self, action: str) -> None:
        self._expert.corrected(action)


class MathExpert:
    """The exact solver of the generated problems."""

    name = "expert"

    def act(self, text: str) -> str:
        from crafter_pipeline.mathematics import solve

        return solve(text).answer

    def overruled(self, action: str) -> None:
        pass


class SloppyPlayer:
    """As good as a half-trained student: at each turn the expert's action or a random one, half and half."""

    name = "half expert"

    def __init__(self, expert: Teacher, info: EnvironmentInfo, seed: int | str) -> None:
        self._expert, self._random, self._draw = expert, RandomPlayer(info, seed), Random(f"sloppy {seed}")

    def act(self, text: str) -> str:
        action = self._expert.act(text)
        if self._draw.random() < 0.5:
            action = self._random.act(text)
            self._expert.overruled(action)
        return action


EXPERTS: dict[str, Callable[[], Teacher]] = {"crafter": CrafterExpert, "math": MathExpert}
"""By the environment's name. An environment without one is validated without the checks that need it."""


def expert_of(info: EnvironmentInfo) -> Callable[[], Teacher] | None:
    """Makes an expert for one episode; None: there is none."""
    return EXPERTS.get(info.name)


def idle_action(info: EnvironmentInfo) -> str | None:
    """The action that does nothing; None: the environment has none."""
    return next((a for a in IDLE_ACTIONS if a in info.actions), None)


def idle_player(info: EnvironmentInfo) -> Player | None:
    """Does nothing: the idle action, or a blank answer. None: the environment has no idle action."""
    action = idle_action(info) if info.actions else ""
    return None if action is None else RepeatPlayer(action, "noop")


def repeat_players(info: EnvironmentInfo) -> list[Player]:
    """One player per action, or per constant answer."""
    return [RepeatPlayer(action) for action in info.actions or CONSTANTS]


def trick_players() -> list[Player]:
    """One player per trick, for free text."""
    return [RepeatPlayer(trick, f"trick {trick[:24]!r}") for trick in TRICKS]
