"""Judge a model on worlds it has not seen."""

from __future__ import annotations

from pathlib import Path

from crafter_pipeline import connections
from crafter_pipeline.config import EvaluateConfig
from crafter_pipeline.episodes import EpisodeSpec, import_folder
from crafter_pipeline.evaluation import Evaluation
from flows.decorator import flow
from tasks.artifacts import publish_evaluation_artifact
from tasks.episodes import play_all
from tasks.scoring import score
from tasks.states import told
from tasks.task_app import check_task_app
from tasks.training import resolve_model


@flow(name="evaluate", flow_run_name="evaluate-{label}")
def evaluate_model(
    config: EvaluateConfig = EvaluateConfig(),  # noqa: B008
    model: str = "latest:rl",
    label: str = "model",
    task_app_url: str | None = None,
    inference_url: str | None = None,
    traces: Path | None = None,
    repetition: str = "",
) -> Evaluation:
    """One episode per held-out seed, scored. Episodes that are stored already are not played again.

    Args:
        config: Worlds, limits and how the model is asked.
        model: As the inference endpoint names it; of the backend's own any name: an id, a job's id, `latest:sft`,
            `latest:rl`, `crafter-expert`, …
        label: What tables and plots call it.
        task_app_url: Address of a running task app, or a comma list of several that share the seeds; unset:
            TASK_APP_URL.
        inference_url: Base URL of the chat model; unset: the backend's.
        traces: Folder to import the traces into; unset: none is imported from a task app of this machine, which writes
            them itself, and those of another go to traces/v3.
        repetition: A word that names this playing of the episodes; unset: what is stored without one counts.
    """
    task_app_url = connections.task_app_address(task_app_url)
    if inference_url is None:
        backend_url = connections.backend_address()
        model, inference_url = resolve_model(model, backend_url), connections.inference_url(backend_url)
    check_task_app(task_app_url)
    imports = import_folder(task_app_url, traces)
    spec = EpisodeSpec.to_evaluate(config, model, task_app_url, inference_url, imports, repetition)
    results, failed = play_all(
        config.seeds.seeds,
        spec,
        concurrency=config.concurrency,
        shard_size=config.shard_size,
        task_runner=config.task_runner,
        dask_address=config.dask_address,
    )
    evaluation = score(label, model, results, config)
    publish_evaluation_artifact(evaluation)
    says = f"{len(results)} of {config.seeds.count} seeds, mean {evaluation.mean_achievements:.2f} achievements"
    return told(evaluation, failed, says)
