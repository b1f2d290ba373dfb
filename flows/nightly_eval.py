"""The newest model, every night, against a task app and a backend that run."""

from __future__ import annotations

from prefect import flow

from crafter_pipeline import connections
from crafter_pipeline.config import EvaluateConfig
from crafter_pipeline.evaluation import Evaluation
from flows.evaluate_model import evaluate_model
from tasks.training import resolve_model


@flow(name="nightly-eval", flow_run_name="nightly-{model}")
def nightly_eval(
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008
    model: str = "latest:rl",
    task_app_url: str | None = None,
    backend_url: str | None = None,
) -> Evaluation:
    """Evaluate a model on held-out seeds.

    Args:
        config: Worlds, limits and how the model is asked.
        model: An id, `latest:sft` or `latest:rl`; resolved first, so that a newer model is played anew.
        task_app_url: Address of a running task app; unset: TASK_APP_URL.
        backend_url: Address of the training backend; unset: BACKEND_BASE_URL.
    """
    backend_url = connections.backend_address(backend_url)
    found = resolve_model(model, backend_url)
    return evaluate_model(config, found, "nightly", task_app_url, connections.inference_url(backend_url))
