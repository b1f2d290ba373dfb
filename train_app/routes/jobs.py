"""Jobs: created, followed, cancelled."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import zip_longest
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, HTTPException, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from train_app.answers import Key, Limit, Payload, error_body, iso, listed, moment
from train_app.backend import Backend
from train_app.checkpoints import Checkpoint, checkpoints_folder, whole_checkpoints
from train_app.jobs import Event, Job, JobFilter, JobStore, Kind, job_folder
from train_app.signs_of_life import give_sign

STREAM_POLL_SECONDS = 0.5
STREAM_PING_SECONDS = 15.0
PHASES = {
    "job.created": "created",
    "job.queued": "queued",
    "job.requeued": "queued",
    "job.running": "running",
    "job.worker.restarted": "restarted",
    "job.cancel.requested": "cancelling",
    "sft.job.completed": "succeeded",
    "rl.job.completed": "succeeded",
    "sft.job.failed": "failed",
    "rl.job.failed": "failed",
    "sft.job.cancelled": "cancelled",
    "rl.job.cancelled": "cancelled",
}


FAMILIES: tuple[tuple[str, Kind | None], ...] = (
    ("/learning/jobs", None),
    ("/sft/jobs", "sft"),
    ("/rl/jobs", "rl"),
    ("/orchestration/jobs", None),
    ("/jobs", None),
)
"""Paths under which jobs are seen; each lists its kind, and knows every job by its id."""
STATES = {"canceled": "cancelled", "completed": "succeeded", "error": "failed"}
"""Other words for states that clients filter by."""
HOSTED_ONLY = ("GET /rl/services/{trainer_id}",)
"""Routes of the hosted service that have no meaning here."""


def add_job_routes(router: APIRouter, backend: Backend) -> None:
    """Create, follow and cancel jobs. Every family of paths sees every job, with one seq space for events."""
    store = backend.store

    def created(job: Job, new: bool) -> JSONResponse:
        return JSONResponse(backend.job_view(job), 201 if new else 200)

    def create_sft(payload: Payload, key: Key = None) -> JSONResponse:
        is_rl = str(payload.get("job_type") or payload.get("training_type") or "").lower() == "rl"
        return created(*(backend.create_rl(payload, key) if is_rl else backend.create_sft(payload, key)))

    def create_rl(payload: Payload, key: Key = None) -> JSONResponse:
        return created(*backend.create_rl(payload, key))

    def start(job_id: str) -> dict[str, Any]:
        backend.job(job_id)
        job = store.start(job_id)
        backend.supervisor.wake()
        return {**backend.job_view(job), "started": True}

    def get_job(job_id: str) -> dict[str, Any]:
        return backend.job_view(backend.job(job_id))

    def status(job_id: str) -> dict[str, Any]:
        job = backend.job(job_id)
        return {"job_id": job.id, "id": job.id, "status": job.status, "state": job.status, "error": job.error}

    def config(job_id: str) -> dict[str, Any]:
        job = backend.job(job_id)
        return {
            "job_id": job.id,
            "config": job.spec.get("config") or {},
            "spec": job.spec,
            "request": job.request,
            "not_applied": job.spec.get("not_applied") or {},
        }

    def events(
        request: Request,
        job_id: str,
        since_seq: int | None = None,
        limit: Limit = 200,
        after: str | None = None,
        since: str | None = None,
        run: str | None = None,
        last_event_id: Annotated[int | None, Header(alias="Last-Event-ID")] = None,
    ) -> Response:
        """A page of events, oldest first: behind `since_seq` or the event `after`; without either, the newest ones.

        `since`: a time, or an event's id, as one published client sends it. `run`: those of one worker.
        """
        job = backend.job(job_id)
        if since is not None and since.startswith(f"{job_id}:"):
            after, since = after or since, None
        behind = since_seq if after is None else seq_of(job, after)
        if "text/event-stream" in request.headers.get("accept", ""):
            stream = stream_events(store, job_id, last_event_id if last_event_id is not None else behind or 0)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        first, end = (0, None) if run is None else span_of(store, job, run)
        found = store.events(
            job_id,
            max(behind or 0, first),
            limit,
            before_seq=end,
            created_after=moment(since, "since") if since is not None else None,
            newest=behind is None,
        )
        if not found and since_seq is not None and run is None and give_sign(store, job):
            found = store.events(job_id, since_seq, limit)
        views = [event_view(job_id, e) for e in found]
        next_seq = views[-1]["seq"] if views else behind or 0
        return JSONResponse({"job_id": job_id, "events": views, "data": views, "next_seq": next_seq})

    def metrics(
        job_id: str,
        name: str | None = None,
        after_step: int | None = None,
        run_id: str | None = None,
        limit: Limit = 1000,
    ) -> dict[str, Any]:
        attempt = None if run_id is None else attempt_of(backend.job(job_id), run_id)
        backend.job(job_id)
        points = [
            {
                "name": m.name,
                "step": m.step,
                "value": m.value,
                "phase": m.phase,
                "run_id": f"{job_id}-{m.attempt}",
                "created_at": iso(m.created_at),
            }
            for m in store.metrics(job_id, name, after_step, limit, attempt)
        ]
        return {"job_id": job_id, "points": points, "data": points, "metrics": points}

    def timeline(job_id: str, limit: Limit = 200) -> dict[str, Any]:
        backend.job(job_id)
        phases = [
            {"phase": PHASES[e.type], "created_at": iso(e.created_at), "seq": e.seq, "message": e.message}
            for e in store.events(job_id, limit=limit, types=PHASES)
        ]
        return {"job_id": job_id, "events": phases, "timeline": phases}

    def runs(job_id: str) -> dict[str, Any]:
        job = backend.job(job_id)
        views = run_views(job, worker_starts(store, job))
        return {"job_id": job.id, **listed("runs", views)}

    def checkpoints(job_id: str) -> dict[str, Any]:
        job = backend.job(job_id)
        folder = checkpoints_folder(job_folder(backend.data_dir, job.id))
        return {"job_id": job.id, **listed("checkpoints", [checkpoint_view(c) for c in whole_checkpoints(folder)])}

    def cancel(job_id: str) -> dict[str, Any]:
        backend.job(job_id)
        job = store.request_cancel(job_id)
        backend.supervisor.wake()
        return backend.job_view(job)

    def hosted_only(request: Request) -> Response:
        message = f"{request.url.path} is the hosted service's own: here are no trainers to rent."
        raise HTTPException(404, error_body("hosted_only", message))

    for path in ("/learning/jobs", "/sft/jobs"):
        router.add_api_route(path, create_sft, methods=["POST"])
    router.add_api_route("/rl/jobs", create_rl, methods=["POST"])
    getters: dict[str, Callable[..., Any]] = {
        "status": status,
        "config": config,
        "events": events,
        "metrics": metrics,
        "timeline": timeline,
        "runs": runs,
        "checkpoints": checkpoints,
    }
    for jobs, kind in FAMILIES:
        router.add_api_route(jobs, lister(backend, kind), methods=["GET"])
        router.add_api_route(jobs + "/{job_id}", get_job, methods=["GET"])
        for word, get in getters.items():
            router.add_api_route(f"{jobs}/{{job_id}}/{word}", get, methods=["GET"])
        router.add_api_route(jobs + "/{job_id}/start", start, methods=["POST"])
        router.add_api_route(jobs + "/{job_id}/cancel", cancel, methods=["POST"])
    for route in HOSTED_ONLY:
        method, _, path = route.partition(" ")
        router.add_api_route(path, hosted_only, methods=[method])


def lister(backend: Backend, only: Kind | None) -> Callable[..., dict[str, Any]]:
    """The list of a family of paths; `only`: its one kind of job."""

    def list_jobs(
        status: str | None = None,
        type: str | None = None,
        model: str | None = None,
        file_id: str | None = None,
        created_after: str | None = None,
        created_before: str | None = None,
        tag: Annotated[list[str] | None, Query()] = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        kind = "sft" if type and type.startswith("sft") else type
        if only and kind and kind != only:
            return listed("jobs", [])
        asked = JobFilter(
            kind=only or kind,
            status=STATES.get(status, status) if status else None,
            base_model=model,
            file=backend.file(file_id).path if file_id is not None else None,
            created_after=moment(created_after, "created_after") if created_after else None,
            created_before=moment(created_before, "created_before") if created_before else None,
            tags=dict(_tag(word) for word in tag or ()),
            after=backend.job(after).id if after is not None else None,
        )
        return listed("jobs", [backend.job_view(j) for j in backend.store.list(asked, limit)])

    return list_jobs


def _tag(text: str) -> tuple[str, str | None]:
    """`key=value`, or `key` whatever its value."""
    key, equals, value = text.partition("=")
    return key, value if equals else None


def run_views(job: Job, starts: Sequence[Event]) -> list[dict[str, Any]]:
    """One per worker that the job has had, by the events of their starts."""
    views = []
    for start, following in zip_longest(starts, starts[1:]):
        number = start.data.get("attempt")
        ended_at = following.created_at if following else job.finished_at
        views.append(
            {
                "id": f"{job.id}-{number}",
                "run_id": f"{job.id}-{number}",
                "job_id": job.id,
                "run_number": number,
                "engine": "local",
                "status": "failed" if following else job.status,
                "created_at": iso(start.created_at),
                "started_at": iso(start.created_at),
                "ended_at": iso(ended_at),
                "duration_seconds": round((ended_at or time.time()) - start.created_at, 3),
            }
        )
    return views


def attempt_of(job: Job, run_id: str) -> int:
    """The worker of a run's id or number, or 404."""
    owner, _, number = run_id.rpartition("-")
    if owner not in ("", job.id) or not number.isdecimal() or not 1 <= int(number) <= job.attempts:
        message = f"{job.id} has no run {run_id!r}. See GET /api/jobs/{job.id}/runs."
        raise HTTPException(404, error_body("not_found", message))
    return int(number)


