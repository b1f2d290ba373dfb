"""How the world of a seed comes about: terrain, ores, and the first creatures.

Derived from crafter 1.8.3, MIT License, Copyright (c) 2021 Danijar Hafner.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .noise import Floats, NoiseField, gradients
from .random_stream import State, randint, seeded_stream, state_of
from .rules import COAL, COW, DIAMOND, GRASS, IRON, LAVA, PATH, SAND, SKELETON, STONE, TREE, WATER, ZOMBIE
from .world_config import UNCHANGED, Chances, WorldConfig

CACHED_WORLDS = 64
"""Worlds kept per process (about 30 KB each): the episodes of a GRPO group share a seed."""

# (z, size) of each noise field; the tunnels' fields are stretched along one axis
_START, _WATER_COARSE, _WATER_FINE = (8, 3), (3, 15), (3, 5)
_MOUNTAIN_COARSE, _MOUNTAIN_FINE, _CAVE = (0, 15), (0, 5), (6, 7)
_COAL, _IRON, _LAVA, _SAND, _TREE = (1, 8), (2, 6), (6, 5), (4, 9), (5, 7)
_FIELDS = (
    *(_START, _WATER_COARSE, _WATER_FINE, _MOUNTAIN_COARSE, _MOUNTAIN_FINE, _CAVE),
    *(_COAL, _IRON, _LAVA, _SAND, _TREE),
)
_TUNNEL_Z, _TUNNEL_SIZE = 7, 3

_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class World:
    """A world before its first step."""

    area: tuple[int, int]
    materials: bytes
    """Material codes, x-major: cell (x, y) is at x * height + y."""
    creatures: tuple[tuple[int, int, int], ...]
    """(object code, x, y), in the order of creation."""
    random_state: State
    """Where the world's random stream stands."""


def world_seed(seed: int) -> int:
    """The seed of the world that stock `crafter.Env(seed=seed)` makes in its first `reset()`."""
    return hash((seed, 1)) % (2**31 - 1)


def generate_world(seed: int, area: tuple[int, int] = (64, 64), config: WorldConfig = UNCHANGED) -> World:
    """The world of an environment's seed (2 ms; 0.5 s more for the first of a process; the last 64 are kept)."""
    with _lock:  # else threads would record the same geometry side by side
        return _generate(seed, area, config.chances)


def _above(bound: float, factor: float) -> float:
    """What a draw must exceed to happen `factor` times as often as a draw above `bound`; exact for factor 1."""
    return 1 - (1 - bound) * factor


