"""How long a command takes to say something: whole processes, by the clock, as somebody at a terminal waits.

A bare interpreter is started by turns with them: what it takes is not ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks import workplace
from benchmarks.metrics import Metric
from crafter_pipeline.processes import Service

METRICS = (
    Metric("cli.help_s", "crafter-pipeline --help", "s", at_most=0.4),
    Metric("cli.help_ratio", "the same, against a bare interpreter", "×"),
    Metric("cli.slowest_help_s", "the slowest command's own --help", "s", at_most=0.4),
    Metric("cli.status_s", "crafter-pipeline status, with a backend on this machine", "s", at_most=1.0),
)
COMMAND = [sys.executable, "-c", "import sys; from crafter_pipeline.cli import main; sys.exit(main())"]
"""As the installed script does it."""
BARE = [sys.executable, "-c", "pass"]


def measure(quick: bool) -> Mapping[str, float | None]:
    """Every metric."""
    helps, bare = by_turns([[*COMMAND, "--help"], BARE], rounds=5 if quick else 21)
    each = by_turns([[*COMMAND, name, "--help"] for name in commands()], rounds=1 if quick else 5)
    with workplace() as folder, backend(folder) as service:
        environment = {"BACKEND_BASE_URL": service.url, "SYNTH_API_KEY": ""}
        (status,) = by_turns([[*COMMAND, "status"]], rounds=3 if quick else 11, environment=environment)
    return {
        "cli.help_s": median(helps),
        "cli.help_ratio": median(helps) / median(bare),
        "cli.slowest_help_s": max(median(times) for times in each),
        "cli.status_s": median(status),
    }


def commands() -> list[str]:
    """The names of all commands."""
    from crafter_pipeline.cli.app import app

    return [name for name in app if not name.startswith("-")]


def backend(folder: Path) -> Service:
    """A training backend without a model."""
    arguments = ["--data", str(folder / "data")]
    return Service("backend", "train_app", arguments, log=folder / "backend.log", environment={"SYNTH_API_KEY": ""})


def by_turns(
    processes: Sequence[Sequence[str]], rounds: int, environment: Mapping[str, str] | None = None
) -> list[list[float]]:
    """Seconds of each process in each round, after one that warms the disk's cache."""
    times: list[list[float]] = [[] for _ in processes]
    for _ in range(rounds + 1):
        for found, command in zip(times, processes, strict=True):
            started = time.perf_counter()
            subprocess.run(command, env=os.environ | (environment or {}), check=True, capture_output=True)
            found.append(time.perf_counter() - started)
    return [found[1:] for found in times]
