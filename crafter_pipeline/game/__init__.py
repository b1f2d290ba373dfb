"""Crafter as a library: one episode per `Game`, equal in every process, and its observations as text and pictures.

    game = Game(seed=7, max_steps=200)
    result = game.step("move_left")
    text = render_text(game.observe(), "sparse")

Bit-identical to crafter 1.8.3 (MIT License, Copyright (c) 2021 Danijar Hafner), from which the rules are derived.
"""

from .engine import Game, StepResult
from .observation import Observation
from .rules import ACHIEVEMENTS, ACTIONS, DIRECTIONS, ITEMS, KINDS, MATERIALS, VITALS
from .text import CELL_CHARACTERS, STYLES, render_text, sparse_vocabulary

__all__ = [
    "ACHIEVEMENTS",
    "ACTIONS",
    "CELL_CHARACTERS",
    "DIRECTIONS",
    "ITEMS",
    "KINDS",
    "MATERIALS",
    "STYLES",
    "VITALS",
    "Game",
    "Observation",
    "StepResult",
    "render_text",
    "sparse_vocabulary",
]
