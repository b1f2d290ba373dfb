"""A game as bytes: small, exact, and readable by this version only.

Layout: magic, then zlib over one stream of fields in the order of `save`; the random state stands before the compressed
part, since it does not compress.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from .board import Board, Thing
from .random_stream import state_of, stream_at
from .rules import ACHIEVEMENTS, ITEMS

if TYPE_CHECKING:
    from .engine import Game

_MAGIC = b"crafter1"
_STATE_WORDS = 625
_HEAD = struct.Struct("<QI4HB IBB4dii IHHI")
_COUNTS = struct.Struct(f"<{len(ACHIEVEMENTS)}I")
_THING = struct.Struct("<BIHHhIbb")


def save(game: Game) -> bytes:
    """All of a game's state."""
    board = game._board
    noise_bytes = 8 * game._noise_values if game._night_noise is not None else 0
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
        ),
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
        parts.append(struct.pack(f"<HH{len(members)}H", chunk, len(members), *(number[t.index] for t in members)))
    parts.append(board.grid.tobytes())
    if game._night_noise is not None:
        parts.append(game._night_noise.to_bytes(noise_bytes, "little"))
    return _MAGIC + np.array(state_of(game._stream), "<u4").tobytes() + zlib.compress(b"".join(parts), 1)


def load(game: Game, blob: bytes) -> None:
    """Fill an empty game with a snapshot's state. Raises ValueError if `blob` is not a snapshot of this version."""
    if not blob.startswith(_MAGIC):
        raise ValueError("These bytes are not a snapshot of a game.")
    try:
        _fill(game, blob)
    except (struct.error, zlib.error, IndexError, ValueError) as e:
        raise ValueError(f"This snapshot of a game is damaged: {e}.") from e


def _fill(game: Game, blob: bytes) -> None:
    body_at = len(_MAGIC) + 4 * _STATE_WORDS
    game._stream = stream_at(tuple(np.frombuffer(blob[len(_MAGIC) : body_at], "<u4").tolist()))
    body = zlib.decompress(blob[body_at:])
    at = _HEAD.size
    (seed, max_steps, width, height, view_width, view_height, parity, *rest) = _HEAD.unpack_from(body)
    game._configure(seed, max_steps, (width, height), (view_width, view_height), bool(parity))
    (game._steps, game._facing, flags, *rest) = rest
    game._sleeping, game._done = bool(flags & 1), bool(flags & 2)
    (game._hunger, game._thirst, game._fatigue, game._recovery, *rest) = rest
    (game._felt_health, game._rewarded_health, next_index, things, chunks, noise_bytes) = rest
    game._inventory = dict(zip(ITEMS, body[at : at + len(ITEMS)], strict=True))
    at += len(ITEMS)
    game._counts = dict(zip(ACHIEVEMENTS, _COUNTS.unpack_from(body, at), strict=True))
    at += _COUNTS.size
    game._new = []

    noise_at = len(body) - noise_bytes
    game._board = board = Board((width, height), body[noise_at - width * height : noise_at])
    game._night_noise = int.from_bytes(body[noise_at:], "little") if noise_bytes else None
    for _ in range(things):
        thing = Thing()
        thing.kind, thing.index, thing.x, thing.y, thing.health, thing.clock, thing.dx, thing.dy = _THING.unpack_from(
            body, at
        )
        at += _THING.size
        board.put(thing)
    game._player = board.things[0]
    board.next_index = next_index
    for _ in range(chunks):
        chunk, members = struct.unpack_from("<HH", body, at)
        numbers = struct.unpack_from(f"<{members}H", body, at + 4)
        at += 4 + 2 * members
        board.enter_chunk(chunk)
        board.chunk_members[chunk] = dict.fromkeys(board.things[number] for number in numbers)
