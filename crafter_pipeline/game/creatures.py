"""What happens around the player: cows, zombies, skeletons, arrows, plants, and their coming and going.

The order of the random draws is stock's; changing it changes every episode.

Derived from crafter 1.8.3, MIT License, Copyright (c) 2021 Danijar Hafner.
"""

from __future__ import annotations

from random import Random

from .board import Board, Thing
from .random_stream import randint
from .rules import (
    ARROW,
    ARROW_FREE,
    COW,
    DOWN,
    FURNACE,
    GRASS,
    LEFT,
    PATH,
    PLANT,
    PLAYER,
    RIGHT,
    SKELETON,
    TABLE,
    UP,
    WALKABLE,
    ZOMBIE,
)
from .world_config import WorldConfig

ZOMBIE_COOLDOWN = 5
SKELETON_RELOAD = 4


def update_creatures(
    board: Board, things: list[Thing], reach: int, inventory: dict[str, int], sleeping: bool, stream: Random
) -> None:
    """Let each of the things act that is less than `reach` from the player; hits lower `inventory["health"]`."""
    player = board.things[0]
    player_x, player_y = player.x, player.y
    for thing in things:
        dx, dy = player_x - thing.x, player_y - thing.y
        distance = (dx if dx >= 0 else -dx) + (dy if dy >= 0 else -dy)
        if distance >= reach:
            continue
        kind = thing.kind
        if kind == COW:
            _update_cow(board, thing, stream)
        elif kind == ZOMBIE:
            _update_zombie(board, thing, player, inventory, sleeping, stream)
        elif kind == SKELETON:
            _update_skeleton(board, thing, dx, dy, stream)
        elif kind == ARROW:
            _update_arrow(board, thing, inventory)
        elif kind == PLANT:
            _update_plant(board, thing)


def _hit(inventory: dict[str, int], damage: int) -> None:
    inventory["health"] = max(0, inventory["health"] - damage)


def _try_move(board: Board, thing: Thing, cell: int) -> bool:
    if board.at[cell] is None and WALKABLE[board.materials[cell]]:
        board.move(thing, cell)
        return True
    return False


def _random_cell(board: Board, thing: Thing, stream: Random) -> int:
    return thing.cell + board.layout.offsets[stream.getrandbits(32) & 3]


def _step_towards(board: Board, dx: int, dy: int, long_axis: bool) -> int:
    """Cell difference of a step along the longer (or shorter) axis of (dx, dy); 0 if there is no way to go on it."""
    offsets = board.layout.offsets
    ax, ay = abs(dx), abs(dy)
    if (ax > ay) if long_axis else (ax <= ay):
        return offsets[RIGHT] if dx > 0 else offsets[LEFT] if dx < 0 else 0
    return offsets[DOWN] if dy > 0 else offsets[UP] if dy < 0 else 0


def _update_cow(board: Board, cow: Thing, stream: Random) -> None:
    if cow.health <= 0:
        board.remove(cow)
    if stream.random() < 0.5:
        _try_move(board, cow, _random_cell(board, cow, stream))


def _update_zombie(
    board: Board, zombie: Thing, player: Thing, inventory: dict[str, int], sleeping: bool, stream: Random
) -> None:
    if zombie.health <= 0:
        board.remove(zombie)
    dx, dy = player.x - zombie.x, player.y - zombie.y
    if abs(dx) + abs(dy) <= 8 and stream.random() < 0.9:
        cell = zombie.cell + _step_towards(board, dx, dy, stream.random() < 0.8)
    else:
        cell = _random_cell(board, zombie, stream)
    _try_move(board, zombie, cell)
    if abs(player.x - zombie.x) + abs(player.y - zombie.y) <= 1:
        if zombie.clock:
            zombie.clock -= 1
        else:
            _hit(inventory, 7 if sleeping else 2)
            zombie.clock = ZOMBIE_COOLDOWN


def _update_skeleton(board: Board, skeleton: Thing, dx: int, dy: int, stream: Random) -> None:
    """`dx`, `dy`: the way to the player."""
    if skeleton.health <= 0:
        board.remove(skeleton)
    if skeleton.clock > 0:
        skeleton.clock -= 1
    distance = abs(dx) + abs(dy)
    if distance <= 3:
        back = skeleton.cell - _step_towards(board, dx, dy, stream.random() < 0.6)
        if _try_move(board, skeleton, back):
            return
    if distance <= 5 and stream.random() < 0.5:
        if skeleton.clock == 0:
            _shoot(board, skeleton, dx, dy)
    elif distance <= 8 and stream.random() < 0.3:
        _try_move(board, skeleton, skeleton.cell + _step_towards(board, dx, dy, stream.random() < 0.6))
    elif stream.random() < 0.2:
        _try_move(board, skeleton, _random_cell(board, skeleton, stream))


