"""`status runs …`: the attempts at a job, and what each of them said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from crafter_pipeline.cli import showing
from crafter_pipeline.cli.backends import DEFAULT_BACKEND, BackendChoice
from crafter_pipeline.cli.common import AsJson, note, print_json
from crafter_pipeline.cli.status.jobs import JobId, all_events, event_json, history
from crafter_pipeline.errors import DataError

if TYPE_CHECKING:
    from crafter_pipeline.clients.backend import JobEvent

runs = App(name="runs", help="The attempts at a job: each worker that it has had.", help_format="plaintext")
runs.default(history)
runs.command(history, name="list")


@runs.command
def logs(
    job: JobId,
    /,
    *,
    run: Annotated[str, Parameter(name="--run")],
    since: str | None = None,
    at: BackendChoice = DEFAULT_BACKEND,
    as_json: AsJson = False,
) -> int:
    """What one attempt at a job said, oldest first.

    Parameters
    ----------
    job:
        The job's id, or any form of the id of a model that it made.
    run:
        The attempt's number, or its id.
    since:
        Only what is younger: 2026-01-31T12:00, or 5m for five minutes ago.
    as_json:
        Print it as JSON.
    """
    client = at.client()
    job_id = client.job_named(job)
    after = None if since is None else showing.moment("--since", since).timestamp()
    known = showing.of_job(client, job_id, "runs", lambda: client.runs(job_id))
    names = [str(entry.get("run_number") or entry.get("id")) for entry in known]
    ids = [str(entry.get("id") or "") for entry in known]
    if run not in names and run not in ids:
        had = f"it has had {', '.join(names)}" if names else "it has had none yet"
        raise DataError(f"Job {job_id} has no run {run}; {had}.")
    index = names.index(run) if run in names else ids.index(run)
    began = _began(known[index])
    ended = _began(known[index + 1]) if index + 1 < len(known) else None
    events = [
        event
        for event in all_events(client, job_id)
        if _within(event, began, ended) and (after is None or (showing.unix(event.created_at) or 0.0) > after)
    ]
    if as_json:
        print_json([event_json(event) for event in events])
        return 0
    for event in events:
        if event.level != "debug":
            showing.line(showing.event_line(event))
    if not events:
        note(f"Run {run} of job {job_id} has said nothing{' since then' if since else ''}.")
    return 0


def _began(run: dict[str, object]) -> float | None:
    return showing.unix(run.get("started_at") or run.get("created_at"))


def _within(event: JobEvent, began: float | None, ended: float | None) -> bool:
    at = showing.unix(event.created_at)
    return at is not None and (began is None or at >= began) and (ended is None or at < ended)
