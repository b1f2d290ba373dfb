"""The game: one episode of Crafter, without drawing it.

Bit-identical to crafter 1.8.3 whose chunk sets are kept in order of insertion: world, moves, rewards, ends. Stock also
lets its picture draw from the world's random stream at night, so that looking at the game changes it. Here the picture
has a generator of its own; `parity=True` spends the night's draws as stock does, and then episodes and 64x64 pictures
are stock's too.

Derived from crafter 1.8.3, MIT License, Copyright (c) 2021 Danijar Hafner.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import render, snapshot
from .board import Board, Thing
from .creatures import balance_chunks, update_creatures
from .observation import Observation, observe
from .random_stream import seeded_stream, stream_at
from .rules import (
    ACHIEVEMENTS,
    ACTION_CODES,
    ACTIONS,
    COLLECT,
    COW,
    DO,
    DOWN,
    FURNACE,
    GRASS,
    ITEMS,
    LAVA,
    MAKE,
    MAX_ITEM,
    MOVE_LEFT,
    NIGHT_BELOW,
    NOOP,
    PLACE,
    PLACE_PLANT,
    PLANT,
    PLAYER,
    PLAYER_WALKABLE,
    RIPE_AFTER,
    SKELETON,
    SLEEP,
    TABLE,
    VITALS,
    WATER,
    ZOMBIE,
    daylight,
)
from .world_config import UNCHANGED, WorldConfig
from .worldgen import generate_world, world_seed

NATIVE_SIZE = (64, 64)
"""Pixels (width, height) of stock's picture; in parity mode its night noise is drawn for this size."""
MAX_SEED = 2**63 - 1
MAX_STEPS = 2**31 - 1
MAX_AREA = 256
"""Cells of a world's longer side."""
MAX_VIEW = 64
"""Cells of a view's longer side."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one env step brought."""

    reward: float
    """Stock's reward: 1 if anything was unlocked, plus a tenth of the change in health."""
    unlocked: tuple[str, ...]
    """Achievements unlocked by this step for the first time in the episode, in the order of ACHIEVEMENTS."""
    reached: tuple[str, ...]
    """All achievements of this step, unlocked earlier or not, as they came."""
    done: bool
    """The episode is over: death or the step limit."""
    died: bool


