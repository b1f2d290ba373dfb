"""A game as bytes: small, exact, and readable by this version only.

Layout: magic with a version, the random state (it does not compress), then zlib over one stream of fields in the order
of `save`. What `load` accepts is a state that a game can be in: damaged bytes raise ValueError, at once and in little
memory, and never a game that fails later.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from crafter_pipeline.errors import ConfigError

from .board import Board, Thing
from .random_stream import state_of, stream_at
from .rules import (
    ACHIEVEMENTS,
    ARROW,
    DIRECTIONS,
    ITEMS,
    MATERIALS,
    MAX_ITEM,
    OBJECTS,
    OFFSETS,
    PLANT,
    PLAYER,
    RIPE_AFTER,
    VOID,
)
from .world_config import read_world

if TYPE_CHECKING:
    from .engine import Game

_FAMILY = b"crafter"
_MAGIC = _FAMILY + b"2"
_STATE_WORDS = 625
_BODY_AT = len(_MAGIC) + 4 * _STATE_WORDS
_MOST_BYTES = 1 << 21
"""Of a decompressed body: twice what the largest world needs."""
_MOST_OBJECTS = 1 << 31
_HEAD = struct.Struct("<QI4HB IBB4dBB IHHIH")
_COUNTS = struct.Struct(f"<{len(ACHIEVEMENTS)}I")
_THING = struct.Struct("<BIHHBIbb")
_CHUNK = struct.Struct("<HH")


def save(game: Game) -> bytes:
    """All of a game's state."""
    board = game._board
    noise_bytes = 8 * game._noise_values if game._night_noise is not None else 0
    world = json.dumps(game.world.changes()).encode()
    parts = [
        _HEAD.pack(
            game.seed,
            game.max_steps,
            *game.area,
            *game.view,
            game.parity,
            game._steps,
            game._facing,
            game._sleeping | game._done << 1,
            game._hunger,
            game._thirst,
            game._fatigue,
            game._recovery,
            game._felt_health,
            game._rewarded_health,
            board.next_index,
            len(board.things),
            len(board.chunk_order),
            noise_bytes,
            len(world),
        ),
        world,
        bytes(game._inventory.values()),
        _COUNTS.pack(*game._counts.values()),
    ]
    for thing in board.things:
        parts.append(
            _THING.pack(thing.kind, thing.index, thing.x, thing.y, thing.health, thing.clock, thing.dx, thing.dy)
        )
    number = {thing.index: i for i, thing in enumerate(board.things)}
    for chunk in board.chunk_order:
        members = board.chunk_members[chunk]
        parts.append(_CHUNK.pack(chunk, len(members)))
        parts.append(struct.pack(f"<{len(members)}H", *(number[thing.index] for thing in members)))
    parts.append(board.grid.tobytes())
    if game._night_noise is not None:
        parts.append(game._night_noise.to_bytes(noise_bytes, "little"))
    return _MAGIC + np.array(state_of(game._stream), "<u4").tobytes() + zlib.compress(b"".join(parts), 6)


def load(game: Game, blob: bytes) -> None:
    """Fill an empty game with a snapshot's state. Raises ValueError if `blob` is not a snapshot of this version."""
    if not blob.startswith(_FAMILY):
        raise ValueError("These bytes are not a snapshot of a game.")
    if not blob.startswith(_MAGIC):
        raise ValueError("This snapshot of a game was written by another version: it cannot be read, play again.")
    try:
        _fill(game, blob)
    except (struct.error, zlib.error, IndexError, RecursionError, ValueError) as e:
        raise ValueError(f"This snapshot of a game is damaged: {e}.") from e
    except ConfigError as e:
        raise ValueError(f"This snapshot of a game is damaged: {e}") from e


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


class _Reader:
    """Fields from the front of the body."""

    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    def bytes(self, size: int) -> bytes:
        part = self._body[self._at : self._at + size]
        _need(len(part) == size, "it ends too early")
        self._at += size
        return part

    def fields(self, layout: struct.Struct) -> tuple:
        return layout.unpack(self.bytes(layout.size))

    def end(self) -> None:
        _need(self._at == len(self._body), "it is too long")


def _body(blob: bytes) -> bytes:
    stream = zlib.decompressobj()
    body = stream.decompress(blob[_BODY_AT:], _MOST_BYTES)
    _need(stream.eof and not stream.unused_data, "its length is wrong")
    return body


