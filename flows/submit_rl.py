"""Improve a model by reinforcement learning."""

from __future__ import annotations

from prefect import flow

from crafter_pipeline import connections
from crafter_pipeline.config import PolicyConfig, RlConfig
from crafter_pipeline.training import RlJob, TrainedModel
from tasks.artifacts import publish_model_artifact
from tasks.task_app import check_task_app
from tasks.training import await_job, resolve_model, submit_job


@flow(name="submit-rl", flow_run_name="rl-{config.iterations}-iterations")
def submit_rl(
    config: RlConfig = RlConfig(),  # noqa: B008
    source: str = "latest:sft",
    policy: PolicyConfig = PolicyConfig(),  # noqa: B008
    environment: str = "crafter",
    task_app_url: str | None = None,
    backend_url: str | None = None,
    tags: dict[str, str] | None = None,
) -> TrainedModel:
    """Train on rewards from the task app and wait for the model. A job asked for before is found, not repeated.

    Args:
        config: The job.
        source: Model to start from: a base model, a trained one's id, or `latest:sft`. The teacher of a distillation
            is named in the same ways.
        policy: How the model is shown the game and asked.
        environment: Name of the environment, e.g. `crafter`.
        task_app_url: Address of a running task app, as the backend sees it; unset: TASK_APP_URL.
        backend_url: Address of the training backend; unset: BACKEND_BASE_URL.
        tags: Words to find the job by.
    """
    task_app_url, backend_url = connections.task_app_address(task_app_url), connections.backend_address(backend_url)
    check_task_app(task_app_url)
    if config.teacher is not None and config.teacher_url is None:
        config = config.model_copy(update={"teacher": resolve_model(config.teacher, backend_url)})
    job = RlJob(
        config=config,
        source=resolve_model(source, backend_url),
        policy=policy,
        environment=environment,
        task_app_url=task_app_url,
        tags=tags or {},
    )
    model = await_job(submit_job(job, backend_url), job, backend_url)
    publish_model_artifact(model, "rl")
    return model
