"""Improve a model by reinforcement learning."""

from __future__ import annotations

from crafter_pipeline import connections
from crafter_pipeline.config import PolicyConfig, RlConfig
from crafter_pipeline.training import RlJob, TrainedModel
from flows.decorator import flow
from tasks.approval import Approve
from tasks.artifacts import publish_model_artifact
from tasks.states import told
from tasks.task_app import check_task_app
from tasks.training import resolve_model, train


@flow(name="submit-rl", flow_run_name="rl-{config.iterations}-iterations")
def submit_rl(
    config: RlConfig = RlConfig(),  # noqa: B008
    source: str = "latest:sft",
    policy: PolicyConfig = PolicyConfig(),  # noqa: B008
    environment: str = "crafter",
    task_app_url: str | None = None,
    backend_url: str | None = None,
    tags: dict[str, str] | None = None,
    approve: Approve = "auto",
    patience_seconds: float | None = None,
) -> TrainedModel:
    """Train on rewards from the task app and wait for the model. A job asked for before is found, not repeated.

    Args:
        config: The job.
        source: Model to start from: a base model, a trained one's id, or `latest:sft`. The teacher of a distillation
            is named in the same ways.
        policy: How the model is shown the game and asked.
        environment: Name of the environment, e.g. `crafter`.
        task_app_url: Address of a running task app, as the backend sees it, or a comma list of several, which share
            the rollouts; unset: TASK_APP_URL.
        backend_url: Address of the training backend; unset: BACKEND_BASE_URL, or the local one.
        tags: Words to find the job by.
        approve: ask: pause before the job starts, until a person says yes on Prefect's page; auto: start at once.
        patience_seconds: Longest wait for the model; the job then goes on alone, and the same again waits for it.
            Unset: no end.
    """
    task_app_url, backend_url = connections.task_app_address(task_app_url), connections.backend_address(backend_url)
    check_task_app(task_app_url)
    if config.teacher is not None and config.teacher_url is None:
        config = config.model_copy(update={"teacher": resolve_model(config.teacher, backend_url)})
    first, *further = connections.task_app_addresses(task_app_url)
    job = RlJob(
        config=config.model_copy(update={"task_app_urls": (*further, *config.task_app_urls)}),
        source=resolve_model(source, backend_url),
        policy=policy,
        environment=environment,
        task_app_url=first,
        tags=tags or {},
    )
    model = train(job, backend_url, approve, patience_seconds)
    publish_model_artifact(model, "rl")
    return told(model, says=model.in_words)
