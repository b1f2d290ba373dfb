"""Measures subjects, prints a table with the goals, and writes `benchmarks/results/latest.json`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS, SUBJECTS
from benchmarks.metrics import Metric
from crafter_pipeline.files import write_whole

LATEST = RESULTS / "latest.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for. Subjects that are not keep their earlier numbers in the file."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure what things cost.")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: for a look, not for the record")
    options = parser.parse_args(argv)
    if unknown := set(options.subjects) - set(SUBJECTS):
        parser.error(f"there is no subject {', '.join(sorted(unknown))}; known: {', '.join(SUBJECTS)}")
    console = Console()
    results = json.loads(LATEST.read_text()) if LATEST.exists() else {}
    shown: list[Metric] = []
    for subject in options.subjects or SUBJECTS:
        module = importlib.import_module(f"benchmarks.{subject}")
        facts: dict[str, Any] = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "quick": options.quick}
        facts["load_before"], started = load(), time.monotonic()
        with console.status(f"Measuring {subject} …"):
            values: Mapping[str, float | None] = module.measure(options.quick)
        facts["load_after"], facts["seconds"] = load(), round(time.monotonic() - started, 1)
        missing = {metric.name for metric in module.METRICS} ^ set(values)
        assert not missing, f"benchmarks.{subject}: measured and declared metrics differ: {missing}"
        results = {name: value for name, value in results.items() if not name.startswith(f"{subject}.")}
        results |= {name: None if value is None else _rounded(value) for name, value in values.items()}
        results |= {f"{subject}.{name}": fact for name, fact in facts.items()}
        results |= machine()
        write_whole(LATEST, json.dumps(results, indent=2, sort_keys=True) + "\n")  # after each: a later one may fail
        shown += module.METRICS
    console.print(table(shown, results))
    console.print(f"{results['machine.cpu']}, {results['machine.cores']} cores; load {load()}. Written to {LATEST}.")
    return 0


def table(metrics: Sequence[Metric], results: Mapping[str, Any]) -> Table:
    """The numbers beside their goals."""
    drawn = Table("metric", "what", "goal", "measured", "", title="Benchmarks")
    drawn.columns[0].no_wrap = True
    for metric in metrics:
        value = results[metric.name]
        verdict = {True: "[green]pass[/]", False: "[red]fail[/]", None: ""}[metric.met(value)]
        drawn.add_row(metric.name, metric.what, metric.goal, "–" if value is None else f"{value:g}", verdict)
    return drawn


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "machine.cpu": _cpu_name(),
        "machine.cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine.system": f"{platform.system()} {platform.release()}",
        "machine.python": platform.python_version(),
    }


def load() -> float:
    """Mean number of running processes in the last minute; well above 1 before a run, its numbers are worth little."""
    return round(os.getloadavg()[0], 2)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _rounded(value: float) -> float:
    """Four figures."""
    return float(f"{value:.4g}")


if __name__ == "__main__":
    sys.exit(main())
