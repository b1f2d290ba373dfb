"""What a run shows in Prefect: markdown with tables and plots. A retry writes a newer version of the same artifact."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any

from prefect import task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE

from crafter_pipeline.dataset.card import card_markdown, funnel_rows
from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.evaluation import Evaluation
from crafter_pipeline.progress import in_words
from crafter_pipeline.report import RunReport, evaluation_markdown, job_markdown, run_markdown
from crafter_pipeline.report.markdown import safe
from crafter_pipeline.training import TrainedModel
from crafter_pipeline.validation import ValidationReport

log = logging.getLogger("crafter_pipeline")

BAR_SECONDS = 5.0
"""Between two updates of a job's bar."""


def artifact_key(*words: str) -> str:
    """Lower-case letters, digits and dashes, as Prefect asks."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_evaluation_artifact(evaluation: Evaluation) -> None:
    """Table and plot of one player."""
    create_markdown_artifact(
        evaluation_markdown(evaluation),
        key=artifact_key("evaluation", evaluation.label),
        description=f"{evaluation.label}: {evaluation.mean_achievements:.2f} achievements",
    )


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_dataset_artifact(manifest: DatasetManifest) -> None:
    """The dataset's card, and a table of what each rule removed."""
    described = f"{manifest.rows:,} training examples"
    create_table_artifact(funnel_rows(manifest), key="dataset-funnel", description=described)
    create_markdown_artifact(card_markdown(manifest, plot=True), key="dataset", description=described)


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_link_artifact(key: str, link: str, text: str) -> None:
    """A link, e.g. to the task app."""
    create_link_artifact(link, link_text=text, key=artifact_key(key), description=text)


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_validation_artifact(report: ValidationReport) -> None:
    """What was found about the environment, a row per check."""
    rows = [{"check": c.name, "state": c.state, "found": c.says, "remedy": c.remedy} for c in report.checks]
    create_table_artifact(rows, key=artifact_key("validation", report.environment), description=report.verdict)


class JobBar:
    """A training job in Prefect's page while it runs: a bar with the last numbers. Hears the progress of the job.

    Args:
        key: Of the artifact.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._id: Any = None
        self._total = self._step = 0
        self._told_at = -BAR_SECONDS

    def stage(self, name: str, state: str, seconds: float = 0.0) -> None:
        """Not of a job."""

    def expect(self, total: int, unit: str) -> None:
        """The job has so many steps."""
        self._total = total

    def advance(self, count: int = 1) -> None:
        """Told with the numbers."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step; the page gets them every few seconds."""
        if time.monotonic() - self._told_at < BAR_SECONDS and step < self._total:
            return
        self._told_at = time.monotonic()
        percent = min(100.0, 100.0 * step / self._total) if self._total else 0.0
        says = f"step {step}{f' of {self._total}' if self._total else ''}: {in_words(values)}"
        try:
            if self._id is None:
                self._id = create_progress_artifact(percent, key=self._key, description=says)
            else:
                update_progress_artifact(self._id, percent, description=says)
        except Exception as e:  # a page that is not drawn must not cost the job
            log.info("The artifact %s was not updated: %s", self._key, e)

    def note(self, text: str) -> None:
        """The log has it."""


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_model_artifact(model: TrainedModel, kind: str) -> None:
    """The trained model, its line of descent, and how its training went."""
    lines = [
        f"## `{model.id}`",
        f"From `{model.parent}` by job `{model.job_id}`; dataset `{(model.dataset_sha256 or 'none: RL')[:12]}`.",
        *(f"> **Warning.** {safe(warning)}" for warning in model.warnings),
        job_markdown(kind, model.curves),
    ]
    create_markdown_artifact("\n\n".join(lines), key=artifact_key("model", kind), description=model.id)


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_report_artifact(report: RunReport, folder: str) -> None:
    """The whole run on one page, and where its files are."""
    where = f"\n\nFiles: `{folder}` (report.html, report.json)\n"
    create_markdown_artifact(
        run_markdown(report) + where, key="report", description=f"{report.run_id}: {report.status}"
    )
