"""The registry's models, every night on the same worlds, against the baseline of each."""

from __future__ import annotations

from prefect.runtime import flow_run

from crafter_pipeline import connections
from crafter_pipeline.config import NightlyConfig
from crafter_pipeline.errors import PipelineError
from crafter_pipeline.nightly import Night, NightlyReport, Nights
from crafter_pipeline.progress import progress
from crafter_pipeline.runs import explain
from flows.decorator import flow
from flows.evaluate_model import evaluate_model
from tasks.nightly import announce_regression, find_models, keep_night, publish_nightly_artifacts
from tasks.states import told


@flow(name="nightly-eval", flow_run_name=lambda: f"nightly-{flow_run.scheduled_start_time:%Y-%m-%d}")
def nightly_eval(
    config: NightlyConfig = NightlyConfig(),  # noqa: B008
    task_app_url: str | None = None,
    backend_url: str | None = None,
) -> NightlyReport:
    """Judge every model that the config names. Worse than its baseline: the event `crafter.eval.regressed`.

    A retry of the same run plays only what is missing; another run plays anew.

    Args:
        config: Which models, on which worlds, and how they are asked.
        task_app_url: Address of a running task app; unset: TASK_APP_URL.
        backend_url: Address of the training backend; unset: BACKEND_BASE_URL.
    """
    backend_url = connections.backend_address(backend_url)
    found = find_models(config.models, backend_url)
    for name, why in found.missing.items():
        progress().note(f"{name} is passed over: {why}")
    for name in found.models:
        Nights.of(name).require_comparable(config)
    nights, failed = _judge_all(found.models, config, task_app_url, connections.inference_url(backend_url))
    report = NightlyReport(tuple(nights), found.missing, failed)
    publish_nightly_artifacts(report)
    state = "Regressed" if report.regressed else "PartialSuccess" if failed else None
    return told(report, says=report.says, name=state)


def _judge_all(
    models: dict[str, str], config: NightlyConfig, task_app_url: str | None, inference_url: str
) -> tuple[list[Night], dict[str, str]]:
    """(a night per model, name -> why it could not be judged). Raises when none could be."""
    nights, errors = [], dict[str, PipelineError]()
    for name, model in models.items():
        try:
            nights.append(_judge(name, model, config, task_app_url, inference_url))
        except PipelineError as e:
            errors[name] = e
            progress().note(f"{name} could not be judged: {e}")
    if not nights:
        raise next(iter(errors.values()))
    return nights, {name: explain(e) for name, e in errors.items()}


def _judge(name: str, model: str, config: NightlyConfig, task_app_url: str | None, inference_url: str) -> Night:
    """Play, compare, store, and announce what is worse."""
    with Nights.of(name).locked():
        evaluation = evaluate_model(
            config.evaluation(), model, name, task_app_url, inference_url, repetition=str(flow_run.id)
        )
        night = keep_night(str(flow_run.id), evaluation, config)
    if night.regressed:
        announce_regression(night)
    return night
