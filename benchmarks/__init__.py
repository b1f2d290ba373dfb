"""What things cost, measured: `python -m benchmarks [SUBJECT …] [--quick]`.

A subject is a module here with `METRICS` and `measure(quick)`, and a name in `SUBJECTS`. How each number is made, and
how to read it: `docs/benchmarks.md`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUBJECTS = ("game", "task_app", "traces", "dataset", "sft", "rl", "inference", "prefect", "cli")
"""In the order in which they run."""
RESULTS = Path(__file__).with_name("results")


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder on the same disk as the results, for traces and logs; gone afterwards."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS, prefix="work-") as folder:
        yield Path(folder)
