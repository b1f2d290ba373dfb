"""What a dataset costs: selection and export of 200,000 turns from eight databases, in a process of its own.

The databases hold rollouts that the scripted expert played with the environment's whole prompt, each copy with other
words on its maps, so that no two turns are equal.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import workplace
from benchmarks.metrics import Metric
from benchmarks.traces import played
from crafter_pipeline.contracts import Rollout, Turn
from crafter_pipeline.traces.store import TraceStore

DATABASES, TURNS = 8, 200_000
SMALL = 10
"""The smaller size is a tenth."""
FULL = {"export": {"tokenizer": "crafter-tiny", "context": 8192, "duplicates": "near"}}

METRICS = (
    Metric("dataset.filter_200k_s", "200,000 turns of 8 databases to JSONL", "s", at_most=30),
    Metric("dataset.filter_200k_mb", "its peak memory", "MB", at_most=1500),
    Metric("dataset.filter_20k_s", "the same with 20,000 turns", "s"),
    Metric("dataset.filter_20k_mb", "its peak memory", "MB"),
    Metric("dataset.full_200k_s", "with token counts and near-duplicates", "s", at_most=180),
    Metric("dataset.full_200k_mb", "its peak memory", "MB", at_most=1500),
)


def measure(quick: bool) -> dict[str, float | None]:
    """All metrics; quick: of a hundredth of the turns."""
    turns = TURNS // 100 if quick else TURNS
    with workplace() as folder:
        small = make_databases(folder / "small", turns // SMALL)
        large = make_databases(folder / "large", turns)
        plain, tenth = build(large, folder, {}), build(small, folder, {})
        full = build(large, folder, FULL)
    return {
        "dataset.filter_200k_s": plain["seconds"],
        "dataset.filter_200k_mb": plain["peak_mb"],
        "dataset.filter_20k_s": tenth["seconds"],
        "dataset.filter_20k_mb": tenth["peak_mb"],
        "dataset.full_200k_s": full["seconds"],
        "dataset.full_200k_mb": full["peak_mb"],
    }


def make_databases(folder: Path, turns: int) -> list[Path]:
    """`DATABASES` files that together hold `turns` turns."""
    patterns = [asyncio.run(played(10, seed, prompt_bytes=None))[0] for seed in range(16)]
    files = [folder / f"task_app_traces_{i}.db" for i in range(DATABASES)]
    numbers = itertools.count()
    for file in files:
        with TraceStore(file) as store:
            left = turns // DATABASES
            while left > 0:
                number = next(numbers)
                rollout = _varied(patterns[number % len(patterns)], number, left)
                store.add(rollout)
                left -= len(rollout.turns)
    return files


def _varied(rollout: Rollout, number: int, turns: int) -> Rollout:
    """At most so many turns of the rollout in another world: the words of what was seen in another order."""
    draw = random.Random(number)
    changed = tuple(_turn(turn, draw) for turn in rollout.turns[:turns])
    return replace(rollout, run_id=f"rollout-{number:06d}", seed=number, turns=changed)


def _turn(turn: Turn, draw: random.Random) -> Turn:
    *before, last = turn.messages
    words = last["content"].split(" ")
    draw.shuffle(words)
    text = " ".join(words)
    return replace(turn, messages=(*before, {**last, "content": text}), observation=text)


def build(files: Sequence[Path], folder: Path, config: dict[str, Any]) -> dict[str, float]:
    """{seconds, peak_mb, rows} of `build_dataset` in a child."""
    command = [sys.executable, "-m", "benchmarks.build_dataset", str(folder / "rows.jsonl"), json.dumps(config)]
    done = subprocess.run([*command, *map(str, files)], stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result
