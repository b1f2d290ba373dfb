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
from crafter_pipeline.deployment import deploy_modal, replica_name, task_app_process
from crafter_pipeline.detached import Detached, detached, start_detached, state_dir
from crafter_pipeline.progress import progress
from crafter_pipeline.services import ServiceGone, needing, refuses
from crafter_pipeline.validation import Check, ValidationReport, gate
from tasks.policies import may_pass


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def check_task_app(task_app_url: str) -> dict[str, Any]:
    """Ask the task app for its health: proves address and key. Retrying asks again.

    Of several, one that is gone is passed over with a note; it is an error when all are. The answer is that of the
    first one that is there.
    """
    answers: list[dict[str, Any]] = []
    gone: list[ServiceGone] = []
    for url in connections.task_app_addresses(task_app_url):
        try:
            with needing(url):
                answers.append(connections.task_app(url).health())
        except ServiceGone as e:
            gone.append(e)
    if not answers:
        raise gone[0] if gone[0].ours else gone[0].__cause__ or gone[0]
    for absent in gone:
        progress().note(f"{absent} The other task apps play its seeds.")
    return answers[0]


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def try_task_app(
    task_app_url: str, environment: str, step_rewards: Mapping[str, Any] | None = None
) -> ValidationReport:
    """Play the environment for a second or two, step by step. A retry plays again. A task app without the routes for
    it is passed over, with a warning. Of several that share the rollouts, the first that is there is tried."""
    addresses = connections.task_app_addresses(task_app_url)
    url = next((url for url in addresses if not refuses(url)), addresses[0])
    try:
        return gate(connections.task_app(url), environment, step_rewards)
    except NoLiveRoutes as e:
        progress().note(f"The environment was not tried before the run: {e}")
        skipped = Check("live environments", "skipped", str(e))
        return ValidationReport.without_play(environment, url, skipped)


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def start_task_app(config: TaskAppConfig, environment: str) -> str:
    """Start a task app that stays until `crafter-pipeline down`, or as many as are to share the rollouts; the address,
    or a comma list. A retry finds those that run."""
    running = {d.name: d for d in detached() if d.alive}
    urls = []
    for number in range(config.replicas):
        name = replica_name(f"task-app-{environment}", number).replace(" ", "-")
        urls.append((running.get(name) or _start(name, config, environment, number)).url)
    return ",".join(urls)


@task(retries=1, retry_delay_seconds=1, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def deploy_to_modal(config: TaskAppConfig, environment: str) -> str:
    """Deploy the task app to Modal, where it stays; its address. A retry updates what is deployed."""
    return str(deploy_modal(environment, name=config.modal_name, secret=config.modal_secret)["url"])


def _start(name: str, config: TaskAppConfig, environment: str, number: int) -> Detached:
    traces = config.trace_dir or Path("traces/v3")
    port = config.port + number if config.port else 0
    process = task_app_process(config, environment, traces, state_dir() / f"{name}.log", port)
    return start_detached(name, **process)
