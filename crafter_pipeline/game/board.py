"""What is where: the ground, the objects on it, and the 12x12 chunks in which creatures are counted.

Cells are plain ints on a grid with a border of void around it, so that a step in any direction is one addition and
stays inside the arrays.

Stock keeps a chunk's objects in a set ordered by memory address and therefore differs between processes; here they stay
in order of insertion.

Derived from crafter 1.8.3, MIT License, Copyright (c) 2021 Danijar Hafner.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .rules import GRASS, INITIAL_HEALTH, PATH

CHUNK = 12


class Thing:
    """An object on the board."""

    __slots__ = ("kind", "index", "x", "y", "cell", "chunk", "health", "clock", "dx", "dy", "removed")

    kind: int
    """Object code (`rules.OBJECTS`)."""
    index: int
    """Number in the order of creation, from 1."""
    x: int
    y: int
    cell: int
    chunk: int
    health: int
    clock: int
    """Zombie: steps until it can hit; skeleton: until it can shoot; plant: its age."""
    dx: int
    dy: int
    """Direction of an arrow's flight."""
    removed: bool


class Layout:
    """Index tables of an area, shared by all its boards."""

    def __init__(self, area: tuple[int, int]) -> None:
        width, height = self.area = area
        self.stride = height + 2
        self.cells = (width + 2) * self.stride
        self.offsets = (-self.stride, self.stride, -1, 1)
        """Cell difference of left, right, up, down."""
        self.x = [cell // self.stride - 1 for cell in range(self.cells)]
        self.y = [cell % self.stride - 1 for cell in range(self.cells)]
        self.chunk_columns = (width + CHUNK - 1) // CHUNK
        self.chunk_rows = (height + CHUNK - 1) // CHUNK
        self.chunks = self.chunk_columns * self.chunk_rows
        self.chunk = [
            x // CHUNK * self.chunk_rows + y // CHUNK for x, y in zip(self.x, self.y, strict=True)
        ]  # of border cells: never asked for

    def cell(self, x: int, y: int) -> int:
        """The cell at (x, y)."""
        return (x + 1) * self.stride + y + 1


@lru_cache(maxsize=8)
def layout_of(area: tuple[int, int]) -> Layout:
    """The index tables of an area."""
    return Layout(area)


@lru_cache(maxsize=128)
def _count_by_chunk(area: tuple[int, int], materials: bytes, code: int) -> tuple[int, ...]:
    """Cells of a material per chunk. Kept, since the games of one world begin with equal counts."""
    layout = layout_of(area)
    padded = np.zeros((layout.chunk_columns * CHUNK, layout.chunk_rows * CHUNK), bool)
    padded[: area[0], : area[1]] = np.frombuffer(materials, np.uint8).reshape(area) == code
    blocks = padded.reshape(layout.chunk_columns, CHUNK, layout.chunk_rows, CHUNK)
    return tuple(blocks.sum((1, 3)).ravel().tolist())


class Board:
    """The changing state of a world: materials, objects, chunks."""

    def __init__(self, area: tuple[int, int], materials: bytes) -> None:
        """A board without objects; `materials` as in `World.materials`."""
        width, height = area
        self.layout = layout = layout_of(area)
        self.materials = bytearray(layout.cells)
        self.grid: NDArray[np.uint8] = np.frombuffer(self.materials, np.uint8).reshape(width + 2, height + 2)[
            1:-1, 1:-1
        ]
        """The materials without border, shape (width, height): a view, not a copy."""
        self.grid[:] = np.frombuffer(materials, np.uint8).reshape(area)
        self.at: list[Thing | None] = [None] * layout.cells
        self.things: list[Thing] = []
        """All objects in the order of creation; the player is the first."""
        self.next_index = 1
        self.chunk_members: list[dict[Thing, None]] = [{} for _ in range(layout.chunks)]
        self.chunk_order: list[int] = []
        """Chunks in the order in which an object first entered them: the others are never balanced."""
        self._chunk_seen = bytearray(layout.chunks)
        self.grass = list(_count_by_chunk(area, materials, GRASS))
        """Per chunk: cells of grass."""
        self.path = list(_count_by_chunk(area, materials, PATH))
        """Per chunk: cells of path."""

    def add(self, kind: int, x: int, y: int) -> Thing:
        """Put a new object on a free cell."""
        thing = Thing()
        thing.kind, thing.x, thing.y = kind, x, y
        thing.health = INITIAL_HEALTH[kind]
        thing.clock = thing.dx = thing.dy = 0
        thing.index = self.next_index
        self.next_index += 1
        self.put(thing)
        self.enter_chunk(thing.chunk)
        self.chunk_members[thing.chunk][thing] = None
        return thing

    def put(self, thing: Thing) -> None:
        """Place a thing whose x and y are set, without telling its chunk."""
        thing.removed = False
        thing.cell = cell = self.layout.cell(thing.x, thing.y)
        thing.chunk = self.layout.chunk[cell]
        self.at[cell] = thing
        self.things.append(thing)

    def enter_chunk(self, chunk: int) -> None:
        """Note that an object is in this chunk."""
        if not self._chunk_seen[chunk]:
            self._chunk_seen[chunk] = 1
            self.chunk_order.append(chunk)

    def remove(self, thing: Thing) -> None:
        """Take an object off the board; a second time does nothing."""
        if thing.removed:
            return
        self.things.remove(thing)
        self.at[thing.cell] = None
        del self.chunk_members[thing.chunk][thing]
        thing.removed = True

    def move(self, thing: Thing, cell: int) -> None:
        """Move an object to a free cell. As in stock, the dead act once more, but they do not move."""
        if thing.removed:
            return
        self.at[thing.cell] = None
        self.at[cell] = thing
        thing.cell = cell
        thing.x = self.layout.x[cell]
        thing.y = self.layout.y[cell]
        chunk = self.layout.chunk[cell]
        if chunk != thing.chunk:
            del self.chunk_members[thing.chunk][thing]
            self.enter_chunk(chunk)
            self.chunk_members[chunk][thing] = None
            thing.chunk = chunk

    def set_material(self, cell: int, material: int) -> None:
        """Change the ground of a cell and the counts of its chunk."""
        old = self.materials[cell]
        if old == material:
            return
        chunk = self.layout.chunk[cell]
        if old == GRASS:
            self.grass[chunk] -= 1
        elif old == PATH:
            self.path[chunk] -= 1
        if material == GRASS:
            self.grass[chunk] += 1
        elif material == PATH:
            self.path[chunk] += 1
        self.materials[cell] = material

    def find(self, chunk: int, material: int, number: int) -> tuple[int, int]:
        """(x, y) of the `number`-th cell of a material in a chunk, in scan order."""
        left, top = chunk // self.layout.chunk_rows * CHUNK, chunk % self.layout.chunk_rows * CHUNK
        part = self.grid[left : left + CHUNK, top : top + CHUNK]
        x, y = divmod(int(np.flatnonzero(part == material)[number]), part.shape[1])
        return left + x, top + y

    def near(self, x: int, y: int, material: int) -> bool:
        """Is the material in the 3x3 cells around (x, y)?

        Never on the first column and row: stock slices with a negative start there and finds nothing.
        """
        if x < 1 or y < 1:
            return False
        cell, stride = self.layout.cell(x, y), self.layout.stride
        return any(material in self.materials[c - 1 : c + 2] for c in (cell - stride, cell, cell + stride))
