"""Let the teacher play."""

from __future__ import annotations

from pathlib import Path

from crafter_pipeline import connections
from crafter_pipeline.config import CollectConfig
from crafter_pipeline.episodes import Collected, EpisodeSpec, import_folder
from flows.decorator import flow
from tasks.artifacts import publish_collected_artifact
from tasks.episodes import play_all
from tasks.states import told
from tasks.task_app import check_task_app


@flow(name="collect-rollouts", flow_run_name="collect-{config.seeds.count}-seeds")
def collect_rollouts(
    config: CollectConfig = CollectConfig(),  # noqa: B008
    task_app_url: str | None = None,
    inference_url: str | None = None,
    traces: Path | None = None,
) -> Collected:
    """One episode of the teacher per seed, traced by the task app. Seeds that are stored already are not played again.

    Args:
        config: Who plays which worlds, and how.
        task_app_url: Address of a running task app, or a comma list of several that share the seeds; unset:
            TASK_APP_URL.
        inference_url: Base URL of the chat model; unset: the config's, or the backend's.
        traces: Folder to import the traces into; unset: none is imported from a task app of this machine, which writes
            them itself, and those of another go to traces/v3.
    """
    task_app_url = connections.task_app_address(task_app_url)
    inference_url = inference_url or config.inference_url or connections.inference_url(connections.backend_address())
    check_task_app(task_app_url)
    imports = import_folder(task_app_url, traces)
    spec = EpisodeSpec.to_collect(config, task_app_url, inference_url, imports)
    results, failed = play_all(
        config.seeds.seeds,
        spec,
        concurrency=config.concurrency,
        shard_size=config.shard_size,
        task_runner=config.task_runner,
        dask_address=config.dask_address,
    )
    collected = Collected.of(config.model, results, failed)
    publish_collected_artifact(collected, results)
    says = f"{collected.episodes} of {config.seeds.count} seeds, mean {collected.mean_achievements:.2f} achievements"
    return told(collected, failed, says)
