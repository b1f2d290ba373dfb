"""Fine-tune a model on a dataset."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from crafter_pipeline import connections
from crafter_pipeline.config import SftConfig
from crafter_pipeline.training import SftJob, TrainedModel
from tasks.artifacts import publish_model_artifact
from tasks.dataset import hash_dataset
from tasks.training import await_job, submit_job, upload_dataset


@flow(name="submit-sft", flow_run_name="sft-{config.base_model}")
def submit_sft(
    config: SftConfig = SftConfig(),  # noqa: B008
    dataset_sha256: str | None = None,
    dataset: Path = Path("ft_data/train.jsonl"),
    backend_url: str | None = None,
) -> TrainedModel:
    """Upload the dataset, train on it, wait for the model. A job that was asked for before is found, not repeated.

    Args:
        config: The job.
        dataset_sha256: Of the dataset; unset: computed.
        dataset: JSONL file of chat messages.
        backend_url: Address of the training backend; unset: BACKEND_BASE_URL.
    """
    backend_url = connections.backend_address(backend_url)
    sha256 = dataset_sha256 or hash_dataset(dataset)
    job = SftJob(config=config, file_id=upload_dataset(dataset, backend_url), dataset_sha256=sha256)
    model = await_job(submit_job(job, backend_url), job, backend_url)
    publish_model_artifact(model, "sft")
    return model
