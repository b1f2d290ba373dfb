"""What of a world can be set: how many creatures, ores and trees there are, and how long a day is.

The default is the unchanged game, to the last bit. Rates and densities are factors of the game's own probabilities: 0
is none, 2 is twice as likely, and no probability goes above 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crafter_pipeline.errors import FieldError, suggest

Factor = Annotated[float, Field(ge=0, le=100)]
Cells = Annotated[int, Field(ge=0, le=64)]


class Chances(NamedTuple):
    """What of a world config shapes a new world: factors of the first draws, and distances from the start."""

    tree: float
    coal: float
    iron: float
    diamond: float
    cow: float
    zombie: float
    skeleton: float
    cow_distance: int
    zombie_distance: int
    skeleton_distance: int


class WorldConfig(BaseModel):
    """The knobs of a world. `read_world` reads them from a request."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    zombie_initial_rate: Factor = 1.0
    """Zombies in a new world, on grass."""
    zombie_initial_distance: Cells = 10
    """In a new world zombies stand farther than this from the start, in a straight line."""
    zombie_spawn_rate: Factor = 1.0
    """Zombies that appear during the episode."""
    zombie_spawn_distance: Cells = 6
    """They appear at least so many steps from the player."""
    skeleton_initial_rate: Factor = 1.0
    """Skeletons in a new world, in tunnels."""
    skeleton_initial_distance: Cells = 0
    """As for zombies."""
    skeleton_spawn_rate: Factor = 1.0
    """Skeletons that appear during the episode, on paths."""
    skeleton_spawn_distance: Cells = 7
    """As for zombies."""
    cow_initial_rate: Factor = 1.0
    """Cows in a new world, on grass."""
    cow_initial_distance: Cells = 3
    """As for zombies."""
    cow_spawn_rate: Factor = 1.0
    """Cows that appear during the episode."""
    cow_spawn_distance: Cells = 5
    """As for zombies."""
    tree_density: Factor = 1.0
    """Trees in the forests."""
    coal_density: Factor = 1.0
    """Coal in its part of the mountains."""
    iron_density: Factor = 1.0
    """Iron in its part of the mountains; above 4 every cell there is iron."""
    diamond_density: Factor = 1.0
    """Diamonds inside the mountains."""
    day_length: Annotated[int, Field(ge=10, le=100_000)] = 300
    """Env steps of a day and night; it is dark from about 49 % to 91 % of it."""

    @cached_property
    def chances(self) -> Chances:
        """What a new world depends on."""
        return Chances(
            tree=self.tree_density,
            coal=self.coal_density,
            iron=self.iron_density,
            diamond=self.diamond_density,
            cow=self.cow_initial_rate,
            zombie=self.zombie_initial_rate,
            skeleton=self.skeleton_initial_rate,
            cow_distance=self.cow_initial_distance,
            zombie_distance=self.zombie_initial_distance,
            skeleton_distance=self.skeleton_initial_distance,
        )

    def changes(self) -> dict[str, float]:
        """The knobs that differ from the unchanged game."""
        return self.model_dump(exclude_defaults=True)


def read_world(knobs: Mapping[str, Any], base: WorldConfig | None = None) -> WorldConfig:
    """`base` (the unchanged game) with some knobs set. FieldError names the knob that is unknown or wrong."""
    names = WorldConfig.model_fields
    for name in knobs:
        if name not in names:
            raise FieldError(str(name), f"a world has no such knob; {suggest(str(name), names)}")
    try:
        return WorldConfig.model_validate({**(base or UNCHANGED).model_dump(), **knobs})
    except ValidationError as e:
        error = e.errors()[0]
        raise FieldError(str(error["loc"][0]), f"{error['msg']}, not {knobs[str(error['loc'][0])]!r}") from None


UNCHANGED = WorldConfig()
"""The world of crafter 1.8.3."""

DIFFICULTIES = {
    "easy": WorldConfig(
        zombie_initial_rate=0.5,
        zombie_spawn_rate=0.4,
        zombie_spawn_distance=8,
        skeleton_initial_rate=0.5,
        skeleton_spawn_rate=0.5,
        cow_initial_rate=1.5,
        cow_spawn_rate=3.0,
        tree_density=1.25,
        coal_density=1.5,
        iron_density=1.5,
        diamond_density=2.0,
    ),
    "normal": UNCHANGED,
    "hard": WorldConfig(
        zombie_initial_rate=2.0,
        zombie_initial_distance=6,
        zombie_spawn_rate=2.5,
        zombie_spawn_distance=4,
        skeleton_initial_rate=2.0,
        skeleton_spawn_rate=2.0,
        skeleton_spawn_distance=4,
        cow_initial_rate=0.5,
        cow_spawn_rate=0.5,
        tree_density=0.6,
        coal_density=0.6,
        iron_density=0.5,
        diamond_density=0.5,
    ),
    "peaceful": WorldConfig(
        zombie_initial_rate=0.0, zombie_spawn_rate=0.0, skeleton_initial_rate=0.0, skeleton_spawn_rate=0.0
    ),
}
"""Worlds with a name."""


def make_world(difficulty: str = "normal", knobs: Mapping[str, Any] | None = None) -> WorldConfig:
    """A difficulty with some knobs laid over it. FieldError `difficulty` or `world.<knob>`."""
    if difficulty not in DIFFICULTIES:
        raise FieldError("difficulty", f"there is no difficulty {difficulty!r}; {suggest(difficulty, DIFFICULTIES)}")
    try:
        return read_world(knobs or {}, DIFFICULTIES[difficulty])
    except FieldError as e:
        raise e.below("world") from None