class Game:
    """One episode. It starts in the constructor and is played once; for another one make another `Game`.

    Equal seeds and actions give equal episodes, in every process.
    """

    def __init__(
        self,
        seed: int,
        *,
        max_steps: int = 10_000,
        area: tuple[int, int] = (64, 64),
        view: tuple[int, int] = (9, 9),
        parity: bool = False,
        world: WorldConfig = UNCHANGED,
    ) -> None:
        """Start the episode of a seed, in the world of stock's `crafter.Env(seed=seed)` after its first `reset()`.

        `seed`: an int from 0 to MAX_SEED (stock gives -1 and -2 the same world). `max_steps`: env steps until the
        episode ends, >= 1. `area`: cells (width, height) of the world. `view`: cells (width, height) of stock's
        picture, whose lowest rows show the inventory; creatures farther than twice its longer side stand still.
        `parity`: spend random draws on the night's picture as stock does; only in an unchanged world. Raises
        ValueError for anything else.
        """
        area, view = (int(area[0]), int(area[1])), (int(view[0]), int(view[1]))
        self._configure(seed, max_steps, area, view, parity, world)
        start = generate_world(self.seed, area, world)
        self._stream: Random = stream_at(start.random_state)
        self._board = Board(area, start.materials)
        self._player: Thing = self._board.add(PLAYER, area[0] // 2, area[1] // 2)
        for kind, x, y in start.creatures:
            self._board.add(kind, x, y)

        self._steps = 0
        self._inventory = dict.fromkeys(ITEMS, 0) | dict.fromkeys(VITALS, MAX_ITEM)
        self._counts = dict.fromkeys(ACHIEVEMENTS, 0)
        self._facing = DOWN
        self._sleeping = False
        self._hunger = self._thirst = self._fatigue = self._recovery = 0.0
        self._felt_health = MAX_ITEM  # as the player last felt it: less means being hurt, which wakes
        self._rewarded_health = MAX_ITEM  # as the last reward saw it
        self._night_noise: int | None = None  # the bits that stock's picture drew in this step
        self._reached: list[str] = []
        self._done = False

    def _configure(
        self,
        seed: int,
        max_steps: int,
        area: tuple[int, int],
        view: tuple[int, int],
        parity: bool,
        world: WorldConfig,
    ) -> None:
        """What stays fixed during the episode."""
        self.seed, self.max_steps = (
            _int_between(0, MAX_SEED, seed=seed),
            _int_between(1, MAX_STEPS, max_steps=max_steps),
        )
        self.area, self.view, self.parity, self.world = area, view, bool(parity), world
        if parity and world != UNCHANGED:
            raise ValueError(f"Parity with stock is for the unchanged world; these knobs are set: {world.changes()}.")
        if max(area) > MAX_AREA or max(view) > MAX_VIEW:
            raise ValueError(f"An area has at most {MAX_AREA}x{MAX_AREA} cells, a view {MAX_VIEW}x{MAX_VIEW}.")
        item_rows = -(-len(ITEMS) // view[0]) if view[0] > 0 else 0
        self.local_view = (view[0], view[1] - item_rows)
        """Cells (width, height) of the surroundings that an observation shows."""
        if min(self.local_view) < 3 or min(area) < 3:
            raise ValueError(
                f"A view of {view} cells and an area of {area} cells leave nothing to see; use 9x9, 64x64."
            )
        unit = (NATIVE_SIZE[0] // view[0], NATIVE_SIZE[1] // view[1])
        self._noise_values = unit[0] * self.local_view[0] * unit[1] * self.local_view[1]
        self._reach = 2 * max(view)

    # ------------------------------------------------------------------ what can be known

    @property
    def steps(self) -> int:
        """Env steps taken."""
        return self._steps

    @property
    def done(self) -> bool:
        """Is the episode over?"""
        return self._done

    @property
    def achievements(self) -> dict[str, int]:
        """How often each achievement was reached, all 22 names (a copy)."""
        return dict(self._counts)

    @property
    def unlocked(self) -> tuple[str, ...]:
        """Achievements reached at least once, in the order of ACHIEVEMENTS."""
        return tuple(name for name, count in self._counts.items() if count)

    @property
    def inventory(self) -> dict[str, int]:
        """Vitals and items, all 16 names, each 0..9 (a copy)."""
        return dict(self._inventory)

    @property
    def position(self) -> tuple[int, int]:
        """(x, y) of the player; no observation tells it."""
        return self._player.x, self._player.y

    def observe(self) -> Observation:
        """What a policy may know now."""
        return observe(self)

    def render(self, size: tuple[int, int] = NATIVE_SIZE) -> NDArray[np.uint8]:
        """The picture, uint8 of shape (height, width, 3); `size` is (width, height) in pixels. Needs `crafter`."""
        return render.render(self, size)

    # ------------------------------------------------------------------ saving

    def snapshot(self) -> bytes:
        """The whole state, 4 to 5 KB; `restore` continues bit-identically.

        In parity mode a night's snapshot also holds its picture's noise, 25 KB more.
        """
        return snapshot.save(self)

    @classmethod
    def restore(cls, blob: bytes) -> Game:
        """The game of a snapshot. Raises ValueError if it is not one, is damaged, or is of another version."""
        game = cls.__new__(cls)
        snapshot.load(game, blob)
        return game

    @classmethod
    def start_from(cls, blob: bytes, seed: int, max_steps: int) -> Game:
        """A new episode that begins in the state of a snapshot: `max_steps` count from there, and what happens by
        chance follows from `seed`. Raises ValueError as `restore` does, or if the snapshot's episode is over.
        """
        game = cls.restore(blob)
        if game.done:
            raise ValueError("This snapshot is of an episode that is over: nothing can begin there.")
        game.seed = _int_between(0, MAX_SEED, seed=seed)
        game.max_steps = _int_between(1, MAX_STEPS - game.steps, max_steps=max_steps) + game.steps
        game._stream = seeded_stream(world_seed(seed))
        return game

    # ------------------------------------------------------------------ playing

    def step(self, action: str) -> StepResult:
        """Play one action, a name of ACTIONS. Raises ValueError for others, RuntimeError after the end."""
        code = ACTION_CODES.get(action)
        if code is None:
            raise ValueError(f"There is no action {action!r}. The actions are: {', '.join(ACTIONS)}.")
        if self._done:
            raise RuntimeError("The episode is over. An episode is played once: make a new Game for another one.")
        self._steps = steps = self._steps + 1
        light = daylight(steps, self.world.day_length)
        inventory, board = self._inventory, self._board
        reached = self._reached
        reached.clear()
        things = board.things[1:]  # taken before the player acts: new objects wait a step
        self._update_player(code)
        update_creatures(board, things, self._reach, inventory, self._sleeping, self._stream)
        if steps % 10 == 0:
            balance_chunks(board, light, self.world, self._stream)
        if self.parity:
            self._night_noise = self._stream.getrandbits(64 * self._noise_values) if light < NIGHT_BELOW else None
        health = inventory["health"]
        reward = (health - self._rewarded_health) / 10
        self._rewarded_health = health
        unlocked: tuple[str, ...] = ()
        if reached:
            unlocked = tuple(sorted((name for name in reached if self._counts[name] == 1), key=ACHIEVEMENTS.index))
            if unlocked:
                reward += 1.0
        died = health <= 0
        self._done = died or steps >= self.max_steps
        return StepResult(reward, unlocked, tuple(reached), self._done, died)

    def _update_player(self, code: int) -> None:
        inventory = self._inventory
        target = self._player.cell + self._board.layout.offsets[self._facing]
        if self._sleeping:
            if inventory["energy"] < MAX_ITEM:
                code = SLEEP
            else:
                self._sleeping = False
                self._count("wake_up")
        if code == NOOP:
            pass
        elif code < DO:
            self._move(code - MOVE_LEFT)
        elif code == DO:
            self._do(target)
        elif code == SLEEP:
            if inventory["energy"] < MAX_ITEM:
                self._sleeping = True
        elif code <= PLACE_PLANT:
            self._place(code, target)
        else:
            self._make(code)
        self._update_vitals()

    def _count(self, achievement: str) -> None:
        self._counts[achievement] += 1
        self._reached.append(achievement)

    def _gain(self, item: str) -> None:
        self._inventory[item] = min(MAX_ITEM, self._inventory[item] + 1)

    def _move(self, direction: int) -> None:
        self._facing = direction
        board, player = self._board, self._player
        cell = player.cell + board.layout.offsets[direction]
        if board.at[cell] is None and PLAYER_WALKABLE[board.materials[cell]]:
            board.move(player, cell)
            if board.materials[cell] == LAVA:
                self._inventory["health"] = 0

    def _do(self, target: int) -> None:
        thing = self._board.at[target]
        if thing is None:
            self._collect(target)
        elif thing.kind == PLANT:
            if thing.clock > RIPE_AFTER:
                thing.clock = 0
                self._inventory["food"] += 4
                self._count("eat_plant")
        elif thing.kind in (COW, ZOMBIE, SKELETON):
            self._strike(thing)

    def _strike(self, thing: Thing) -> None:
        inventory = self._inventory
        damage = (
            5 if inventory["iron_sword"] else 3 if inventory["stone_sword"] else 2 if inventory["wood_sword"] else 1
        )
        thing.health = max(0, thing.health - damage)
        if thing.health > 0:
            return
        if thing.kind == ZOMBIE:
            self._count("defeat_zombie")
        elif thing.kind == SKELETON:
            self._count("defeat_skeleton")
        else:
            inventory["food"] += 6
            self._hunger = 0.0
            self._count("eat_cow")

    def _collect(self, target: int) -> None:
        material = self._board.materials[target]
        if material == WATER:
            self._thirst = 0.0
        rule = COLLECT.get(material)
        if rule is None or (rule.tool is not None and self._inventory[rule.tool] < 1):
            return
        self._board.set_material(target, rule.leaves)
        if self._stream.random() <= rule.probability:
            self._gain(rule.item)
            self._count("collect_" + rule.item)

    def _place(self, code: int, target: int) -> None:
        board, inventory = self._board, self._inventory
        if board.at[target] is not None:
            return
        material = board.materials[target]
        if code == PLACE_PLANT:
            if material == GRASS and inventory["sapling"] >= 1:
                inventory["sapling"] -= 1
                board.add(PLANT, board.layout.x[target], board.layout.y[target])
                self._count("place_plant")
            return
        rule = PLACE[code]
        if rule.allowed[material] and inventory[rule.item] >= rule.amount:
            inventory[rule.item] -= rule.amount
            board.set_material(target, rule.material)
            self._count(rule.achievement)

    def _make(self, code: int) -> None:
        board, inventory, (x, y) = self._board, self._inventory, self.position
        rule = MAKE[code]
        if not board.near(x, y, TABLE) or (rule.furnace and not board.near(x, y, FURNACE)):
            return
        if all(inventory[item] >= amount for item, amount in rule.costs):
            for item, amount in rule.costs:
                inventory[item] -= amount
            self._gain(rule.tool)
            self._count("make_" + rule.tool)

    def _update_vitals(self) -> None:
        """Hunger, thirst and fatigue grow, health follows, and being hurt wakes."""
        inventory, asleep = self._inventory, self._sleeping
        self._hunger += 0.5 if asleep else 1
        if self._hunger > 25:
            self._hunger = 0.0
            inventory["food"] -= 1
        self._thirst += 0.5 if asleep else 1
        if self._thirst > 20:
            self._thirst = 0.0
            inventory["drink"] -= 1
        if asleep:
            self._fatigue = min(self._fatigue - 1, 0.0)
        else:
            self._fatigue += 1
        if self._fatigue < -10:
            self._fatigue = 0.0
            inventory["energy"] += 1
        if self._fatigue > 30:
            self._fatigue = 0.0
            inventory["energy"] -= 1
        if inventory["food"] > 0 and inventory["drink"] > 0 and (inventory["energy"] > 0 or asleep):
            self._recovery += 2 if asleep else 1
        else:
            self._recovery -= 0.5 if asleep else 1
        if self._recovery > 25:
            self._recovery = 0.0
            inventory["health"] += 1
        if self._recovery < -15:
            self._recovery = 0.0
            inventory["health"] -= 1
        for vital in VITALS:
            value = inventory[vital]
            if value > MAX_ITEM:
                inventory[vital] = MAX_ITEM
            elif value < 0:
                inventory[vital] = 0
        health = inventory["health"]
        if health < self._felt_health:
            self._sleeping = False
        self._felt_health = health


def _int_between(least: int, most: int, **named: Any) -> int:
    ((name, value),) = named.items()
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise ValueError(f"{name} must be an int from {least} to {most}, not {value!r:.80}.")
    return int(value)
