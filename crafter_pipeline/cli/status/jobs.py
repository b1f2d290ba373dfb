"""`status jobs …`: training jobs, their numbers, their words, their end."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from crafter_pipeline.cli import showing
from crafter_pipeline.cli.backends import DEFAULT_BACKEND, BackendChoice, Limit
from crafter_pipeline.cli.common import AsJson, console, note, print_json, say
from crafter_pipeline.errors import ConfigError, DataError, JobFailed

if TYPE_CHECKING:
    from crafter_pipeline.clients.backend import BackendClient, JobEvent, JobMetric

FOLLOW_SECONDS = 1.0
PAGE = 1000
Count = Annotated[int, Parameter(validator=Number(gte=1))]
JobId = Annotated[str, Parameter(name="JOB")]
Follow = Annotated[bool, Parameter(negative="--no-follow")]

jobs = App(name="jobs", help="Training jobs of a backend, newest first.", help_format="plaintext")


@jobs.default
@jobs.command(name="list")
def list_(
    *,
    status: str | None = None,
    type_: Annotated[str | None, Parameter(name="--type")] = None,
    created_after: str | None = None,
    tag: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    limit: Limit = 20,
    at: BackendChoice = DEFAULT_BACKEND,
    as_json: AsJson = False,
) -> int:
    """Training jobs, newest first.

    Parameters
    ----------
    status:
        Only those that are queued, running, succeeded, failed or cancelled.
    type_:
        Only those of sft, or of rl.
    created_after:
        Only younger ones: 2026-01-31, or 24h for a day ago.
    tag:
        Only those with this tag, key=value; may be repeated.
    limit:
        At most this many.
    as_json:
        Print them as JSON.
    """
    tags = dict(_tag(word) for word in tag)
    after = None if created_after is None else _iso("--created-after", created_after)
    found = at.client().jobs(status=status, kind=type_, created_after=after, tags=tags, limit=limit)
    if as_json:
        print_json(found)
    elif not found:
        filtered = status or type_ or created_after or tag
        say("No such jobs." if filtered else "No jobs yet. `crafter-pipeline train` makes one.")
    else:
        show_jobs(found)
    return 0


@jobs.command
def get(job: JobId, /, *, at: BackendChoice = DEFAULT_BACKEND, as_json: AsJson = False) -> int:
    """One job: what it is of, where it is, what it made.

    Parameters
    ----------
    job:
        Its id, or any form of the id of a model that it made.
    as_json:
        Print all that the backend tells, as JSON.
    """
    client = at.client()
    found = showing.known_job(client, client.job_named(job))
    if as_json:
        print_json(found)
        return 0
    began, ended = found.get("started_at"), found.get("finished_at")
    showing.facts(
        [
            ("job", _id(found)),
            ("name", found.get("name")),
            ("type", found.get("training_type") or found.get("type")),
            ("status", _state(found)),
            ("error", found.get("error")),
            ("model", found.get("model") or found.get("base_model")),
            ("made", found.get("fine_tuned_model") or found.get("model_id")),
            ("stand-in", found.get("stand_in")),
            ("dataset", found.get("dataset_sha256") or found.get("training_file_id")),
            ("created", _when(found.get("created_at"))),
            ("started", _when(began)),
            ("finished", _when(ended)),
            ("took", showing.lasted(began, ended) if began and ended else None),
            ("used up", _used(found.get("compute"))),
            ("attempts", found.get("attempts") if (found.get("attempts") or 0) > 1 else None),
            ("tags", _words(found.get("tags"))),
            ("not applied", _words(found.get("not_applied"))),
        ]
    )
    return 0


@jobs.command
def status(job: JobId, /, *, at: BackendChoice = DEFAULT_BACKEND, as_json: AsJson = False) -> int:
    """The state of a job, in one word.

    Parameters
    ----------
    job:
        Its id, or any form of the id of a model that it made.
    as_json:
        Print it with the job's id and error, as JSON.
    """
    client = at.client()
    found = showing.known_job(client, client.job_named(job))
    if as_json:
        print_json({"job_id": _id(found), "status": _state(found), "error": found.get("error")})
    else:
        showing.line(showing.plain(_state(found)))
    return 0


@jobs.command
def config(job: JobId, /, *, at: BackendChoice = DEFAULT_BACKEND, as_json: AsJson = False) -> int:
    """What a job was asked for, as JSON.

    Parameters
    ----------
    job:
        Its id, or any form of the id of a model that it made.
    as_json:
        With what the backend says of it besides.
    """
    client = at.client()
    job_id = client.job_named(job)
    found = showing.of_job(client, job_id, "configs", lambda: client.job_config(job_id))
    print_json(found if as_json else found.get("config", found))
    return 0


@jobs.command
def metrics(
    job: JobId,
    /,
    *,
    name: str | None = None,
    at: BackendChoice = DEFAULT_BACKEND,
    as_json: AsJson = False,
) -> int:
    """The numbers of a job's training steps: a line for each metric, or each step of one.

    Parameters
    ----------
    job:
        Its id, or any form of the id of a model that it made.
    name:
        Only this metric, step by step.
    as_json:
        Print the points as JSON.
    """
    client = at.client()
    job_id = client.job_named(job)
    points = showing.of_job(client, job_id, "metrics", lambda: list(_all_points(client, job_id)))
    known = list(dict.fromkeys(point.name for point in points))
    if name is not None:
        points = [point for point in points if point.name == name]
        if known and not points:
            from crafter_pipeline.errors import suggest

            raise DataError(f"Job {job_id} has no metric {name!r}; {suggest(name, known)}.")
    if as_json:
        print_json([{"name": p.name, "step": p.step, "value": p.value} for p in points])
    elif not points:
        say(f"Job {job_id} has told no numbers yet.")
    elif name is not None:
        showing.table(["step", "value"], [(p.step, f"{p.value:.6g}") for p in points])
        _draw([p.value for p in points])
    else:
        _show_metrics(points)
    return 0


@jobs.command
def timeline(job: JobId, /, *, at: BackendChoice = DEFAULT_BACKEND, as_json: AsJson = False) -> int:
    """The phases of a job, oldest first.

    Parameters
    ----------
    job:
        Its id, or any form of the id of a model that it made.
    as_json:
        Print them as JSON.
    """
    client = at.client()
    job_id = client.job_named(job)
    phases = showing.of_job(client, job_id, "timelines", lambda: client.timeline(job_id))
    if as_json:
        print_json(phases)
    elif not phases:
        say(f"Job {job_id} has no phases yet.")
    else:
        rows = [
            (p.get("phase"), showing.clock(p.get("created_at")), showing.ago(p.get("created_at")), p.get("message"))
            for p in phases
        ]
        showing.table(["phase", "at", "", "message"], rows)
    return 0


@jobs.command
def history(job: JobId, /, *, at: BackendChoice = DEFAULT_BACKEND, as_json: AsJson = False) -> int:
    """The attempts at a job: each worker that it has had.

    Parameters
    ----------
    job:
        Its id, or any form of the id of a model that it made.
    as_json:
        Print them as JSON.
    """
    client = at.client()
    job_id = client.job_named(job)
    runs = showing.of_job(client, job_id, "runs", lambda: client.runs(job_id))
    if as_json:
        print_json(runs)
    elif not runs:
        say(f"Job {job_id} has had no worker yet.")
    else:
        show_runs(runs)
    return 0


@jobs.command
def logs(
    job: JobId,
    /,
    *,
    since: str | None = None,
    tail: Count | None = None,
    follow: Follow = False,
    at: BackendChoice = DEFAULT_BACKEND,
    as_json: AsJson = False,
) -> int:
    """What a job says, oldest first. Followed, it ends with the job: exit code 1 unless that succeeded.

    Parameters
    ----------
    job:
        Its id, or any form of the id of a model that it made.
    since:
        Only what is younger: 2026-01-31T12:00, or 5m for five minutes ago.
    tail:
        Only the last so many.
    follow:
        Go on until the job is over.
    as_json:
        Print it as JSON, with what is of level debug; followed: a line each.
    """
    client = at.client()
    job_id = client.job_named(job)
    after = None if since is None else showing.moment("--since", since).timestamp()
    events = showing.of_job(client, job_id, "logs", lambda: list(all_events(client, job_id)))
    seq = max((event.seq for event in events), default=0)
    if after is not None:
        events = [event for event in events if (showing.unix(event.created_at) or 0.0) > after]
    events = _shown(events, as_json=as_json)
    if tail is not None:
        events = events[-tail:]
    if as_json and not follow:
        print_json([event_json(event) for event in events])
        return 0
    _tell(events, as_json=as_json)
    if follow:
        return _follow(client, job_id, seq, as_json=as_json)
    if not events:
        note(f"Job {job_id} has said nothing{' since then' if since else ''}.")
    return 0


@jobs.command
def cancel(job: JobId, /, *, at: BackendChoice = DEFAULT_BACKEND, as_json: AsJson = False) -> int:
    """Ask for a job's end. One that is over stays as it is.

    Parameters
    ----------
    job:
        Its id, or any form of the id of a model that it made.
    as_json:
        Print what it is then, as JSON.
    """
    client = at.client()
    job_id = _id(showing.known_job(client, client.job_named(job)))
    client.cancel(job_id)
    found = client.job_facts(job_id)
    if as_json:
        print_json(found)
    else:
        showing.line(f"Job {job_id}: {'cancelling' if _cancelling(found) else showing.plain(_state(found))}")
    return 0


# --------------------------------------------------------------------------- what others show too


def show_jobs(found: Sequence[dict[str, Any]]) -> None:
    """A table of jobs of the wire."""
    rows = [
        (
            _id(job),
            job.get("training_type") or job.get("type"),
            "cancelling" if _cancelling(job) else _state(job),
            job.get("model") or job.get("base_model"),
            showing.ago(job.get("created_at")),
            job.get("fine_tuned_model") or job.get("model_id") or job.get("error"),
        )
        for job in found
    ]
    showing.table(["job", "type", "status", "model", "created", "made"], rows)


def show_runs(runs: Sequence[dict[str, Any]]) -> None:
    """A table of attempts of the wire."""
    rows = []
    for run in runs:
        began = run.get("started_at") or run.get("created_at")
        seconds = run.get("duration_seconds")
        took = f"{seconds:.0f} s" if isinstance(seconds, int | float) else showing.lasted(began, run.get("ended_at"))
        number = run.get("run_number") or run.get("id")
        rows.append((number, run.get("status"), run.get("engine"), showing.ago(began) if began else "", took))
    showing.table(["run", "status", "engine", "started", "took"], rows)


def all_events(client: BackendClient, job_id: str, since_seq: int = 0) -> Iterator[JobEvent]:
    """Every event after `since_seq`, oldest first, page by page."""
    while page := client.events(job_id, since_seq, PAGE):
        yield from page
        newest = max(event.seq for event in page)
        if newest <= since_seq:  # a backend that does not count them gives the same again
            return
        since_seq = newest


def event_json(event: JobEvent) -> dict[str, Any]:
    """An event, as `--json` shows it."""
    return {
        "seq": event.seq,
        "type": event.type,
        "level": event.level,
        "message": event.message,
        "data": event.data,
        "created_at": event.created_at,
    }


# --------------------------------------------------------------------------- inside


def _used(told: object) -> str | None:
    """What a job has used up, in words; None: its backend does not tell."""
    from crafter_pipeline.contracts import Compute
    from crafter_pipeline.report import text

    used = Compute.of(told)
    return None if used is None else text.compute(used)


def _tag(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not key or not equals:
        raise ConfigError(f"--tag {word!r} is not of the form key=value.")
    return key, value


def _iso(option: str, text: str) -> str:
    return showing.moment(option, text).astimezone(UTC).isoformat()


def _id(job: dict[str, Any]) -> str:
    return str(job.get("job_id") or job.get("id") or "")


def _state(job: dict[str, Any]) -> str:
    return str(job.get("status") or job.get("state") or "unknown")


def _cancelling(job: dict[str, Any]) -> bool:
    return bool(job.get("cancel_requested")) and _state(job) in ("queued", "running")


def _when(moment: Any) -> str | None:
    at = showing.unix(moment)
    if at is None:
        return None
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S} ({showing.ago(moment)})"


def _words(table: Any) -> str | None:
    return ", ".join(f"{key}={value}" for key, value in table.items()) if isinstance(table, dict) else None


def _all_points(client: BackendClient, job_id: str) -> Iterator[JobMetric]:
    after = 0
    while page := client.metrics(job_id, after_step=after or None, limit=PAGE):
        yield from page
        newest = max(point.step for point in page)
        if newest <= after or len(page) < PAGE:
            return
        after = newest


def _show_metrics(points: Sequence[JobMetric]) -> None:
    by_name: dict[str, list[float]] = {}
    last: dict[str, int] = {}
    for point in points:
        by_name.setdefault(point.name, []).append(point.value)
        last[point.name] = point.step
    terminal = console().is_terminal
    rows = [
        (name, len(values), last[name], f"{values[0]:.4g}", f"{values[-1]:.4g}", _curve(values) if terminal else "")
        for name, values in sorted(by_name.items())
    ]
    showing.table(["metric", "points", "last step", "first", "last", ""], rows)


def _curve(values: Sequence[float]) -> str:
    return showing.curve(values) if len(values) > 2 else ""


def _draw(values: Sequence[float]) -> None:
    if console().is_terminal and len(values) > 2:
        showing.line(f"{min(values):.4g} {showing.curve(values, 60)} {max(values):.4g}")


def _shown(events: Sequence[JobEvent], *, as_json: bool) -> list[JobEvent]:
    """What a person reads: without signs of life and the like. Programs get all."""
    return [event for event in events if as_json or event.level != "debug"]


def _tell(events: Sequence[JobEvent], *, as_json: bool) -> None:
    for event in events:
        if as_json:
            print(json.dumps(event_json(event)), flush=True)
        else:
            showing.line(showing.event_line(event))


def _follow(client: BackendClient, job_id: str, seq: int, *, as_json: bool) -> int:
    """Tell what comes after `seq` until the job is over. JobFailed when it did not succeed."""
    for turn in itertools.count():
        if turn:
            time.sleep(FOLLOW_SECONDS)
        job = client.job(job_id)  # before its events, so that the last of them are told
        events = list(all_events(client, job_id, seq))
        _tell(_shown(events, as_json=as_json), as_json=as_json)
        seq = max((event.seq for event in events), default=seq)
        if job.final:
            if job.succeeded:
                return 0
            raise JobFailed(f"Job {job_id} {job.status}: {showing.plain(job.error or 'no reason given')}")
    raise AssertionError
