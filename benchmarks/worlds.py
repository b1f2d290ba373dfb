"""How hard are the worlds and the tasks? Prints the tables of docs/environment.md: `python -m benchmarks.worlds`
(about two minutes).

The expert sees the observation that the tiny student sees; the random player draws its actions evenly.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import fmean

from crafter_pipeline.expert import Expert, parse
from crafter_pipeline.game import ACTIONS, DIFFICULTIES, Game, render_text
from crafter_pipeline.game.curriculum import tasks

FIRST_SEED = 1_000
TRIES = range(40)
"""Seeds on which the random player tries a task."""

Player = Callable[[Game], str]
"""What to do next."""


def main() -> None:
    """Print both tables, as Markdown."""
    print(
        "| difficulty | expert, 200 steps (60 seeds) | expert, 1,000 steps (20 seeds) | random, 200 steps (60 seeds) |"
    )
    print("|---|---|---|---|")
    for difficulty in DIFFICULTIES:
        cells = played(difficulty, expert, 60, 200), played(difficulty, expert, 20, 1_000)
        print(f"| {difficulty} | {' | '.join(cells)} | {played(difficulty, chance, 60, 200)} |", flush=True)
    print("\n| task | begins | expert's steps | limit | random player |")
    print("|---|---|---|---|---|")
    for name, task in tasks().items():
        begins = f"`{task.start}`" if task.start else "any world"
        share = fmean(reached(task.begin(seed), chance(seed), name) for seed in TRIES)
        print(f"| `{name}` | {begins} | {task.solution_steps} | {task.max_steps} | {100 * share:.0f} % |", flush=True)


def expert(_seed: int) -> Player:
    """A new expert, which knows nothing of the world."""
    one = Expert()
    return lambda game: one.act(parse(render_text(game.observe(), "sparse"))).action


def chance(seed: int) -> Player:
    """The random player; the seed decides its actions."""
    drawn = random.Random(seed)
    return lambda game: drawn.choice(ACTIONS)


def played(difficulty: str, player: Callable[[int], Player], seeds: int, max_steps: int) -> str:
    """Mean achievements and the share that died, in words."""
    games = []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        game, act = Game(seed, max_steps=max_steps, world=DIFFICULTIES[difficulty]), player(seed)
        while not game.done:
            game.step(act(game))
        games.append(game)
    died = fmean(game.inventory["health"] <= 0 for game in games)
    return f"{fmean(len(game.unlocked) for game in games):.1f}, {100 * died:.0f} %"


def reached(game: Game, act: Player, goal: str) -> bool:
    """Whether a player unlocks the achievement before the episode ends."""
    while not game.done and goal not in game.unlocked:
        game.step(act(game))
    return goal in game.unlocked


if __name__ == "__main__":
    main()
