"""Makes `curriculum.json`: `python -m crafter_pipeline.game.make_curriculum` (about a minute).

The expert plays, and the first moment that fits a description becomes a start state, if from there the expert, who
remembers nothing of the way, reaches the state's goals on most seeds.
"""

from __future__ import annotations

import base64
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from crafter_pipeline.expert import Expert, parse

from .curriculum import FILE
from .engine import Game
from .rules import FURNACE, NIGHT_BELOW, PLANT, RIPE_AFTER, TABLE
from .text import render_text

EPISODES = range(200)
"""Seeds on which the expert looks for start states."""
EPISODE_STEPS = 1_500
TRIES = range(10)
"""Seeds on which a task is tried."""
NEEDED = 8
"""Of the tries."""
PATIENCE = 150
"""Env steps of a try."""


class Start(NamedTuple):
    """A kind of moment to look for."""

    name: str
    description: str
    goals: tuple[str, ...]
    fits: Callable[[Game], bool]


def _near(game: Game, material: int) -> bool:
    return game._board.near(*game.position, material)


def _sees(game: Game, *kinds: str) -> bool:
    return any(kind in row for row in game.observe().view for kind in kinds)


def _has(game: Game, **least: int) -> bool:
    return all(game._inventory[item] >= n for item, n in least.items())


def _plant_ripens(game: Game) -> bool:
    return any(t.kind == PLANT and RIPE_AFTER - 30 < t.clock <= RIPE_AFTER for t in game._board.things)


FRESH = (
    ("collect_wood", "Collect wood from a tree."),
    ("collect_sapling", "Collect a sapling from grass."),
    ("place_table", "Place a table."),
)
"""Tasks that begin in a new world."""

STARTS = (
    Start("holding-sapling", "a sapling in the hand", ("place_plant",), lambda g: _has(g, sapling=1)),
    Start(
        "beside-table",
        "beside a table, with wood for two tools and none made",
        ("make_wood_pickaxe", "make_wood_sword"),
        lambda g: _near(g, TABLE) and _has(g, wood=2) and not _has(g, wood_pickaxe=1) and not _has(g, wood_sword=1),
    ),
    Start(
        "holding-wood-pickaxe",
        "a wooden pickaxe in the hand, no stone yet",
        ("collect_stone", "place_stone"),
        lambda g: _has(g, wood_pickaxe=1),
    ),
    Start(
        "beside-table-with-stone",
        "beside a table, with wood and stone for two tools",
        ("make_stone_pickaxe", "make_stone_sword"),
        lambda g: _near(g, TABLE) and _has(g, wood=2, stone=2),
    ),
    Start("holding-stone", "five stones in the hand", ("place_furnace",), lambda g: _has(g, stone=5)),
    Start("thirsty", "less than half of the drink left", ("collect_drink",), lambda g: g._inventory["drink"] <= 4),
    Start("hungry", "food is sinking, a cow in sight", ("eat_cow",), lambda g: not _has(g, food=7) and _sees(g, "cow")),
    Start(
        "holding-stone-pickaxe",
        "a stone pickaxe in the hand",
        ("collect_coal", "collect_iron"),
        lambda g: _has(g, stone_pickaxe=1),
    ),
    Start(
        "beside-furnace",
        "beside a table and a furnace, with wood, coal and iron",
        ("make_iron_pickaxe",),
        lambda g: _near(g, TABLE) and _near(g, FURNACE) and _has(g, wood=1, coal=1, iron=1),
    ),
    Start(
        "holding-iron-pickaxe",
        "an iron pickaxe in the hand, wood, coal and iron for a sword",
        ("make_iron_sword",),
        lambda g: _has(g, iron_pickaxe=1, wood=1, coal=1, iron=1),
    ),
    Start(
        "diamond-in-sight",
        "an iron pickaxe in the hand, a diamond in sight",
        ("collect_diamond",),
        lambda g: _has(g, iron_pickaxe=1) and _sees(g, "diamond"),
    ),
    Start(
        "zombie-in-sight",
        "a zombie in sight, a sword in the hand",
        ("defeat_zombie",),
        lambda g: _has(g, wood_sword=1, health=6) and _sees(g, "zombie") and not g._sleeping,
    ),
    Start(
        "skeleton-in-sight",
        "a skeleton in sight, a sword in the hand",
        ("defeat_skeleton",),
        lambda g: _has(g, stone_sword=1, health=6) and _sees(g, "skeleton") and not g._sleeping,
    ),
    Start(
        "night-energy-3",
        "night, energy 3, awake",
        ("wake_up",),
        lambda g: g._inventory["energy"] == 3 and g.observe().daylight < NIGHT_BELOW and not g._sleeping,
    ),
    Start(
        "ripening-plant",
        "a planted sapling in sight that is ripe in less than 30 steps",
        ("eat_plant",),
        lambda g: _plant_ripens(g) and _sees(g, "sapling") and not g._sleeping,
    ),
)


