"""Our game against crafter 1.8.3: steps and resets.

Thread CPU time, by turns in one process. Steps play the actions of the scripted expert, so that there is mining,
building, fighting and a night in them.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import crafter

from benchmarks.metrics import Metric
from crafter_pipeline.expert import Expert, parse
from crafter_pipeline.game import ACTIONS, Game, render_text
from task_app.environments import environment_of

METRICS = (
    Metric("game.step_ratio", "step, stock against ours", "×", at_least=80),
    Metric("game.parity_step_ratio", "step, stock against our parity mode", "×", at_least=40),
    Metric("game.reset_ratio", "reset with a new seed, stock (no numba) against ours", "×", at_least=150),
    Metric("game.reset_ratio_numba", "the same, stock with numba (none if it is not installed)", "×"),
    Metric("game.cached_reset_ms", "an episode's start on a seed that was played before", "ms", at_most=0.3),
)


def measure(quick: bool) -> dict[str, float | None]:
    """All metrics."""
    seeds, steps, rounds = ((1,), 60, 1) if quick else ((1, 2, 3), 400, 3)
    step, parity_step = step_ratios(seeds, steps, rounds)
    return {
        "game.step_ratio": step,
        "game.parity_step_ratio": parity_step,
        "game.reset_ratio": reset_ratio("without-numba", 1 if quick else 7),
        "game.reset_ratio_numba": (
            reset_ratio("with-numba", 1 if quick else 15) if importlib.util.find_spec("numba") else None
        ),
        "game.cached_reset_ms": cached_reset_ms(20 if quick else 500),
    }


def step_ratios(seeds: Sequence[int], steps: int, rounds: int) -> tuple[float, float]:
    """How many of our steps (default mode, parity mode) fit into one of stock's; the best round of each counts."""
    games = [(seed, expert_actions(seed, steps)) for seed in seeds]
    stock: list[float] = []
    ours: list[float] = []
    parity: list[float] = []
    for _ in range(rounds):
        for times, play in ((stock, _play_stock), (ours, _play_ours), (parity, _play_parity)):
            played = [play(seed, actions) for seed, actions in games]
            times.append(sum(seconds for seconds, _ in played) / sum(count for _, count in played))
    return min(stock) / min(ours), min(stock) / min(parity)


def expert_actions(seed: int, steps: int) -> list[str]:
    """What the expert does in the first steps of a seed's world."""
    expert, game = Expert(), Game(seed, parity=True)
    actions: list[str] = []
    while len(actions) < steps and not game.done:
        actions.append(expert.act(parse(render_text(game.observe(), "sparse"))).action)
        game.step(actions[-1])
    return actions


def _play_stock(seed: int, actions: Sequence[str]) -> tuple[float, int]:
    env = crafter.Env(seed=seed)
    env.reset()
    return _timed(lambda action: env.step(action)[2], [ACTIONS.index(action) for action in actions])


def _play_ours(seed: int, actions: Sequence[str]) -> tuple[float, int]:
    game = Game(seed)
    return _timed(lambda action: game.step(action).done, actions)


def _play_parity(seed: int, actions: Sequence[str]) -> tuple[float, int]:
    game = Game(seed, parity=True)
    return _timed(lambda action: game.step(action).done, actions)


def _timed(step: Callable[..., bool], actions: Sequence[object]) -> tuple[float, int]:
    """(CPU seconds, steps played): an episode that goes another way may end early."""
    started = time.thread_time()
    played = 0
    for action in actions:
        played += 1
        if step(action):
            break
    return time.thread_time() - started, played


def reset_ratio(numba: str, rounds: int) -> float:
    """How many of our resets fit into one of stock's; numba: `with-numba` or `without-numba`."""
    command = [sys.executable, "-m", "benchmarks.resets", numba, str(rounds)]
    medians = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return float(medians["stock_ms"] / medians["ours_ms"])


def cached_reset_ms(repetitions: int) -> float:
    """Median CPU milliseconds of the start of an episode, as a rollout makes it, in a world that is known."""
    environment = environment_of("grpo-crafter")
    setup = environment.prepare({})
    environment.start(1, 100, setup)
    times = []
    for _ in range(repetitions):
        started = time.thread_time()
        environment.start(1, 100, setup)
        times.append(time.thread_time() - started)
    return 1000.0 * statistics.median(times)
