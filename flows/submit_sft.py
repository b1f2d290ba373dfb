"""Fine-tune a model on a dataset."""

from __future__ import annotations

from pathlib import Path

from crafter_pipeline import connections
from crafter_pipeline.config import SftConfig
from crafter_pipeline.training import SftJob, TrainedModel
from flows.decorator import flow
from tasks.approval import Approve
from tasks.artifacts import publish_model_artifact
from tasks.dataset import hash_dataset
from tasks.states import told
from tasks.task_app import check_task_app
from tasks.training import resolve_model, train, upload_dataset


@flow(name="submit-sft", flow_run_name="sft-{config.base_model}")
def submit_sft(
    config: SftConfig = SftConfig(),  # noqa: B008
    dataset_sha256: str | None = None,
    validation_sha256: str | None = None,
    dataset: Path = Path("ft_data/train.jsonl"),
    validation: Path | None = None,
    task_app_url: str | None = None,
    backend_url: str | None = None,
    tags: dict[str, str] | None = None,
    approve: Approve = "auto",
    patience_seconds: float | None = None,
) -> TrainedModel:
    """Upload the dataset, train on it, wait for the model. A job that was asked for before is found, not repeated.

    Args:
        config: The job.
        dataset_sha256: Of the dataset; unset: computed.
        validation_sha256: Of the validation dataset; unset: computed.
        dataset: JSONL file of chat messages.
        validation: JSONL file whose loss is told; unset: none, or the config's share of the dataset.
        task_app_url: Who plays the config's dev episodes, as the backend sees it; unset: TASK_APP_URL.
        backend_url: Address of the training backend; unset: BACKEND_BASE_URL, or the local one.
        tags: Words to find the job by.
        approve: ask: pause before the job starts, until a person says yes on Prefect's page; auto: start at once.
        patience_seconds: Longest wait for the model; the job then goes on alone, and the same again waits for it.
            Unset: no end.
    """
    backend_url = connections.backend_address(backend_url)
    if config.dev is not None:
        task_app_url = connections.task_app_addresses(connections.task_app_address(task_app_url))[0]
        check_task_app(task_app_url)
    if validation is not None:
        validation_sha256 = validation_sha256 or hash_dataset(validation)
    job = SftJob(
        config=config.model_copy(update={"base_model": resolve_model(config.base_model, backend_url)}),
        file_id=upload_dataset(dataset, backend_url),
        dataset_sha256=dataset_sha256 or hash_dataset(dataset),
        validation_file_id=None if validation is None else upload_dataset(validation, backend_url),
        validation_sha256=validation_sha256,
        task_app_url=None if config.dev is None else task_app_url,
        tags=tags or {},
    )
    model = train(job, backend_url, approve, patience_seconds)
    publish_model_artifact(model, "sft")
    return told(model, says=model.in_words)
