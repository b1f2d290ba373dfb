"""Prefect plugin: `prefect deployment run crafter-pipeline` means `crafter-pipeline/crafter-pipeline`.

Prefect reads a deployment by `<flow>/<deployment>` only; ours have equal names, so the bare name says it all. It is
limited to our names. Where the place to hook in has moved, a line says so and Prefect stays as it is: then the full
name is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prefect.plugins import register_hook

log = logging.getLogger(__name__)

OUR_NAMES = frozenset(
    (
        "crafter-pipeline",
        "deploy-task-app",
        "collect-rollouts",
        "filter-dataset",
        "submit-sft",
        "dagger",
        "evaluate",
        "submit-rl",
        "promote",
        "rollback",
        "nightly-eval",
        "sweep",
        "alert",
    )
)


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Called by Prefect at import, when plugins are enabled."""
    try:
        for owner in _readers():
            read = owner.read_deployment_by_name
            if not getattr(read, "_crafter_pipeline", False):
                owner.read_deployment_by_name = _with_bare_names(read)
    except (ImportError, AttributeError) as e:
        log.warning("This Prefect takes full deployment names only, like crafter-pipeline/crafter-pipeline (%s).", e)


def bare_names_work() -> bool:
    """Whether Prefect, in this process, finds our deployments by their bare names."""
    try:
        return all(hasattr(owner.read_deployment_by_name, "_crafter_pipeline") for owner in _readers())
    except (ImportError, AttributeError):
        return False


def _readers() -> tuple[Any, Any]:
    """The classes that read a deployment by its name. ImportError or AttributeError where Prefect has moved them."""
    from prefect.client.orchestration._deployments import client

    return client.DeploymentClient, client.DeploymentAsyncClient


def _with_bare_names(read: Callable[..., Any]) -> Callable[..., Any]:
    def read_deployment_by_name(self: Any, name: str) -> Any:
        return read(self, f"{name}/{name}" if name in OUR_NAMES else name)

    read_deployment_by_name._crafter_pipeline = True  # type: ignore[attr-defined]
    return read_deployment_by_name
