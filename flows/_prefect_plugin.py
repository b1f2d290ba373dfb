"""Prefect plugin: `prefect deployment run crafter-pipeline` means `crafter-pipeline/crafter-pipeline`.

Prefect reads a deployment by `<flow>/<deployment>` only; ours have equal names, so the bare name says it all. It is
limited to our names, and leaves Prefect as it is where the place to hook in has moved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect.plugins import register_hook

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
        "nightly-eval",
    )
)


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Called by Prefect at import, when plugins are enabled."""
    try:
        from prefect.client.orchestration._deployments import client

        for owner in (client.DeploymentClient, client.DeploymentAsyncClient):
            read = owner.read_deployment_by_name
            if not getattr(read, "_crafter_pipeline", False):
                owner.read_deployment_by_name = _with_bare_names(read)  # type: ignore[method-assign, assignment]
    except (ImportError, AttributeError):  # this Prefect looks different: the full name still works
        return


def _with_bare_names(read: Callable[..., Any]) -> Callable[..., Any]:
    def read_deployment_by_name(self: Any, name: str) -> Any:
        return read(self, f"{name}/{name}" if name in OUR_NAMES else name)

    read_deployment_by_name._crafter_pipeline = True  # type: ignore[attr-defined]
    return read_deployment_by_name
