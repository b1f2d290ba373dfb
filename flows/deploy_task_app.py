"""Bring the environment up: start a task app, or check the one that runs; and try whether it is fit to train on."""

from __future__ import annotations

from typing import Any

from crafter_pipeline import connections
from crafter_pipeline.config import TaskAppConfig
from flows.decorator import flow
from tasks.artifacts import publish_task_app_artifact
from tasks.states import told
from tasks.task_app import check_task_app, deploy_to_modal, start_task_app, try_task_app


@flow(name="deploy-task-app", flow_run_name="deploy-{environment}")
def deploy_task_app(
    config: TaskAppConfig = TaskAppConfig(),  # noqa: B008
    environment: str = "crafter",
    step_rewards: dict[str, Any] | None = None,
    task_app_url: str | None = None,
) -> str:
    """Serve the environment, prove that it answers and that it is fit for training. Returns its address.

    Args:
        config: runtime `uvicorn` or `docker` starts one that stays until `crafter-pipeline down`; `modal` deploys one
            that stays on Modal; `url` checks a running one.
        environment: Name of the environment, e.g. `crafter`.
        step_rewards: Reward shaping that training will use: it is tried too.
        task_app_url: Address of a task app that the caller owns; nothing is started then.
    """
    url = task_app_url or address_of(config, environment)
    check_task_app(url)
    report = try_task_app(url, environment, step_rewards) if config.gate else None
    publish_task_app_artifact(environment, url, report)
    if report is not None:
        report.require()
    return told(url, says=f"{environment} at {url}, {'not tried' if report is None else report.verdict}")


def address_of(config: TaskAppConfig, environment: str) -> str:
    """Where the task app answers, after starting it if the config wants that."""
    if config.runtime == "url":
        return connections.task_app_address(config.url)
    if config.runtime == "modal":
        return deploy_to_modal(config, environment)
    return start_task_app(config, environment)
