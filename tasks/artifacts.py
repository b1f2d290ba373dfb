"""What a run shows in Prefect: tables, plots and links. A retry writes a newer version of the same artifact.

A key names a kind of page, so that its versions are the kind's history; the description says whose page it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from prefect import runtime, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from crafter_pipeline import connections
from crafter_pipeline.contracts import EpisodeResult
from crafter_pipeline.dataset.card import card_markdown, funnel_rows
from crafter_pipeline.dataset.manifest import DatasetManifest
from crafter_pipeline.episodes import Collected
from crafter_pipeline.evaluation import Evaluation
from crafter_pipeline.learning_curves import FILE
from crafter_pipeline.links import run_folder
from crafter_pipeline.model_names import is_trained
from crafter_pipeline.report import RunReport, evaluation_markdown, headline, job_markdown, run_markdown, text
from crafter_pipeline.report.markdown import code, files_markdown, place_markdown, safe
from crafter_pipeline.report.rollouts import collected_markdown, world_rows
from crafter_pipeline.report.validation import validation_markdown
from crafter_pipeline.training import TrainedModel
from crafter_pipeline.validation import ValidationReport
from tasks.bars import bar

__all__ = ["artifact_key", "bar", "described", "with_files"]

_PLAIN = str.maketrans("`<>[]*", "'‹›()·")


def artifact_key(*words: str) -> str:
    """Lower-case letters, digits and dashes, as Prefect asks."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def described(says: str, whose: str | None = None) -> str:
    """An artifact's description, one line: what it says, which a card of Prefect's page cuts off, and whose it is.

    Prefect shows a description as markdown on one page and as text on another, so that nothing of markdown stays.

    Args:
        whose: A run's id; None: the run that we are part of, else this flow run.
    """
    folder = run_folder()
    whose = whose or (folder.name if folder else runtime.flow_run.name)
    return " ".join((f"{says} · {whose}" if whose else says).split()).translate(_PLAIN)


def with_files(page: str, *names: str) -> str:
    """A page that begins with links to the folder of the run that we are part of, and to files in it."""
    folder = run_folder()
    return f"{files_markdown(folder, names)}\n\n{page}" if folder else page


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_task_app_artifact(environment: str, url: str, report: ValidationReport | None) -> None:
    """Where the task app answers, and what was found when it was tried; None: it was not.

    Args:
        url: One address, or a comma list of several.
    """
    addresses = [f"- [{safe(at)}]({at})" for at in connections.task_app_addresses(url)]
    parts = [f"## Task app of {safe(environment)}", "\n".join(addresses)]
    parts.append("It was not tried." if report is None else validation_markdown(report))
    create_markdown_artifact(
        with_files("\n\n".join(parts)),
        key="task-app",
        description=described(url if report is None else report.verdict),
    )


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_collected_artifact(collected: Collected, results: list[EpisodeResult]) -> None:
    """How the teacher, or a student of DAgger, played: numbers and plots, and a table with a row per world."""
    key = "rollouts-student" if is_trained(collected.model) else "rollouts"
    says = f"{collected.model}, {collected.episodes:,} of {collected.episodes + len(collected.failed):,} worlds"
    rows = world_rows(results)
    shown = "" if len(rows) == len(results) else f", the first {len(rows):,} of them"
    create_table_artifact(rows, key=f"{key}-worlds", description=described(says + shown))
    create_markdown_artifact(
        with_files(collected_markdown(collected, results), "traces"), key=key, description=described(says)
    )


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_dataset_artifact(manifest: DatasetManifest) -> None:
    """The dataset's card, and a table of what each rule removed."""
    path = Path(manifest.path)
    says = described(f"{path.name}, {manifest.rows:,} training examples")
    create_table_artifact(funnel_rows(manifest), key="dataset-funnel", description=says)
    create_markdown_artifact(
        with_files(f"File {place_markdown(path, path.name)}\n\n{card_markdown(manifest, plot=True)}"),
        key="dataset",
        description=says,
    )


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_evaluation_artifact(evaluation: Evaluation) -> None:
    """Table and plot of one player."""
    says = f"{evaluation.label}, {evaluation.mean_achievements:.2f} achievements, {evaluation.model}"
    create_markdown_artifact(
        with_files(evaluation_markdown(evaluation)),
        key=artifact_key("evaluation", evaluation.label),
        description=described(says),
    )


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_model_artifact(model: TrainedModel, kind: str) -> None:
    """The trained model, its line of descent, and how its training went."""
    data = f"dataset {code(model.dataset_sha256[:12])}" if model.dataset_sha256 else "no dataset"
    lines = [
        f"## {code(model.id)}",
        f"From {code(model.parent)} by job {code(model.job_id)}; {data}.",
        *([] if model.compute is None else [f"Its training took {text.compute(model.compute)}."]),
        *(f"> **Warning.** {safe(warning)}" for warning in model.warnings),
        job_markdown(kind, model.curves),
    ]
    create_markdown_artifact(
        with_files("\n\n".join(lines)), key=artifact_key("model", kind), description=described(model.id)
    )


@task(retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def publish_report_artifact(report: RunReport, folder: str) -> None:
    """The whole run on one page, with what came from what and an episode, and where its files are."""
    names = ("report.html", "report.json", FILE, "dataset", "traces", "evaluations", "logs")
    files = files_markdown(Path(folder), names)
    create_markdown_artifact(
        f"{files}\n\n{run_markdown(report)}",
        key="report",
        description=described(f"{report.status}: {headline(report)}", report.run_id),
    )