def solve(game: Game, goal: str) -> int | None:
    """Env steps in which a new expert reaches the goal; None: it does not."""
    expert, begin = Expert(), game.steps
    while not game.done:
        decision = expert.act(parse(render_text(game.observe(), "sparse")))
        if goal in game.step(decision.action).unlocked:
            return game.steps - begin
    return None


def _moments(seed: int) -> Iterator[Game]:
    """An expert's game, before each step."""
    game, expert = Game(seed, max_steps=EPISODE_STEPS), Expert()
    while not game.done:
        yield game
        game.step(expert.act(parse(render_text(game.observe(), "sparse"))).action)


def _task(goal: str, begin: Callable[[int, int], Game]) -> dict[str, int] | None:
    """max_steps, seed and solution_steps of a goal, if it is reached often enough."""
    lengths = _lengths(goal, begin, PATIENCE)
    if len(lengths) < NEEDED:
        return None
    limit = max(20, -(-2 * max(lengths.values()) // 10) * 10)
    lengths = _lengths(goal, begin, limit)  # again: the expert plays by how many steps are left
    if len(lengths) < NEEDED:
        return None
    middle = statistics.median_low(lengths.values())
    seed = next(seed for seed, steps in lengths.items() if steps == middle)
    return {"max_steps": limit, "seed": seed, "solution_steps": middle}


def _lengths(goal: str, begin: Callable[[int, int], Game], limit: int) -> dict[int, int]:
    """Solution steps by seed, of the seeds on which the goal is reached."""
    return {seed: steps for seed in TRIES if (steps := solve(begin(seed, limit), goal)) is not None}


def _try(start: Start, blob: bytes) -> dict[str, dict[str, int]] | None:
    found = {}
    for goal in start.goals:
        task = _task(goal, lambda seed, limit: Game.start_from(blob, seed, limit))
        if task is None:
            return None
        found[goal] = task
    return found


def make() -> dict[str, dict[str, dict[str, object]]]:
    """Everything that the file holds."""
    starts: dict[str, dict[str, object]] = {}
    tasks: dict[str, dict[str, object]] = {}
    for goal, description in FRESH:
        found = _task(goal, lambda seed, limit: Game(seed, max_steps=limit))
        if found is None:
            raise RuntimeError(f"The expert does not solve {goal} in new worlds.")
        tasks[goal] = {"description": description, "start": None, **found}
    missing = list(STARTS)
    for seed in EPISODES:
        tried: set[str] = set()  # one moment of an episode for each kind: the next ones resemble it
        for game in _moments(seed):
            for start in list(missing):
                if start.name in tried or set(start.goals) & set(game.unlocked) or not start.fits(game):
                    continue
                tried.add(start.name)
                blob = game.snapshot()
                found_all = _try(start, blob)
                if found_all is None:
                    continue
                missing.remove(start)
                starts[start.name] = {
                    "description": start.description[0].upper() + start.description[1:] + ".",
                    "snapshot": base64.b64encode(blob).decode(),
                }
                for goal, found in found_all.items():
                    verb, _, what = goal.partition("_")
                    text = f"{verb.capitalize()} {what.replace('_', ' ')}: {start.description}."
                    tasks[goal] = {"description": text, "start": start.name, **found}
                print(f"{start.name}: seed {seed}, step {game.steps}, {found_all}", flush=True)
        if not missing:
            break
    for start in missing:
        print(f"{start.name}: not found", flush=True)
    order = {start.name: i for i, start in enumerate(STARTS)}
    return {
        "starts": dict(sorted(starts.items(), key=lambda item: order[item[0]])),
        "tasks": dict(sorted(tasks.items(), key=lambda item: order.get(str(item[1]["start"]), -1))),
    }


if __name__ == "__main__":
    (Path(__file__).parent / FILE).write_text(json.dumps(make(), indent=1) + "\n")
