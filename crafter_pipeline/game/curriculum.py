"""Start states and tasks of one achievement each, as data: `curriculum.json`, made by `make_curriculum`."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from crafter_pipeline.errors import FieldError, suggest

from .engine import Game
from .world_config import UNCHANGED, WorldConfig

FILE = "curriculum.json"


@dataclass(frozen=True, slots=True)
class StartState:
    """A moment of an expert's game in which an episode can begin."""

    name: str
    description: str
    snapshot: bytes

    def begin(self, seed: int, max_steps: int) -> Game:
        """An episode from here; `seed` decides what happens by chance."""
        return Game.start_from(self.snapshot, seed, max_steps)


@dataclass(frozen=True, slots=True)
class Task:
    """One achievement to reach. Its name is the achievement's."""

    name: str
    description: str
    start: str | None
    """Where it begins; None: at the start of the world of any seed."""
    max_steps: int
    """Env steps from the start."""
    seed: int
    """One on which the solution is known."""
    solution_steps: int
    """Env steps that the expert takes on that seed, in the task's limit."""

    def begin(self, seed: int, max_steps: int | None = None, world: WorldConfig = UNCHANGED) -> Game:
        """An episode of at most `max_steps` and the task's own limit. A start state brings its own world."""
        limit = self.max_steps if max_steps is None else min(max_steps, self.max_steps)
        if self.start is None:
            return Game(seed, max_steps=limit, world=world)
        return start_states()[self.start].begin(seed, limit)


@cache
def start_states() -> dict[str, StartState]:
    """By name."""
    return {
        name: StartState(name, entry["description"], base64.b64decode(entry["snapshot"]))
        for name, entry in _data()["starts"].items()
    }


@cache
def tasks() -> dict[str, Task]:
    """By name, roughly in the order in which they build on each other."""
    return {name: Task(name, **entry) for name, entry in _data()["tasks"].items()}


def find_start(name: str) -> StartState:
    """FieldError `start` with the nearest name if there is none."""
    if name not in start_states():
        raise FieldError("start", f"there is no start state {name!r}; {suggest(name, start_states())}")
    return start_states()[name]


def find_task(name: str) -> Task:
    """FieldError `task` with the nearest name if there is none."""
    if name not in tasks():
        raise FieldError("task", f"there is no task {name!r}; {suggest(name, tasks())}")
    return tasks()[name]


@cache
def _data() -> dict[str, Any]:
    return json.loads(files(__package__).joinpath(FILE).read_text())
