"""Training jobs: uploaded, asked for once, followed."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from crafter_pipeline import connections
from crafter_pipeline.errors import DataError
from crafter_pipeline.progress import report_to
from crafter_pipeline.services import needing
from crafter_pipeline.training import RlJob, SftJob, TrainedModel, curves, follow
from tasks.artifacts import JobBar, artifact_key
from tasks.policies import may_pass


@task(retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def upload_dataset(path: Path, backend_url: str) -> str:
    """Send the dataset; its file id. A retry sends it again: the job's key is the content, not the id."""
    return connections.backend(backend_url).upload(path)


@task(retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def submit_job(job: SftJob | RlJob, backend_url: str) -> str:
    """Ask for a job; its id. A retry finds the job that was made: equal jobs carry equal keys."""
    return job.submit(connections.backend(backend_url))


@task(retries=3, retry_delay_seconds=[1, 5, 15], retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def await_job(job_id: str, job: SftJob | RlJob, backend_url: str) -> TrainedModel:
    """Follow a job until there is a model. A retry goes on listening; a failed job is final."""
    client = connections.backend(backend_url)
    with needing(backend_url), report_to(JobBar(artifact_key("job", job.kind))):
        model_id, warnings = follow(client, job_id)
    return TrainedModel(
        id=model_id,
        job_id=job_id,
        parent=job.parent,
        dataset_sha256=job.dataset_sha256,
        curves=curves(client, job_id),
        warnings=warnings,
    )


@task(retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def resolve_model(model: str, backend_url: str) -> str:
    """The id that `latest:sft` or `latest:rl` means now; other names as they are. A retry asks again."""
    word, _, kind = model.partition(":")
    if word != "latest":
        return model
    newest = next((m for m in connections.backend(backend_url).models() if m.get("kind") == kind), None)
    if newest is None:
        raise DataError(f"The backend at {backend_url} has no {kind} model yet. Train one with submit-{kind}.")
    return str(newest["id"])