@lru_cache(maxsize=CACHED_WORLDS)
def _generate(seed: int, area: tuple[int, int], chance_of: Chances) -> World:
    stream = seeded_stream(world_seed(seed))
    draw = stream.random
    geometry = _geometry(area)
    fields = geometry.evaluate(randint(stream, 2**31 - 1))
    distance = geometry.distance

    start = 4 - distance
    start += 2 * fields[_START]
    start = 1 / (1 + np.exp(-start))
    water = fields[_WATER_COARSE] + 0.15 * fields[_WATER_FINE] + 0.1
    water -= 2 * start
    mountain = (fields[_MOUNTAIN_COARSE] + 0.3 * fields[_MOUNTAIN_FINE]) / 1.3
    mountain -= 4 * start + 0.3 * water

    clearing = start > 0.5
    mountains = (mountain > 0.15) & ~clearing
    caves = mountains & (mountain > 0.3) & (fields[_CAVE] > 0.15)
    solid = mountains & ~caves
    tunnels = solid & ((fields["horizontal"] > 0.4) | (fields["vertical"] > 0.4))
    rock = solid & ~tunnels
    lowland = ~mountains & ~clearing
    beach = lowland & (water > 0.25) & (water <= 0.35) & (fields[_SAND] > -0.2)
    lake = lowland & ~beach & (water > 0.3)
    forest = lowland & ~beach & ~lake & (fields[_TREE] > 0)

    ground = np.full(area[0] * area[1], GRASS, np.uint8)
    ground[caves | tunnels] = PATH
    ground[beach] = SAND
    ground[lake] = WATER
    ground[rock] = STONE

    # Cells that draw random numbers do so in scan order, and only where stock would.
    chances = np.zeros(ground.size, np.uint8)
    chances[rock & (fields[_COAL] > 0)] |= 1
    chances[rock & (fields[_IRON] > 0.4)] |= 2
    chances[rock & (mountain > 0.18)] |= 4
    chances[rock & (mountain > 0.3) & (fields[_LAVA] > 0.35)] |= 8
    chances[forest] = 16
    cells = np.flatnonzero(chances)
    materials = bytearray(ground.tobytes())
    tree, coal = _above(0.8, chance_of.tree), _above(0.85, chance_of.coal)
    iron, diamond = _above(0.75, chance_of.iron), _above(0.994, chance_of.diamond)
    for cell, chance in zip(cells.tolist(), chances[cells].tolist(), strict=True):
        if chance == 16:
            if draw() > tree:
                materials[cell] = TREE
        elif chance & 1 and draw() > coal:
            materials[cell] = COAL
        elif chance & 2 and draw() > iron:
            materials[cell] = IRON
        elif chance & 4 and draw() > diamond:
            materials[cell] = DIAMOND
        elif chance & 8:
            materials[cell] = LAVA

    final = np.frombuffer(materials, np.uint8)
    walkable = (final == GRASS) | (final == SAND) | (final == PATH)
    chances = np.zeros(final.size, np.uint8)
    chances[(final == GRASS) & (distance > chance_of.cow_distance)] |= 1
    chances[walkable & (distance > chance_of.zombie_distance)] |= 2
    chances[tunnels & (final == PATH) & (distance > chance_of.skeleton_distance)] |= 4
    cells = np.flatnonzero(chances)
    cow, zombie = _above(0.985, chance_of.cow), _above(0.993, chance_of.zombie)
    skeleton = _above(0.95, chance_of.skeleton)
    creatures = []
    for cell, chance in zip(cells.tolist(), chances[cells].tolist(), strict=True):
        if chance & 1 and draw() > cow:
            creatures.append((COW, *divmod(cell, area[1])))
        elif chance & 2 and draw() > zombie:
            creatures.append((ZOMBIE, *divmod(cell, area[1])))
        elif chance & 4 and draw() > skeleton:
            creatures.append((SKELETON, *divmod(cell, area[1])))
    return World(area, bytes(materials), tuple(creatures), state_of(stream))


class _Geometry:
    """What all worlds of an area share: the noise fields' geometry and each cell's distance from the start."""

    def __init__(self, area: tuple[int, int]) -> None:
        grid_x, grid_y = np.meshgrid(np.arange(area[0]), np.arange(area[1]), indexing="ij")
        x, y = grid_x.astype(np.float64).ravel(), grid_y.astype(np.float64).ravel()
        self.distance: Floats = np.sqrt((grid_x - area[0] // 2) ** 2 + (grid_y - area[1] // 2) ** 2).ravel()
        scales = {(z, size): (x / size, y / size, z) for z, size in _FIELDS} | {
            "horizontal": (2 * x / _TUNNEL_SIZE, y / 5 / _TUNNEL_SIZE, _TUNNEL_Z),
            "vertical": (x / 5 / _TUNNEL_SIZE, 2 * y / _TUNNEL_SIZE, _TUNNEL_Z),
        }
        self._names: tuple[tuple[int, int] | str, ...] = tuple(scales)
        grids = [(grid_x, grid_y, np.full(x.size, float(z))) for grid_x, grid_y, z in scales.values()]
        xs, ys, zs = (np.concatenate(axis) for axis in zip(*grids, strict=True))
        self._noise = NoiseField(xs, ys, zs)  # one for all: a tenth of the array calls

    def evaluate(self, seed: int) -> dict[tuple[int, int] | str, NDArray[np.float64]]:
        """All fields of an opensimplex seed, each of width * height values."""
        values = self._noise(gradients(seed)).reshape(len(self._names), -1)
        return dict(zip(self._names, values, strict=True))


@lru_cache(maxsize=4)
def _geometry(area: tuple[int, int]) -> _Geometry:
    return _Geometry(area)
