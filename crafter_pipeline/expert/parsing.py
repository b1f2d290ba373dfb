"""Reading an observation back from the text of a request, in any of the three styles.

Each style is known by its first line. The text around the observation does not matter; if there are several
observations (a conversation), the last one counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

from .vocabulary import ACHIEVEMENTS, DIRECTIONS, ITEMS, KINDS

_Part = TypeVar("_Part")

COLUMNS, ROWS = 9, 7
_MIDDLE = ROWS // 2 * COLUMNS + COLUMNS // 2

_SPARSE = re.compile(r"step (\d+) of (\d+) light:(\d)( asleep)?")
_COMPACT = re.compile(r"t(\d+)/(\d+) hp(\d) food(\d) drink(\d) energy(\d)( DARK)?( ASLEEP)?")
_RICH = re.compile(r"Step (\d+) of (\d+)\. (Night|Day) \(light \d+%\)\.( You are asleep.*)?")
_RICH_VITALS = re.compile(r"Health (\d)/9, food (\d)/9, drink (\d)/9, energy (\d)/9\.")
_RICH_ITEM = re.compile(r"(\w+) x(\d)")
_COMPACT_ITEM = re.compile(r"([a-z]+)(\d?)")

_CHARACTERS = dict(zip("Xw.s_:TLcidtf@CZKapP", KINDS, strict=True))
_SHORT_NAMES = {
    "wpick": "wood_pickaxe",
    "spick": "stone_pickaxe",
    "ipick": "iron_pickaxe",
    "wsword": "wood_sword",
    "ssword": "stone_sword",
    "isword": "iron_sword",
}
_CELL_WORDS = {
    f"{kind}@{i % COLUMNS - COLUMNS // 2},{i // COLUMNS - ROWS // 2}": (i, kind)
    for kind in KINDS
    if kind not in ("grass", "player")
    for i in range(COLUMNS * ROWS)
    if i != _MIDDLE
}


@dataclass(frozen=True, slots=True)
class View:
    """What the expert knows of one moment."""

    step: int
    max_steps: int
    view: tuple[tuple[str, ...], ...]
    """Names of KINDS, 7 rows of 9, the first row is the upper one, the player in the middle."""
    facing: str
    inventory: dict[str, int]
    """All 16 names of ITEMS."""
    achievements: tuple[str, ...]
    """Unlocked ones, in the order of ACHIEVEMENTS."""
    sleeping: bool
    dark: bool
    """Daylight is below 0.5: all of it that the expert uses."""


def parse(text: str) -> View:
    """The last observation in a text, in the style `sparse`, `compact` or `rich`, among any other lines.

    Raises ValueError, with a sentence that says why, if there is none or if it is incomplete.
    """
    lines = [line.strip() for line in text.splitlines()]
    for i in range(len(lines) - 1, -1, -1):
        start = lines[i][:1]
        if start == "s" and (head := _SPARSE.fullmatch(lines[i])):
            return _sparse(head, lines[i + 1 :])
        if start == "t" and (head := _COMPACT.fullmatch(lines[i])):
            return _compact(head, lines[i + 1 :])
        if start == "S" and (head := _RICH.fullmatch(lines[i])):
            return _rich(head, lines[i + 1 :])
    raise ValueError(
        "There is no observation in this text. It should hold one in the style sparse (`step 0 of 100 light:7`),"
        " compact (`t0/100 hp9 ...`) or rich (`Step 0 of 100. Day ...`)."
    )


def _sparse(head: re.Match[str], lines: list[str]) -> View:
    items = done = front = None
    cells = ["grass"] * (COLUMNS * ROWS)
    cells[_MIDDLE] = "player"
    for line in lines:
        if line.startswith("health:"):
            items = line.split()
        elif line.startswith("done:"):
            done = line.split()[1:]
        elif line.startswith("facing:"):
            front = line
            break
        elif "@" in line:
            for word in line.split():
                if word not in _CELL_WORDS:
                    raise ValueError(f"The sparse observation has a word {word!r} that is not a cell like tree@-2,1.")
                i, kind = _CELL_WORDS[word]
                cells[i] = kind
    inventory = dict.fromkeys(ITEMS, 0)
    for word in _found(items, "sparse", "health:"):
        name, _, count = word.partition(":")
        if name not in inventory or not count.isdecimal():
            raise ValueError(f"The sparse observation has a word {word!r} that is not an item like wood:3.")
        inventory[name] = int(count)
    facing = _found(front, "sparse", "facing:").partition(" ")[0].removeprefix("facing:")
    return View(
        step=int(head[1]),
        max_steps=int(head[2]),
        view=tuple(tuple(cells[i : i + COLUMNS]) for i in range(0, COLUMNS * ROWS, COLUMNS)),
        facing=_direction(facing),
        inventory=inventory,
        achievements=_known(_found(done, "sparse", "done:")),
        sleeping=head[4] is not None,
        dark=int(head[3]) < 5,
    )


def _compact(head: re.Match[str], lines: list[str]) -> View:
    inventory = dict.fromkeys(ITEMS, 0)
    inventory.update(zip(ITEMS, (int(head[i]) for i in range(3, 7)), strict=False))
    for word in _after(lines, "compact", "have:").split():
        if word != "-":
            match = _COMPACT_ITEM.fullmatch(word)
            name = _SHORT_NAMES.get(match[1], match[1]) if match else ""
            if match is None or name not in inventory:
                raise ValueError(f"The compact observation has a word {word!r} that is not an item like wood3.")
            inventory[name] = int(match[2] or 1)
    return View(
        step=int(head[1]),
        max_steps=int(head[2]),
        view=_grid([list(line) for line in lines[:ROWS]], "compact"),
        facing=_direction(_after(lines, "compact", "face ").partition(":")[0]),
        inventory=inventory,
        achievements=_known(_after(lines, "compact", "done ").partition(":")[2].split()),
        sleeping=head[8] is not None,
        dark=head[7] is not None,
    )


def _rich(head: re.Match[str], lines: list[str]) -> View:
    inventory = dict.fromkeys(ITEMS, 0)
    vitals = _RICH_VITALS.fullmatch("Health " + _after(lines, "rich", "Health "))
    if vitals is None:
        raise ValueError("The rich observation's line `Health ...` cannot be read.")
    inventory.update(zip(ITEMS, map(int, vitals.groups()), strict=False))
    for name, count in _RICH_ITEM.findall(_after(lines, "rich", "Inventory:")):
        if name not in inventory:
            raise ValueError(f"The rich observation has an item {name!r} that does not exist.")
        inventory[name] = int(count)
    _after(lines, "rich", "Map (")
    map_at = next(i for i, line in enumerate(lines) if line.startswith("Map ("))
    todo = _after(lines, "rich", "Unlocked ").partition("Still to do:")[2].strip(" .").split(", ")
    return View(
        step=int(head[1]),
        max_steps=int(head[2]),
        view=_grid([line.split() for line in lines[map_at + 1 : map_at + 1 + ROWS]], "rich"),
        facing=_direction(_after(lines, "rich", "Facing ").partition(":")[0]),
        inventory=inventory,
        achievements=tuple(name for name in ACHIEVEMENTS if name not in todo),
        sleeping=head[4] is not None,
        dark=head[3] == "Night",
    )


def _found(part: _Part | None, style: str, start: str) -> _Part:
    if part is None:
        raise ValueError(f"The {style} observation is incomplete: it has no line that begins with `{start}`.")
    return part


def _after(lines: list[str], style: str, start: str) -> str:
    """The rest of the first line that begins with `start`."""
    return _found(next((line[len(start) :] for line in lines if line.startswith(start)), None), style, start)


def _grid(rows: list[list[str]], style: str) -> tuple[tuple[str, ...], ...]:
    if len(rows) != ROWS or any(len(row) != COLUMNS or not _CHARACTERS.keys() >= set(row) for row in rows):
        raise ValueError(f"The map of the {style} observation is not {ROWS} rows of {COLUMNS} known characters.")
    return tuple(tuple(_CHARACTERS[character] for character in row) for row in rows)


def _direction(word: str) -> str:
    if word not in DIRECTIONS:
        raise ValueError(f"The observation faces {word!r}, which is no direction.")
    return word


def _known(names: list[str]) -> tuple[str, ...]:
    for name in names:
        if name not in ACHIEVEMENTS:
            raise ValueError(f"The observation has an achievement {name!r} that does not exist.")
    return tuple(names)
