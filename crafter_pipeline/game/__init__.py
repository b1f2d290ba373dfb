"""Crafter as a library: one episode per `Game`, equal in every process, and its observations as text and pictures.

    game = Game(seed=7, max_steps=200)
    result = game.step("move_left")
    text = render_text(game.observe(), "sparse")

Bit-identical to crafter 1.8.3 (MIT License, Copyright (c) 2021 Danijar Hafner), from which the rules are derived.
"""

from .engine import MAX_SEED, Game, StepResult
from .events import Moment, describe, hurt, moment_before
from .observation import Observation
from .rules import ACHIEVEMENTS, ACTIONS, DIRECTIONS, ITEMS, KINDS, MATERIALS, VITALS
from .text import CELL_CHARACTERS, STYLES, render_text, sparse_vocabulary
from .world_config import DIFFICULTIES, UNCHANGED, WorldConfig, make_world, read_world

__all__ = [
    "ACHIEVEMENTS",
    "ACTIONS",
    "CELL_CHARACTERS",
    "DIFFICULTIES",
    "DIRECTIONS",
    "ITEMS",
    "KINDS",
    "MATERIALS",
    "MAX_SEED",
    "STYLES",
    "UNCHANGED",
    "VITALS",
    "Game",
    "Moment",
    "Observation",
    "StepResult",
    "WorldConfig",
    "describe",
    "hurt",
    "make_world",
    "moment_before",
    "read_world",
    "render_text",
    "sparse_vocabulary",
]
