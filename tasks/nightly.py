"""The nightly evaluation's tasks: what is judged, what is kept of a night, who hears of it."""

from __future__ import annotations

import logging
from uuid import NAMESPACE_URL, uuid5

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from crafter_pipeline import connections, nightly
from crafter_pipeline.config import NightlyConfig
from crafter_pipeline.evaluation import Evaluation
from crafter_pipeline.nightly import REGRESSED, Found, Night, NightlyReport, Nights
from crafter_pipeline.report.nightly import night_markdown, nightly_markdown
from tasks.artifacts import artifact_key
from tasks.policies import may_pass

log = logging.getLogger("crafter_pipeline")


@task(retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def find_models(names: tuple[str, ...], backend_url: str) -> Found:
    """Which of the names have a model, and its id. A retry asks again."""
    return nightly.find_models(connections.backend(backend_url), names)


@task(task_run_name="keep-{evaluation.label}", cache_policy=NO_CACHE)
def keep_night(night: str, evaluation: Evaluation, config: NightlyConfig) -> Night:
    """Compare with the baseline and store the night. Running it again finds the night that is stored."""
    return Nights.of(evaluation.label).keep(night, evaluation, config)


@task(task_run_name="regressed-{night.name}", cache_policy=NO_CACHE)
def announce_regression(night: Night) -> None:
    """Tell Prefect's automations. Told twice, it is the same event: its id is that of night and name."""
    c = night.comparison
    assert c is not None
    log.warning("%s", night.says)
    emit_event(
        REGRESSED,
        resource={
            "prefect.resource.id": f"crafter-pipeline.model.{night.name}",
            "prefect.resource.name": night.name,
        },
        payload={
            "model": night.name,
            "model_id": night.evaluation.model,
            "delta": c.delta,
            "ci95": list(c.ci95),
            "seeds": len(c.seeds),
            "says": night.says,
        },
        id=uuid5(NAMESPACE_URL, f"{night.id}/{night.name}"),
    )


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_nightly_artifacts(report: NightlyReport) -> None:
    """A page per model and one of all, with their trends. A retry writes newer versions of the same pages."""
    histories = {night.name: Nights.of(night.name).history() for night in report.nights}
    for night in report.nights:
        create_markdown_artifact(
            night_markdown(histories[night.name]), key=artifact_key("nightly", night.name), description=night.says
        )
    create_markdown_artifact(nightly_markdown(report, histories), key="nightly", description=report.says)
