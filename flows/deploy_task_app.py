"""Bring the environment up: start a task app, or check the one that runs."""

from __future__ import annotations

from prefect import flow

from crafter_pipeline import connections
from crafter_pipeline.config import TaskAppConfig
from tasks.artifacts import publish_link_artifact
from tasks.task_app import check_task_app, start_task_app


@flow(name="deploy-task-app", flow_run_name="deploy-{environment}")
def deploy_task_app(
    config: TaskAppConfig = TaskAppConfig(),  # noqa: B008
    environment: str = "crafter",
    task_app_url: str | None = None,
) -> str:
    """Serve the environment and prove that it answers. Returns its address.

    Args:
        config: runtime `uvicorn` starts one that stays until `crafter-pipeline down`; `url` checks a running one.
        environment: Name of the environment, e.g. `crafter`.
        task_app_url: Address of a task app that the caller owns; nothing is started then.
    """
    if task_app_url is not None:
        url = task_app_url
    elif config.runtime == "url":
        url = connections.task_app_address(config.url)
    else:
        url = start_task_app(config, environment)
    check_task_app(url)
    publish_link_artifact("task-app", url, f"Task app of {environment}")
    return url
