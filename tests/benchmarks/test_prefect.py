"""The history of a run: no task of 1,000 is lost."""

from __future__ import annotations

import pytest

from benchmarks import prefect, workplace


@pytest.mark.slow
def test_of_1000_seeds_with_a_task_each_prefect_shows_every_one():
    """Raises if a task is never counted as completed."""
    with workplace() as folder, prefect.server(folder) as running:
        told = prefect.mapped(folder, running, prefect.SEEDS)
    assert told["cpu_s"] > 0 and told["visible_s"] < prefect.PATIENCE_SECONDS
