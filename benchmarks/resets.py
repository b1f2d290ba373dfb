"""Resets of stock and of our game in one process, by turns, as a child of `benchmarks.game`.

Stock makes worlds with `opensimplex`, which compiles itself where numba is installed; that is decided at import, so
each case is a process of its own: `python -m benchmarks.resets with-numba|without-numba ROUNDS`. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable


def main(numba: str, rounds: int) -> None:
    """Print {"stock_ms", "ours_ms"}: the median of CPU times of a reset with a new seed."""
    if numba == "without-numba":
        sys.modules["numba"] = None  # type: ignore[assignment]
    import crafter

    from crafter_pipeline.game import Game

    env = crafter.Env(seed=0)
    env.reset()  # imports and, with numba, compiles
    Game(0)
    stock, ours = [], []
    for seed in range(1, rounds + 1):
        env = crafter.Env(seed=seed)
        stock.append(_milliseconds(env.reset))
        ours += [_milliseconds(lambda s=1000 * seed + i: Game(s)) for i in range(10)]  # type: ignore[misc]
    print(json.dumps({"stock_ms": _median(stock), "ours_ms": _median(ours)}))


def _milliseconds(act: Callable[[], object]) -> float:
    started = time.thread_time()
    act()
    return 1000.0 * (time.thread_time() - started)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
