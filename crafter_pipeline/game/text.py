"""Observations as text.

* `sparse` for the tiny student: everything but grass, one token per word of a closed vocabulary;
* `compact` for small models: a character per cell, short lines;
* `rich` for large models: sentences, and the nearest things with the way to them.

These three tell the same facts; `crafter_pipeline.expert.parse` reads them back. Two more are other people's layouts,
for numbers that can be held against theirs: `synth`, of the original's task app, whose map is transposed, and `balrog`,
of the benchmark BALROG, which names the nearest thing of each kind.
"""

from __future__ import annotations

from collections.abc import Callable

from .observation import Observation
from .rules import ACHIEVEMENTS, DIRECTIONS, ITEMS, KINDS, MAX_ITEM, NIGHT_BELOW, OFFSETS, VITALS

COLUMNS, ROWS = 9, 7
"""Cells that an observation shows, in the game's usual view."""

CELL_CHARACTERS = {
    "void": "X",
    "water": "w",
    "grass": ".",
    "stone": "s",
    "path": "_",
    "sand": ":",
    "tree": "T",
    "lava": "L",
    "coal": "c",
    "iron": "i",
    "diamond": "d",
    "table": "t",
    "furnace": "f",
    "player": "@",
    "cow": "C",
    "zombie": "Z",
    "skeleton": "K",
    "arrow": "a",
    "sapling": "p",
    "ripe_plant": "P",
}
"""The character of each kind in the maps of `compact` and `rich`."""

_SHORT_NAMES = {
    "wood_pickaxe": "wpick",
    "stone_pickaxe": "spick",
    "iron_pickaxe": "ipick",
    "wood_sword": "wsword",
    "stone_sword": "ssword",
    "iron_sword": "isword",
}


def render_text(observation: Observation, style: str) -> str:
    """The observation in a style of STYLES, lines without a final newline. Raises ValueError for other styles."""
    renderer = _RENDERERS.get(style)
    if renderer is None:
        raise ValueError(f"There is no observation style {style!r}. The styles are: {', '.join(STYLES)}.")
    return renderer(observation)


# --------------------------------------------------------------------------- sparse


def _light(observation: Observation) -> int:
    return min(9, int(observation.daylight * 10))


def _sparse(o: Observation) -> str:
    items = [f"{name}:{count}" for name, count in o.inventory.items() if count or name in VITALS]
    middle_x, middle_y = len(o.view[0]) // 2, len(o.view) // 2
    cells = [
        f"{kind}@{x - middle_x},{y - middle_y}"
        for y, row in enumerate(o.view)
        for x, kind in enumerate(row)
        if kind not in ("grass", "player")
    ]
    return "\n".join(
        (
            f"step {o.step} of {o.max_steps} light:{_light(o)}{' asleep' if o.sleeping else ''}",
            " ".join(items),
            " ".join(("done:", *o.achievements)),
            " ".join(cells),
            f"facing:{o.facing} front:{o.front}",
        )
    )


