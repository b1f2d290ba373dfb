"""The rules of the game as data: names, codes, recipes, and the clock of day and night.

Derived from crafter 1.8.3, MIT License, Copyright (c) 2021 Danijar Hafner.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

# --------------------------------------------------------------------------- materials and objects

MATERIALS = (
    "void",  # outside the world
    "water",
    "grass",
    "stone",
    "path",
    "sand",
    "tree",
    "lava",
    "coal",
    "iron",
    "diamond",
    "table",
    "furnace",
)
"""Names of the ground, at the index that is its code."""
VOID, WATER, GRASS, STONE, PATH, SAND, TREE, LAVA, COAL, IRON, DIAMOND, TABLE, FURNACE = range(13)

OBJECTS = ("player", "cow", "zombie", "skeleton", "arrow", "plant")
"""Names of what stands on the ground, at the index that is its code."""
PLAYER, COW, ZOMBIE, SKELETON, ARROW, PLANT = range(6)
INITIAL_HEALTH = (9, 3, 5, 3, 0, 1)

KINDS = (*MATERIALS, "player", "cow", "zombie", "skeleton", "arrow", "sapling", "ripe_plant")
"""What an observation can show in a cell: a material or the object that hides it."""

RIPE_AFTER = 300
"""A plant is ripe when it is older than this, in env steps with the player near."""


def _table(*allowed: int) -> bytes:
    return bytes(code in allowed for code in range(len(MATERIALS)))


WALKABLE = _table(GRASS, PATH, SAND)
PLAYER_WALKABLE = _table(GRASS, PATH, SAND, LAVA)
ARROW_FREE = _table(GRASS, PATH, SAND, WATER, LAVA)
STONE_PLACEABLE = _table(GRASS, SAND, PATH, WATER, LAVA)

# --------------------------------------------------------------------------- the player

ACTIONS = (
    "noop",
    "move_left",
    "move_right",
    "move_up",
    "move_down",
    "do",
    "sleep",
    "place_stone",
    "place_table",
    "place_furnace",
    "place_plant",
    "make_wood_pickaxe",
    "make_stone_pickaxe",
    "make_iron_pickaxe",
    "make_wood_sword",
    "make_stone_sword",
    "make_iron_sword",
)
NOOP, MOVE_LEFT, MOVE_RIGHT, MOVE_UP, MOVE_DOWN, DO, SLEEP = range(7)
PLACE_STONE, PLACE_TABLE, PLACE_FURNACE, PLACE_PLANT = range(7, 11)
ACTION_CODES = {name: code for code, name in enumerate(ACTIONS)}

DIRECTIONS = ("left", "right", "up", "down")
OFFSETS = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""(dx, dy) of each direction: x to the right, y down."""
LEFT, RIGHT, UP, DOWN = range(4)

VITALS = ("health", "food", "drink", "energy")
ITEMS = (
    *VITALS,
    "sapling",
    "wood",
    "stone",
    "coal",
    "iron",
    "diamond",
    "wood_pickaxe",
    "stone_pickaxe",
    "iron_pickaxe",
    "wood_sword",
    "stone_sword",
    "iron_sword",
)
MAX_ITEM = 9
"""No vital and no item goes above this."""

ACHIEVEMENTS = (
    "collect_coal",
    "collect_diamond",
    "collect_drink",
    "collect_iron",
    "collect_sapling",
    "collect_stone",
    "collect_wood",
    "defeat_skeleton",
    "defeat_zombie",
    "eat_cow",
    "eat_plant",
    "make_iron_pickaxe",
    "make_iron_sword",
    "make_stone_pickaxe",
    "make_stone_sword",
    "make_wood_pickaxe",
    "make_wood_sword",
    "place_furnace",
    "place_plant",
    "place_stone",
    "place_table",
    "wake_up",
)


class Collect(NamedTuple):
    """What `do` gives on a material."""

    tool: str | None
    item: str
    leaves: int
    """Code of the material that stays behind."""
    probability: float


class Place(NamedTuple):
    """What an action of placing costs, and what it leaves."""

    item: str
    amount: int
    allowed: bytes
    """Per material code: 1 where it may be placed."""
    material: int
    achievement: str


class Make(NamedTuple):
    """What a tool costs. All need a table in the 3x3 cells around the player."""

    tool: str
    costs: tuple[tuple[str, int], ...]
    furnace: bool


COLLECT = {
    TREE: Collect(None, "wood", GRASS, 1.0),
    STONE: Collect("wood_pickaxe", "stone", PATH, 1.0),
    COAL: Collect("wood_pickaxe", "coal", PATH, 1.0),
    IRON: Collect("stone_pickaxe", "iron", PATH, 1.0),
    DIAMOND: Collect("iron_pickaxe", "diamond", PATH, 1.0),
    WATER: Collect(None, "drink", WATER, 1.0),
    GRASS: Collect(None, "sapling", GRASS, 0.1),
}
PLACE = {
    PLACE_STONE: Place("stone", 1, STONE_PLACEABLE, STONE, "place_stone"),
    PLACE_TABLE: Place("wood", 2, WALKABLE, TABLE, "place_table"),
    PLACE_FURNACE: Place("stone", 4, WALKABLE, FURNACE, "place_furnace"),
}
MAKE = {
    ACTION_CODES["make_wood_pickaxe"]: Make("wood_pickaxe", (("wood", 1),), False),
    ACTION_CODES["make_stone_pickaxe"]: Make("stone_pickaxe", (("wood", 1), ("stone", 1)), False),
    ACTION_CODES["make_iron_pickaxe"]: Make("iron_pickaxe", (("wood", 1), ("coal", 1), ("iron", 1)), True),
    ACTION_CODES["make_wood_sword"]: Make("wood_sword", (("wood", 1),), False),
    ACTION_CODES["make_stone_sword"]: Make("stone_sword", (("wood", 1), ("stone", 1)), False),
    ACTION_CODES["make_iron_sword"]: Make("iron_sword", (("wood", 1), ("coal", 1), ("iron", 1)), True),
}

# --------------------------------------------------------------------------- day and night

NIGHT_BELOW = 0.5
"""Daylight under which the picture is noisy and the texts say night."""


DAY_LENGTH = 300
"""Env steps of a day and night in the unchanged game."""


@lru_cache(maxsize=100_000)
def daylight(step: int, day_length: int = DAY_LENGTH) -> float:
    """Daylight after `step` env steps: 1 is noon, 0 the darkest moment of the night."""
    progress = (step / day_length) % 1 + 0.3
    return float(1 - np.abs(np.cos(np.pi * progress)) ** 3)