def _fill(game: Game, blob: bytes) -> None:
    _need(len(blob) > _BODY_AT, "it ends too early")
    game._stream = stream_at(tuple(np.frombuffer(blob[len(_MAGIC) : _BODY_AT], "<u4").tolist()))
    reader = _Reader(_body(blob))
    (seed, max_steps, width, height, view_width, view_height, parity, *rest) = reader.fields(_HEAD)
    (game._steps, game._facing, flags, *rest) = rest
    (game._hunger, game._thirst, game._fatigue, game._recovery, *rest) = rest
    (game._felt_health, game._rewarded_health, next_index, things, chunks, noise_bytes, world_bytes) = rest
    world = json.loads(reader.bytes(world_bytes))
    _need(isinstance(world, dict), "its world is unknown")
    game._configure(seed, max_steps, (width, height), (view_width, view_height), bool(parity), read_world(world))
    game._sleeping, game._done = bool(flags & 1), bool(flags & 2)
    game._inventory = dict(zip(ITEMS, reader.bytes(len(ITEMS)), strict=True))
    game._counts = dict(zip(ACHIEVEMENTS, reader.fields(_COUNTS), strict=True))
    game._reached = []
    _need(parity < 2 and flags < 4 and game._facing < len(DIRECTIONS), "a flag is unknown")
    _need(
        all(map(math.isfinite, (game._hunger, game._thirst, game._fatigue, game._recovery)))
        and max(game._felt_health, game._rewarded_health, *game._inventory.values()) <= MAX_ITEM,
        "a vital or an item is out of range",
    )
    ended = game._inventory["health"] == 0 or game._steps >= max_steps
    _need(game._steps <= max_steps and game._done == ended, "its end is wrong")

    rows = [reader.fields(_THING) for _ in range(things)]
    members = []
    for _ in range(chunks):
        chunk, count = reader.fields(_CHUNK)
        members.append((chunk, struct.unpack(f"<{count}H", reader.bytes(2 * count))))
    materials = reader.bytes(width * height)
    _need(VOID < min(materials) and max(materials) < len(MATERIALS), "a material is unknown")
    game._board = board = Board((width, height), materials)
    _put_things(board, rows, next_index)
    _put_members(board, members)
    game._player = board.things[0]
    _need(noise_bytes in ((0, 8 * game._noise_values) if parity else (0,)), "its noise has a wrong length")
    game._night_noise = int.from_bytes(reader.bytes(noise_bytes), "little") if noise_bytes else None
    reader.end()


def _put_things(board: Board, rows: list[tuple[int, ...]], next_index: int) -> None:
    width, height = board.layout.area
    last = 0
    for row in rows:
        thing = Thing()
        thing.kind, thing.index, thing.x, thing.y, thing.health, thing.clock, thing.dx, thing.dy = row
        _need(last < thing.index < next_index, "its objects are out of order")
        last = thing.index
        _need(thing.kind < len(OBJECTS) and (thing.kind == PLAYER) == (thing.index == 1), "an object is unknown")
        _need((thing.kind != ARROW) or (thing.dx, thing.dy) in OFFSETS, "an arrow flies nowhere")
        _need(thing.clock <= RIPE_AFTER or thing.kind == PLANT, "an object's clock is wrong")
        _need(thing.x < width and thing.y < height, "an object is outside the world")
        _need(board.at[board.layout.cell(thing.x, thing.y)] is None, "two objects are on one cell")
        board.put(thing)
    _need(last > 0, "there is no player")
    _need(next_index <= _MOST_OBJECTS, "its objects are out of order")
    board.next_index = next_index


def _put_members(board: Board, members: list[tuple[int, tuple[int, ...]]]) -> None:
    for chunk, numbers in members:
        _need(chunk < board.layout.chunks and chunk not in board.chunk_order, "a chunk is unknown")
        board.enter_chunk(chunk)
        board.chunk_members[chunk] = dict.fromkeys(board.things[number] for number in numbers)
        _need(len(board.chunk_members[chunk]) == len(numbers), "a chunk holds an object twice")
    known = sum(map(len, board.chunk_members))
    placed = all(thing in board.chunk_members[thing.chunk] for thing in board.things)
    _need(placed and known == len(board.things), "an object is in a wrong chunk")
