"""`status summary`: a training backend at a glance."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from crafter_pipeline.cli import showing
from crafter_pipeline.cli.backends import DEFAULT_BACKEND, BackendChoice
from crafter_pipeline.cli.common import AsJson, many, print_json, say
from crafter_pipeline.cli.models import show_models
from crafter_pipeline.cli.status.jobs import Count, all_events, show_jobs
from crafter_pipeline.errors import BackendError

if TYPE_CHECKING:
    from crafter_pipeline.clients.backend import BackendClient

COUNTED = 100
"""Jobs, models and files that are counted, the newest; some backends list no more at once."""


def summary(*, limit: Count = 5, at: BackendChoice = DEFAULT_BACKEND, as_json: AsJson = False) -> int:
    """A training backend at a glance: counts, what runs, the newest jobs and models, the champion.

    Parameters
    ----------
    limit:
        Jobs and models to show.
    as_json:
        Print it as JSON.
    """
    client = at.client()
    jobs, models, files = client.jobs(limit=COUNTED), client.models(limit=COUNTED), client.files(limit=COUNTED)
    running = [job for job in jobs if _state(job) == "running"]
    told = {
        "backend": at.address(),
        "jobs": dict(Counter(map(_state, jobs))),
        "models": len(models),
        "files": len(files),
        "bytes": sum(int(file.get("bytes") or 0) for file in files),
        "champion": _champion(client),
        "running": [_running(client, job) for job in running],
        "newest_jobs": jobs[:limit],
        "newest_models": models[:limit],
    }
    if as_json:
        print_json(told)
    else:
        _show(told, len(jobs))
    return 0


def _show(told: dict[str, Any], jobs: int) -> None:
    from crafter_pipeline.cli.trace_inputs import size

    states = ", ".join(f"{count} {state}" for state, count in told["jobs"].items())
    kept = f" ({size(told['bytes'])})" if told["bytes"] else ""
    showing.line(f"Training backend at {told['backend']}")
    showing.line(
        f"{_count(jobs, 'job')}{f': {showing.plain(states)}' if states else ''}; {_count(told['models'], 'model')}; "
        f"{_count(told['files'], 'file')}{kept}"
    )
    if told["champion"]:
        showing.line(f"Champion: {showing.plain(told['champion'])}")
    for job in told["running"]:
        progress = f"step {job['step']} of {job['steps']}" if job["steps"] else f"step {job['step']}"
        words = "; ".join(filter(None, [progress if job["step"] else "", showing.plain(job["message"])]))
        showing.line(f"Running for {job['running_for']}: {showing.plain(job['job_id'])}{f', {words}' if words else ''}")
    if told["newest_jobs"]:
        say("\nNewest jobs")
        show_jobs(told["newest_jobs"])
    if told["newest_models"]:
        say("\nNewest models")
        show_models(told["newest_models"])


def _count(count: int, what: str) -> str:
    return f"the newest {many(count, what)}" if count >= COUNTED else many(count, what)


def _running(client: BackendClient, job: dict[str, Any]) -> dict[str, Any]:
    """Where a running job is, as far as it says so."""
    job_id = str(job.get("job_id") or job.get("id"))
    step = steps = None
    message = ""
    for event in all_events(client, job_id):
        if isinstance(event.data.get("step"), int):
            step = event.data["step"]
        if event.type.endswith(".training.started") and event.data.get("steps"):
            steps = int(event.data["steps"])
        message = event.message if event.level != "debug" else message
    began = job.get("started_at") or job.get("created_at")
    return {
        "job_id": job_id,
        "step": step,
        "steps": steps,
        "message": message,
        "running_for": showing.lasted(began, None),
        "started_at": began,
    }


def _champion(client: BackendClient) -> str | None:
    """Its id; None: there is none, or this backend knows no champions."""
    from crafter_pipeline.model_names import CHAMPION

    try:
        return client.alias_holder(CHAMPION)
    except BackendError as e:
        if e.status not in (400, 404, 405):
            raise
        return None


def _state(job: dict[str, Any]) -> str:
    return str(job.get("status") or job.get("state") or "unknown")
