"""The task app: started when it is ours, checked always."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from crafter_pipeline import connections
from crafter_pipeline.config import TaskAppConfig
from crafter_pipeline.detached import Detached, detached, start_detached
from crafter_pipeline.services import task_app_arguments
from tasks.policies import may_pass


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def check_task_app(task_app_url: str) -> dict[str, Any]:
    """Ask the task app for its health: proves address and key. Retrying asks again."""
    return connections.task_app(task_app_url).health()


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def start_task_app(config: TaskAppConfig, environment: str) -> str:
    """Start a task app that stays until `crafter-pipeline down`; its address. A retry finds the one that runs."""
    name = f"task-app-{environment}"
    running = next((d for d in detached() if d.name == name and d.alive), None)
    return (running or _start(name, config, environment)).url


def _start(name: str, config: TaskAppConfig, environment: str) -> Detached:
    arguments = task_app_arguments(environment, config.trace_dir or Path("traces/v3"))
    return start_detached(name, "task_app", arguments, host="127.0.0.1", port=config.port)
