"""What an action did, in a few words for the next prompt: `moved`, `+1 wood and unlocked collect_wood`.

Everything said is read off the game: what it counted, and the difference that the step made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .rules import (
    ACTION_CODES,
    COLLECT,
    DO,
    FURNACE,
    KINDS,
    MAKE,
    MATERIALS,
    MAX_ITEM,
    MOVE_LEFT,
    NOOP,
    PLACE,
    PLACE_PLANT,
    SLEEP,
    TABLE,
)

if TYPE_CHECKING:
    from .engine import Game, StepResult

_TOOL_FOR = {MATERIALS[code]: rule.tool for code, rule in COLLECT.items() if rule.tool}
_CREATURES = ("cow", "zombie", "skeleton")


class Moment(NamedTuple):
    """What must be known of the time before an action to tell what it did."""

    cell: int
    facing: int
    sleeping: bool
    inventory: dict[str, int]
    target: str
    """Kind (`rules.KINDS`) of the cell that the action is about: the one walked to, or the one faced."""


def moment_before(game: Game, action: str) -> Moment:
    """The moment before an action."""
    code = ACTION_CODES.get(action, NOOP)  # an unknown one is refused by `Game.step`
    board, cell, facing = game._board, game._player.cell, game._facing
    target = cell + board.layout.offsets[code - MOVE_LEFT if NOOP < code < DO else facing]
    thing = board.at[target]
    kind = KINDS[board.materials[target]] if thing is None else KINDS[len(MATERIALS) + thing.kind]
    return Moment(cell, facing, game._sleeping, game.inventory, kind)


def describe(game: Game, before: Moment, action: str, result: StepResult) -> str:
    """What the action did that led from `before` to the game's present state; at most about eight words."""
    inventory = game._inventory
    if before.sleeping and "wake_up" not in result.reached:
        words = ["asleep" if game._sleeping else "woken by damage"]
    else:
        words = [_reached(name, before.inventory, inventory) for name in result.reached]
        if not words or words == ["woke up"]:
            words.append(_effect(game, before, ACTION_CODES[action]))
    lost = before.inventory["health"] - inventory["health"]
    if lost > 0:
        words.append("died" if result.died else f"-{lost} health")
    words += [f"unlocked {name}" for name in result.unlocked]
    return " and ".join(words)


def hurt(game: Game, before: Moment) -> bool:
    """Did the player lose health since?"""
    return game._inventory["health"] < before.inventory["health"]


def _reached(name: str, before: dict[str, int], after: dict[str, int]) -> str:
    verb, _, what = name.partition("_")
    if verb == "collect":
        gained = after[what] - before[what]
        return f"+{gained} {what}" if gained > 0 else "drank" if what == "drink" else f"{what} full"
    if verb == "eat":
        return f"ate {what}"
    if verb == "wake":
        return "woke up"
    return {"place": "placed", "make": "made", "defeat": "defeated"}[verb] + " " + what


def _effect(game: Game, before: Moment, code: int) -> str:
    """Of an action that reached nothing."""
    if code == NOOP:
        return "waited"
    if code < DO:
        if game._player.cell != before.cell:
            return "moved"
        return f"{'turned and ' if game._facing != before.facing else ''}blocked by {before.target}"
    if code == SLEEP:
        return "fell asleep" if before.inventory["energy"] < MAX_ITEM else "not tired"
    if code == DO:
        return _vain_do(before)
    if code <= PLACE_PLANT:
        return _vain_place(before, code)
    return _vain_make(game, before, code)


def _vain_do(before: Moment) -> str:
    if before.target in _CREATURES:
        return f"hit {before.target}"
    if before.target == "sapling":
        return "plant not ripe"
    if before.target == "grass":
        return "no sapling found"
    if before.target in _TOOL_FOR:
        return f"{before.target} needs {_TOOL_FOR[before.target]}"
    return f"nothing to do with {before.target}"


def _vain_place(before: Moment, code: int) -> str:
    item, amount = ("sapling", 1) if code == PLACE_PLANT else (PLACE[code].item, PLACE[code].amount)
    if before.inventory[item] < amount:
        return f"needs {amount} {item}"
    return f"cannot place on {before.target}"


def _vain_make(game: Game, before: Moment, code: int) -> str:
    rule, (x, y) = MAKE[code], game.position
    for needed, material in ((True, TABLE), (rule.furnace, FURNACE)):
        if needed and not game._board.near(x, y, material):
            return f"no {MATERIALS[material]} near"
    lacking = [f"{amount} {item}" for item, amount in rule.costs if before.inventory[item] < amount]
    return f"needs {' and '.join(lacking)}"
