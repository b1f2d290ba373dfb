"""Training jobs: uploaded, asked for once, followed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency

from crafter_pipeline import connections
from crafter_pipeline.deployment import is_local
from crafter_pipeline.errors import BackendError, DataError, PipelineError
from crafter_pipeline.progress import progress
from crafter_pipeline.services import is_child, needing
from crafter_pipeline.training import RlJob, SftJob, TrainedModel, curves, follow
from tasks.approval import Approve, ask_to_start
from tasks.artifacts import artifact_key, bar
from tasks.policies import may_pass

GPU_LIMIT = "crafter-gpu"
"""Prefect's global concurrency limit of jobs that train on a GPU. `up` makes it as 1, whoever has more raises it; where
it was not made, any number runs."""
POLL_SECONDS, FAR_POLL_SECONDS = 0.5, 5.0
"""Between two looks at a job: of a backend on this machine, and of one elsewhere."""


def train(
    job: SftJob | RlJob, backend_url: str, approve: Approve = "auto", patience_seconds: float | None = None
) -> TrainedModel:
    """The model of a job: approved if that is asked for, on a GPU when its turn has come. A job that was asked for
    before is found. JobNotOver when there is no model after `patience_seconds`; None waits without end."""
    plan = job.plan(connections.backend(backend_url))
    if approve == "ask":
        ask_to_start(job.in_words, plan.in_words if plan is not None else "The backend cannot say what it takes.")
    on_gpu = job.config.device == "cuda" or (plan is not None and plan.device == "cuda")
    with concurrency(GPU_LIMIT, strict=False) if on_gpu else nullcontext():
        return await_job(submit_job(job, backend_url), job, backend_url, patience_seconds)


@task(retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def upload_dataset(path: Path, backend_url: str) -> str:
    """Send the dataset; its file id. A retry sends it again: the job's key is the content, not the id."""
    return connections.backend(backend_url).upload(path)


@task(retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def submit_job(job: SftJob | RlJob, backend_url: str) -> str:
    """Ask for a job; its id. A retry finds the job that was made: equal jobs carry equal keys."""
    return job.submit(connections.backend(backend_url))


@task(retries=3, retry_delay_seconds=[1, 5, 15], retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def await_job(
    job_id: str, job: SftJob | RlJob, backend_url: str, patience_seconds: float | None = None
) -> TrainedModel:
    """Follow a job until there is a model. A retry goes on listening; a failed job is final.

    When the run is cancelled, so is the job, unless its backend ends with the run: then it is resumed by the next one.
    """
    client = connections.backend(backend_url)
    with _cancelled_along(job_id, backend_url), needing(backend_url), bar(artifact_key("job", job.kind), "steps"):
        poll_seconds = POLL_SECONDS if is_local(backend_url) else FAR_POLL_SECONDS
        model_id, warnings = follow(client, job_id, poll_seconds, patience_seconds)
    return TrainedModel(
        id=model_id,
        job_id=job_id,
        parent=job.parent,
        dataset_sha256=job.dataset_sha256,
        curves=curves(client, job_id),
        warnings=warnings,
        compute=client.job(job_id).compute,
    )


@task(retries=2, retry_delay_seconds=[1, 5], retry_condition_fn=may_pass, cache_policy=NO_CACHE)
def resolve_model(model: str, backend_url: str) -> str:
    """The full id that a trained model's name means now, e.g. `latest:sft`; other names as they are. A retry asks
    again."""
    try:
        return connections.backend(backend_url).full_id(model)
    except BackendError as e:
        if e.status != 404:
            raise
        raise DataError(str(e)) from e


@contextmanager
def _cancelled_along(job_id: str, backend_url: str) -> Iterator[None]:
    """Cancel the job when the block is left by a signal. One that merely fails can be followed again."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        if not is_child(backend_url):
            try:
                connections.backend(backend_url).cancel(job_id)
                progress().note(f"Job {job_id} was cancelled with the run; the same again makes a new one.")
            except PipelineError as e:
                progress().note(f"Job {job_id} may go on, it could not be cancelled: {e}")
        raise
