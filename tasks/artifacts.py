"""What a run shows in Prefect: markdown with tables and plots. A retry writes a newer version of the same artifact."""

from __future__ import annotations

import re

from prefect import task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from crafter_pipeline.dataset.card import card_markdown, funnel_rows
from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.evaluation import Evaluation
from crafter_pipeline.report import RunReport, evaluation_markdown, run_markdown
from crafter_pipeline.training import TrainedModel
from crafter_pipeline.validation import ValidationReport


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


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_model_artifact(model: TrainedModel, kind: str) -> None:
    """The trained model and its line of descent."""
    last = {name: points[-1] for name, points in model.curves.items() if points}
    rows = "\n".join(f"| {name} | {step} | {value:.4g} |" for name, (step, value) in sorted(last.items()))
    lines = [
        f"## `{model.id}`",
        f"From `{model.parent}` by job `{model.job_id}`; dataset `{(model.dataset_sha256 or 'none: RL')[:12]}`.",
        f"| metric | last step | value |\n| --- | --- | --- |\n{rows}",
    ]
    create_markdown_artifact("\n\n".join(lines), key=artifact_key("model", kind), description=model.id)


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_report_artifact(report: RunReport, folder: str) -> None:
    """The whole run on one page, and where its files are."""
    where = f"\n\nFiles: `{folder}` (report.html, report.json)\n"
    create_markdown_artifact(
        run_markdown(report) + where, key="report", description=f"{report.run_id}: {report.status}"
    )