def _shoot(board: Board, skeleton: Thing, dx: int, dy: int) -> None:
    if abs(dx) > abs(dy):
        step_x, step_y = (1 if dx > 0 else -1), 0
    elif dy:
        step_x, step_y = 0, (1 if dy > 0 else -1)
    else:
        return
    x, y = skeleton.x + step_x, skeleton.y + step_y
    cell = board.layout.cell(x, y)
    if board.at[cell] is None and ARROW_FREE[board.materials[cell]]:
        arrow = board.add(ARROW, x, y)
        arrow.dx, arrow.dy = step_x, step_y
        skeleton.clock = SKELETON_RELOAD


def _update_arrow(board: Board, arrow: Thing, inventory: dict[str, int]) -> None:
    cell = board.layout.cell(arrow.x + arrow.dx, arrow.y + arrow.dy)
    target = board.at[cell]
    if target is not None:
        if target.kind == PLAYER:
            _hit(inventory, 2)
        else:
            target.health = max(0, target.health - 2)
        board.remove(arrow)
    elif ARROW_FREE[board.materials[cell]]:
        board.move(arrow, cell)
    else:
        board.remove(arrow)
        if board.materials[cell] in (TABLE, FURNACE):
            board.set_material(cell, PATH)


def _update_plant(board: Board, plant: Thing) -> None:
    plant.clock += 1
    for offset in board.layout.offsets:
        neighbour = board.at[plant.cell + offset]
        if neighbour is not None and neighbour.kind in (COW, ZOMBIE, SKELETON):
            plant.health = max(0, plant.health - 1)
            break
    if plant.health <= 0:
        board.remove(plant)


def balance_chunks(board: Board, light: float, world: WorldConfig, stream: Random) -> None:
    """Let creatures appear and vanish, chunk by chunk: zombies by night, skeletons in caves, cows on meadows."""
    draw = stream.random
    zombie_chance, zombie_span = 0.3 * world.zombie_spawn_rate, world.zombie_spawn_distance
    skeleton_chance, skeleton_span = 0.1 * world.skeleton_spawn_rate, world.skeleton_spawn_distance
    cow_chance, cow_span = 0.01 * world.cow_spawn_rate, world.cow_spawn_distance
    most_zombies = int(3.5 - 3 * light)
    most_cows = int(1.5 + light)
    for chunk in list(board.chunk_order):
        zombies: list[Thing] = []
        skeletons: list[Thing] = []
        cows: list[Thing] = []
        for thing in board.chunk_members[chunk]:
            kind = thing.kind
            if kind == ZOMBIE:
                zombies.append(thing)
            elif kind == SKELETON:
                skeletons.append(thing)
            elif kind == COW:
                cows.append(thing)
        grass, path = board.grass[chunk], board.path[chunk]
        if grass >= 50 and len(zombies) < most_zombies and draw() < zombie_chance:
            _spawn(board, chunk, ZOMBIE, GRASS, grass, zombie_span, stream)
        elif len(zombies) > most_zombies and draw() < 0.4:
            _despawn(board, zombies, 0, stream)
        if path >= 6 and len(skeletons) < 1 and draw() < skeleton_chance:
            _spawn(board, chunk, SKELETON, PATH, path, skeleton_span, stream)
        elif len(skeletons) > 2 and draw() < 0.1:
            _despawn(board, skeletons, 7, stream)
        if grass >= 30 and len(cows) < 1 and draw() < cow_chance:
            _spawn(board, chunk, COW, GRASS, grass, cow_span, stream)
        elif len(cows) > most_cows and draw() < 0.1:
            _despawn(board, cows, 5, stream)


def _distance_to_player(board: Board, x: int, y: int) -> int:
    player = board.things[0]
    return abs(x - player.x) + abs(y - player.y)


def _spawn(board: Board, chunk: int, kind: int, material: int, cells: int, span: int, stream: Random) -> None:
    """A new creature on one of the chunk's `cells` cells of the material, if free and `span` from the player."""
    x, y = board.find(chunk, material, randint(stream, cells))
    if board.at[board.layout.cell(x, y)] is None and _distance_to_player(board, x, y) >= span:
        board.add(kind, x, y)


def _despawn(board: Board, creatures: list[Thing], span: int, stream: Random) -> None:
    creature = creatures[randint(stream, len(creatures))]
    if _distance_to_player(board, creature.x, creature.y) >= span:
        board.remove(creature)
