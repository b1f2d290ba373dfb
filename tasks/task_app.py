"""The task app: started when it is ours, checked always, and tried before a run trains on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from crafter_pipeline import connections
from crafter_pipeline.clients.task_app import NoLiveRoutes
from crafter_pipeline.config import TaskAppConfig
from crafter_pipeline.deployment import deploy_modal, task_app_process
from crafter_pipeline.detached import Detached, detached, start_detached, state_dir
from crafter_pipeline.progress import progress
from crafter_pipeline.validation import Check, ValidationReport, gate
from tasks.policies import may_pass


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def check_task_app(task_app_url: str) -> dict[str, Any]:
    """Ask the task app for its health: proves address and key. Retrying asks again."""
    return connections.task_app(task_app_url).health()


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def try_task_app(
    task_app_url: str, environment: str, step_rewards: Mapping[str, Any] | None = None
) -> ValidationReport:
    """Play the environment for a second or two, step by step. A retry plays again. A task app without the routes for
    it is passed over, with a warning."""
    try:
        return gate(connections.task_app(task_app_url), environment, step_rewards)
    except NoLiveRoutes as e:
        progress().note(f"The environment was not tried before the run: {e}")
        skipped = Check("live environments", "skipped", str(e))
        return ValidationReport.without_play(environment, task_app_url, skipped)


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def start_task_app(config: TaskAppConfig, environment: str) -> str:
    """Start a task app that stays until `crafter-pipeline down`; its address. A retry finds the one that runs."""
    name = f"task-app-{environment}"
    running = next((d for d in detached() if d.name == name and d.alive), None)
    return (running or _start(name, config, environment)).url


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def deploy_to_modal(config: TaskAppConfig, environment: str) -> str:
    """Deploy the task app to Modal, where it stays; its address. A retry updates what is deployed."""
    return str(deploy_modal(environment, name=config.modal_name, secret=config.modal_secret)["url"])


def _start(name: str, config: TaskAppConfig, environment: str) -> Detached:
    traces = config.trace_dir or Path("traces/v3")
    process = task_app_process(config, environment, traces, state_dir() / f"{name}.log", config.port)
    return start_detached(name, **process)