def sparse_vocabulary() -> tuple[str, ...]:
    """Every word, sorted, that `sparse` can use with the usual view of 9x7 cells, integers left out."""
    words = {"step", "of", "asleep", "done:", *ACHIEVEMENTS}
    words.update(f"light:{tenths}" for tenths in range(10))
    words.update(f"{item}:{n}" for item in ITEMS for n in range(0 if item in VITALS else 1, MAX_ITEM + 1))
    words.update(f"facing:{direction}" for direction in DIRECTIONS)
    words.update(f"front:{kind}" for kind in KINDS if kind != "player")
    words.update(
        f"{kind}@{x},{y}"
        for kind in KINDS
        if kind not in ("grass", "player")
        for x in range(-(COLUMNS // 2), COLUMNS // 2 + 1)
        for y in range(-(ROWS // 2), ROWS // 2 + 1)
        if (x, y) != (0, 0)
    )
    return tuple(sorted(words))


# --------------------------------------------------------------------------- compact


def _compact(o: Observation) -> str:
    vitals = o.inventory
    status = (
        f"t{o.step}/{o.max_steps} hp{vitals['health']} food{vitals['food']} drink{vitals['drink']}"
        f" energy{vitals['energy']}"
    )
    flags = f"{' DARK' if o.daylight < NIGHT_BELOW else ''}{' ASLEEP' if o.sleeping else ''}"
    grid = "\n".join("".join(CELL_CHARACTERS[kind] for kind in row) for row in o.view)
    have = " ".join(_short_item(name, count) for name, count in o.inventory.items() if count and name not in VITALS)
    done = " ".join((f"done {len(o.achievements)}/{len(ACHIEVEMENTS)}:", *o.achievements))
    return f"{status}{flags}\n{grid}\nface {o.facing}: {o.front}\nhave: {have or '-'}\n{done}"


def _short_item(name: str, count: int) -> str:
    """`wood3`, `wpick`; a number after a tool only when there are several."""
    if name not in _SHORT_NAMES:
        return f"{name}{count}"
    return _SHORT_NAMES[name] + (str(count) if count > 1 else "")


# --------------------------------------------------------------------------- rich


def _rich(o: Observation) -> str:
    items = ", ".join(f"{name} x{n}" for name, n in o.inventory.items() if n and name not in VITALS) or "nothing"
    levels = ", ".join(f"{name} {o.inventory[name]}/{MAX_ITEM}" for name in VITALS)
    grid = "\n".join(" ".join(CELL_CHARACTERS[kind] for kind in row) for row in o.view)
    middle_x, middle_y = len(o.view[0]) // 2, len(o.view) // 2
    around = {name: o.view[middle_y + dy][middle_x + dx] for name, (dx, dy) in zip(DIRECTIONS, OFFSETS, strict=True)}
    adjacent = ", ".join(f"{name} {around[name]}" for name in ("up", "down", "left", "right"))
    todo = ", ".join(name for name in ACHIEVEMENTS if name not in o.achievements) or "none"
    lines = [
        f"Step {o.step} of {o.max_steps}. {'Night' if o.daylight < NIGHT_BELOW else 'Day'}"
        f" (light {int(o.daylight * 100)}%)."
        + (" You are asleep: actions are ignored until energy is 9 or you are hurt." if o.sleeping else ""),
        levels[0].upper() + levels[1:] + ".",
        f"Inventory: {items}.",
        f"Map ({len(o.view[0])} wide x {len(o.view)} high, you are @ in the centre, up is the top row):",
        grid,
        f"Facing {o.facing}: {o.front}. Adjacent: {adjacent}.",
        "Nearest (steps from you):",
        *_nearest(o),
        f"Unlocked {len(o.achievements)}/{len(ACHIEVEMENTS)}. Still to do: {todo}.",
    ]
    return "\n".join(lines)


def _nearest(o: Observation) -> list[str]:
    """A line for each kind in view, nearest kind first, with its three nearest places."""
    middle_x, middle_y = len(o.view[0]) // 2, len(o.view) // 2
    places: dict[str, list[tuple[int, int, int]]] = {}
    for y, row in enumerate(o.view):
        for x, kind in enumerate(row):
            if kind not in ("player", "grass", "path", "sand", "void"):
                dx, dy = x - middle_x, y - middle_y
                places.setdefault(kind, []).append((abs(dx) + abs(dy), dx, dy))
    lines = []
    for kind in sorted(places, key=lambda kind: min(places[kind])):
        ordered = sorted(places[kind])
        ways = "; ".join(_way(dx, dy) for _, dx, dy in ordered[:3])
        more = f" (+{len(ordered) - 3} more)" if len(ordered) > 3 else ""
        lines.append(f"- {kind}: {ways}{more}")
    return lines


def _way(dx: int, dy: int) -> str:
    parts = []
    if dy:
        parts.append(f"{abs(dy)} {'up' if dy < 0 else 'down'}")
    if dx:
        parts.append(f"{abs(dx)} {'left' if dx < 0 else 'right'}")
    return " ".join(parts)


# --------------------------------------------------------------------------- synth

SYNTH_REACH = 2
"""Cells that the map of `synth` shows on each side of the player."""


def _synth(o: Observation) -> str:
    """The map's rows are x and its columns y, as the original prints it: what is right of the player stands below."""
    dx, dy = OFFSETS[DIRECTIONS.index(o.facing)]
    items = ", ".join(f"{name}:{n}" for name, n in o.inventory.items() if n and name != "health")
    middle_x, middle_y = len(o.view[0]) // 2, len(o.view) // 2
    reach = min(SYNTH_REACH, middle_x, middle_y)
    around = range(-reach, reach + 1)
    grid = "\n".join(" ".join(_simple_kind(o.view[middle_y + y][middle_x + x]) for y in around) for x in around)
    return (
        "=== CRAFTER GAME STATE ===\n"
        f"Step: {o.step}/{o.max_steps}\n"
        f"Health: {o.inventory['health']}\n"
        f"Position: [{o.position[0]}, {o.position[1]}]\n"
        f"Facing: [{dx}, {dy}]\n"
        f"Inventory: {items or 'empty'}\n"
        f"Achievements: {', '.join(o.achievements) or 'none'}\n\n"
        f"Local Map View ({len(around)}x{len(around)}):\n{grid}\n\n"
        "Choose your next actions."
    )


def _simple_kind(kind: str) -> str:
    """Others' layouts do not tell whether a plant is ripe."""
    return "plant" if kind in ("sapling", "ripe_plant") else kind


# --------------------------------------------------------------------------- balrog


def _balrog(o: Observation) -> str:
    """The words of BALROG (MIT License, Copyright (c) 2024 BALROG Team) with its settings `unique_items` and
    `precise_location = False`: of each kind in view the nearest place alone, as a distance (columns and rows added)
    and one of eight directions, so that the exact cell remains open. Neither env step, daylight nor achievements are
    told, and no plant's ripeness. Unlike there, the player is not blind within four cells of the world's edge.
    """
    middle_x, middle_y = len(o.view[0]) // 2, len(o.view) // 2
    nearest: dict[str, tuple[int, int, int]] = {}
    for x in range(len(o.view[0])):  # their order: of two equally near the more western one, of those the northern one
        for y in range(len(o.view)):
            kind, dx, dy = _simple_kind(o.view[y][x]), x - middle_x, y - middle_y
            distance = abs(dx) + abs(dy)
            if kind not in ("player", "void") and (kind not in nearest or distance < nearest[kind][0]):
                nearest[kind] = (distance, dx, dy)
    seen = [f"- {kind} {_compass(*place)}" for kind, place in nearest.items()]
    things = [f"- {name}: {n}" for name, n in o.inventory.items() if n and name not in VITALS]
    front = "nothing" if o.front == "void" else _simple_kind(o.front)
    return "\n".join(
        (
            "Your status:",
            *(f"- {name}: {o.inventory[name]}/{MAX_ITEM}" for name in VITALS),
            "",
            *(("Your inventory:", *things) if things else ("You have nothing in your inventory.",)),
            "",
            *(("You are sleeping, and will not be able take actions until energy is full.", "") if o.sleeping else ()),
            "You see:",
            *seen,
            "",
            f"You face {front} at your front.",
        )
    )


def _compass(distance: int, dx: int, dy: int) -> str:
    """`1 step to your north`, `4 steps to your south-west`."""
    ways = [way for way, there in (("north", dy < 0), ("south", dy > 0), ("west", dx < 0), ("east", dx > 0)) if there]
    return f"{distance} step{'s' if distance > 1 else ''} to your {'-'.join(ways)}"


_RENDERERS: dict[str, Callable[[Observation], str]] = {
    "sparse": _sparse,
    "compact": _compact,
    "rich": _rich,
    "synth": _synth,
    "balrog": _balrog,
}
STYLES = tuple(_RENDERERS)
"""Names of the text styles."""
