"""What a policy may know: the facts behind every text of the game.

Derived from crafter 1.8.3, MIT License, Copyright (c) 2021 Danijar Hafner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .rules import DIRECTIONS, KINDS, MATERIALS, OFFSETS, PLANT, RIPE_AFTER, daylight

if TYPE_CHECKING:
    from .engine import Game

_RIPE_PLANT = KINDS.index("ripe_plant")


@dataclass(frozen=True, slots=True)
class Observation:
    """One moment of an episode as the player sees it."""

    step: int
    """Env steps taken."""
    max_steps: int
    view: tuple[tuple[str, ...], ...]
    """Names of `rules.KINDS`, 7 rows of 9: the first row is the upper one, the player in the middle. Objects hide the
    ground, as in the picture; outside the world is `void`."""
    facing: str
    """left, right, up or down."""
    inventory: dict[str, int]
    """All 16 names of `rules.ITEMS`, each 0..9."""
    achievements: tuple[str, ...]
    """Unlocked ones, in the order of `rules.ACHIEVEMENTS`."""
    sleeping: bool
    daylight: float
    """1 is noon; below 0.5 it is night."""
    position: tuple[int, int]
    """(x, y) in the world; only the style `synth` tells it."""

    @property
    def front(self) -> str:
        """What the player faces."""
        dx, dy = OFFSETS[DIRECTIONS.index(self.facing)]
        return self.view[len(self.view) // 2 + dy][len(self.view[0]) // 2 + dx]


def observe(game: Game) -> Observation:
    """The observation of a game's present state."""
    return Observation(
        step=game.steps,
        max_steps=game.max_steps,
        view=_local_view(game),
        facing=DIRECTIONS[game._facing],
        inventory=game.inventory,
        achievements=game.unlocked,
        sleeping=game._sleeping,
        daylight=daylight(game.steps, game.world.day_length),
        position=game.position,
    )


def _local_view(game: Game) -> tuple[tuple[str, ...], ...]:
    board = game._board
    materials, at, stride = board.materials, board.at, board.layout.stride
    center_x, center_y = game.position
    columns, rows = game.local_view
    left, top = center_x - columns // 2, center_y - rows // 2
    width, height = game.area
    view = []
    for y in range(top, top + rows):
        if not 0 <= y < height:
            view.append((KINDS[0],) * columns)
            continue
        row = []
        cell = board.layout.cell(left, y)
        for x in range(left, left + columns):
            if not 0 <= x < width:
                row.append(KINDS[0])
            elif (thing := at[cell]) is None:
                row.append(KINDS[materials[cell]])
            elif thing.kind == PLANT and thing.clock > RIPE_AFTER:
                row.append(KINDS[_RIPE_PLANT])
            else:
                row.append(KINDS[len(MATERIALS) + thing.kind])
            cell += stride
        view.append(tuple(row))
    return tuple(view)
