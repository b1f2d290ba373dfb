"""The picture of a game, drawn by stock crafter's own views when somebody looks.

`crafter` (with its textures) is imported at the first picture.

Derived from crafter 1.8.3, MIT License, Copyright (c) 2021 Danijar Hafner.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .rules import ARROW, DIRECTIONS, MATERIALS, OBJECTS, OFFSETS, PLANT, PLAYER, RIPE_AFTER, daylight

if TYPE_CHECKING:
    from .board import Thing
    from .engine import Game


SMALLEST_CELL = 2
"""Pixels; below it, stock's item icons vanish."""


def render(game: Game, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture, uint8 of shape (height, width, 3); `size` is (width, height) in pixels.

    In parity mode a 64x64 picture equals stock's, night noise included; otherwise the noise is a function of seed and
    step. Raises ValueError if a cell would be smaller than 2x2 pixels.
    """
    from crafter import engine

    view = np.array(game.view)
    pixels = np.array(size)
    unit = pixels // view
    if unit.min() < SMALLEST_CELL:
        raise ValueError(f"A picture of {tuple(size)} pixels is too small for {game.view} cells.")
    things = [_Sprite(thing, game) for thing in game._board.things]
    local = engine.LocalView(_World(game, things), _textures(), list(game.local_view))
    items = engine.ItemView(_textures(), [view[0], view[1] - game.local_view[1]])
    picture = np.concatenate([local(things[0], unit), items(game.inventory, unit)], 1)
    canvas = np.zeros((*pixels, 3), np.uint8)
    x, y = (pixels - unit * view) // 2
    canvas[x : x + picture.shape[0], y : y + picture.shape[1]] = picture
    return canvas.transpose((1, 0, 2))


@cache
def _textures() -> Any:
    from crafter import constants, engine

    return engine.Textures(constants.root / "assets")


class _Sprite:
    """An object as stock's view wants it."""

    def __init__(self, thing: Thing, game: Game) -> None:
        self.pos = np.array((thing.x, thing.y))
        self.sleeping = game._sleeping
        if thing.kind == PLAYER:
            self.texture = "player-sleep" if game._sleeping else f"player-{DIRECTIONS[game._facing]}"
        elif thing.kind == ARROW:
            self.texture = f"arrow-{DIRECTIONS[OFFSETS.index((thing.dx, thing.dy))]}"
        elif thing.kind == PLANT:
            self.texture = "plant-ripe" if thing.clock > RIPE_AFTER else "plant"
        else:
            self.texture = OBJECTS[thing.kind]


class _World:
    """The world as stock's view wants it. It copies the ground: stock's view caches hold on to it."""

    def __init__(self, game: Game, objects: list[_Sprite]) -> None:
        self.area = game.area
        self.daylight = daylight(game.steps, game.world.day_length)
        self.objects = objects
        self.random = _NightNoise(game)
        self._grid = game._board.grid.copy()

    def __getitem__(self, position: Any) -> tuple[str | None, None]:
        code = int(self._grid[int(position[0]), int(position[1])])
        return (MATERIALS[code] if code else None), None


class _NightNoise:
    """The random values of the night's picture."""

    def __init__(self, game: Game) -> None:
        self._bits, self._values = game._night_noise, game._noise_values
        self._seed = hash((game.seed, game.steps)) % 2**32

    def uniform(self, low: float, high: float, shape: tuple[int, int]) -> NDArray[np.float64]:
        """As `RandomState.uniform`, from the bits that parity mode drew, if they fit."""
        if self._bits is None or shape[0] * shape[1] != self._values:
            return np.random.RandomState(self._seed).uniform(low, high, shape)
        words = np.frombuffer(self._bits.to_bytes(8 * self._values, "little"), "<u4")
        upper, lower = (words[0::2] >> 5).astype(np.float64), (words[1::2] >> 6).astype(np.float64)
        unit = (upper * 67108864.0 + lower) / 9007199254740992.0
        return (low + (high - low) * unit).reshape(shape)
