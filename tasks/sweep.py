"""A sweep's tasks: how many runs the backend has room for, and what is shown of the table."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from crafter_pipeline import connections
from crafter_pipeline.report.sweep import sweep_markdown, sweep_rows
from crafter_pipeline.sweeps import SweepResults
from tasks.artifacts import artifact_key, described
from tasks.policies import may_pass


@task(retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def count_slots(backend_url: str) -> int:
    """Jobs that the backend trains at once. A retry asks again."""
    return connections.backend(backend_url).slots()


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_sweep_artifact(results: SweepResults) -> None:
    """The table, with how to read it."""
    says = described(results.headline, results.id)
    create_table_artifact(sweep_rows(results), key=artifact_key("sweep", results.name, "table"), description=says)
    create_markdown_artifact(
        sweep_markdown(results, plot=True), key=artifact_key("sweep", results.name), description=says
    )
