"""A job's body on its way to a backend: datasets uploaded, names resolved, task apps checked, the job made."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from typing import Any

from crafter_pipeline.clients.backend import BackendClient
from crafter_pipeline.clients.task_app import TaskAppClient
from crafter_pipeline.errors import BackendError, ConfigError, TaskAppError
from crafter_pipeline.recipes.base import table_of
from crafter_pipeline.recipes.train import UPLOAD, Kind

READY_STATES = frozenset({"ready", "uploaded", "stored", "complete", "processed"})
LOST_STATES = frozenset({"failed", "error", "deleted"})
READY_SECONDS = 120.0
PUBLISHED_BASES = tuple(f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B", "30B-A3B"))
"""What the hosted backend trains."""


def send_job(
    kind: Kind,
    body: Mapping[str, Any],
    source: str,
    client: BackendClient,
    *,
    task_app: Callable[[str], TaskAppClient],
    upload: Callable[[str], str],
    idempotency_key: str | None = None,
) -> tuple[str, dict[str, Any]]:
    """Make the job and start it: (its id, its body as it was sent).

    Args:
        body: As `recipes.train` writes it, edited or not.
        source: Where it came from, for messages.
        task_app: A client of the task app at an address.
        upload: Sends the dataset at a path; returns its file id.

    Raises:
        ConfigError: it names no dataset.
        BackendError, TaskAppError: one of them cannot be reached or refuses; the message says what to do.
    """
    if kind == "sft" and not body.get("training_file_id"):
        raise ConfigError(f"{source}: training_file_id is missing. Give --dataset FILE.")
    body = with_full_ids(kind, body, client)
    for url in task_app_urls(kind, body):
        check_task_app(url, client, task_app(url))
    if kind == "sft":
        body = with_files(body, upload)
    try:
        job_id = client.submit(kind, body, idempotency_key)
    except BackendError as e:
        raise _with_nearest(e, model_of(kind, body), client) from e
    if kind == "sft":
        client.start(job_id)
    return job_id, dict(body)


def model_of(kind: Kind, body: Mapping[str, Any]) -> str:
    """What training starts from."""
    data = table_of(body, "data")
    return str(body.get("model") if kind == "sft" else data.get("model") or data.get("base_model") or "")


def with_full_ids(kind: Kind, body: Mapping[str, Any], client: BackendClient) -> dict[str, Any]:
    """The body with the full id of a trained model wherever it names one by another name."""
    name = model_of(kind, body)
    full = client.full_id(name)
    if kind == "sft":
        return {**body, "model": full}
    data = dict(table_of(body, "data"))
    data.update({key: full for key in ("model", "base_model") if data.get(key) == name})
    config = dict(table_of(data, "config"))
    for table in ("model", "policy"):
        if isinstance(config.get(table), Mapping):
            config[table] = {k: full if v == name and k != "label" else v for k, v in config[table].items()}
    return {**body, "data": {**data, "config": config} if "config" in data else data}


def task_app_urls(kind: Kind, body: Mapping[str, Any]) -> tuple[str, ...]:
    """Who plays for the job."""
    if kind == "sft":
        url = table_of(body, "metadata").get("task_app_url")
        return (str(url),) if url else ()
    data = table_of(body, "data")
    further = table_of(table_of(data, "config"), "training").get("task_app_urls") or ()
    return tuple(dict.fromkeys(str(url) for url in (data.get("endpoint_base_url"), *further) if url))


def check_task_app(url: str, backend: BackendClient, client: TaskAppClient) -> None:
    """Whether the backend and we reach a task app, and whether it tells its tasks. BackendError or TaskAppError."""
    backend.verify_task_app(url)
    client.health()
    try:
        client.task_info()
    except ValueError as e:
        raise TaskAppError(f"{url}/task_info is no task app's: it answers with something else than JSON.") from e


def with_files(body: Mapping[str, Any], upload: Callable[[str], str]) -> dict[str, Any]:
    """The body with file ids in place of paths."""
    sent: dict[str, str] = {}

    def file_id(named: str) -> str:
        if not named.startswith(UPLOAD):
            return named
        if named not in sent:
            sent[named] = upload(named.removeprefix(UPLOAD))
        return sent[named]

    result = {**body, "training_file_id": file_id(str(body["training_file_id"]))}
    metadata = table_of(body, "metadata")
    effective = table_of(metadata, "effective_config")
    data = table_of(effective, "data")
    if data.get("validation_files"):
        files = [file_id(str(named)) for named in data["validation_files"]]
        effective = {**effective, "data": {**data, "validation_files": files}}
        result["metadata"] = {**metadata, "effective_config": effective}
    return result


def wait_for_file(client: BackendClient, file_id: str, *, seconds: float = READY_SECONDS, poll: float = 1.0) -> None:
    """Return when an uploaded file may be trained on. BackendError when it is not there in time, or was lost."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            facts = client.file(file_id)
        except BackendError as e:
            if e.status != 404:
                raise
            state = "not there yet"
        else:
            state = str(facts.get("status") or facts.get("state") or facts.get("storage_state") or "ready").lower()
        if state in READY_STATES:
            return
        if state in LOST_STATES:
            raise BackendError(f"The backend could not take the file {file_id}: it is {state}. Send it again.")
        if time.monotonic() >= deadline:
            raise BackendError(f"The file {file_id} is {state} after {seconds:.0f} s. Try again later.")
        time.sleep(poll)


def _with_nearest(refusal: BackendError, model: str, client: BackendClient) -> BackendError:
    """A refusal of the model, with the nearest names that the backend may know."""
    if refusal.status not in (400, 404, 422) or model not in str(refusal) or "model" not in str(refusal).lower():
        return refusal
    try:
        trained = [str(found.get("id")) for found in client.models()]
    except BackendError:
        trained = []
    known = {name.lower(): name for name in (*PUBLISHED_BASES, *trained) if name != model}
    close = difflib.get_close_matches(model.lower(), known, n=1, cutoff=0.5)
    if not close:
        return refusal
    told = BackendError(f"{refusal} Did you mean {known[close[0]]!r}?")
    told.status = refusal.status
    return told