def span_of(store: JobStore, job: Job, run_id: str) -> tuple[int, int | None]:
    """Events of a run, the start of its worker among them: (seq before the first, seq behind the last or None)."""
    attempt = attempt_of(job, run_id)
    starts = {int(e.data["attempt"]): e.seq for e in worker_starts(store, job)}
    first = starts.get(attempt, sys.maxsize)  # its worker may be about to start
    return first - 1, min((seq for number, seq in starts.items() if number > attempt), default=None)


def worker_starts(store: JobStore, job: Job) -> Sequence[Event]:
    """The event of each worker's start."""
    return store.events(job.id, limit=1_000_000, types=("job.worker.started",))


def seq_of(job: Job, event_id: str) -> int:
    """The seq in an event's id, `<job>:<seq>`, or 400."""
    owner, _, seq = event_id.rpartition(":")
    if owner not in ("", job.id) or not seq.isdecimal():
        raise HTTPException(
            400, error_body("invalid_request", f"after: {event_id!r} is no id of an event of {job.id}.")
        )
    return int(seq)


def checkpoint_view(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as clients read it."""
    return {
        "id": checkpoint.path.name,
        "object": "checkpoint",
        "step": checkpoint.step,
        "path": str(checkpoint.path),
        "bytes": checkpoint.bytes,
        "created_at": iso(checkpoint.created_at),
    }


async def stream_events(store: JobStore, job_id: str, seq: int) -> AsyncIterator[bytes]:
    """Server-sent events `id: SEQ`, `data: {event}`, until the job has ended and all are told."""
    silent = 0.0
    while True:
        final = (await run_in_threadpool(store.get, job_id)).final
        page = await run_in_threadpool(store.events, job_id, seq, 200)
        for event in page:
            seq = event.seq
            yield b"id: %d\ndata: %s\n\n" % (seq, orjson.dumps(event_view(job_id, event)))
        if page:
            silent = 0.0
            continue
        if final:
            return
        await asyncio.sleep(STREAM_POLL_SECONDS)
        silent += STREAM_POLL_SECONDS
        if silent >= STREAM_PING_SECONDS:
            silent = 0.0
            yield b": still here\n\n"


def event_view(job_id: str, event: Event) -> dict[str, Any]:
    """An event as clients read it."""
    at = iso(event.created_at)
    return {
        "seq": event.seq,
        "id": f"{job_id}:{event.seq}",
        "event_id": f"{job_id}:{event.seq}",
        "job_id": job_id,
        "type": event.type,
        "level": event.level,
        "message": event.message,
        "data": event.data,
        "created_at": at,
        "timestamp": at,
    }
