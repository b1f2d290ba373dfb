"""The training service: files, jobs, models, events, inference. No torch here.

    GET  /livez                                     open: the process answers
    GET  /health                                    open: {"healthy", "status", "auth"}

Inference (OpenAI's shape), under /v1 and /api/inference/v1:

    POST /v1/chat/completions                       built-ins answer here, models with weights in the inference child
    GET  /v1/models

Everything below under both /api and /api/v1; JOBS is learning/jobs, sft/jobs, rl/jobs or orchestration/jobs:

    POST /files, /learning/files                    multipart purpose, file: a JSONL dataset, checked line by line
    GET  /files, /files/{id}                        likewise below /learning
    POST /learning/jobs, /sft/jobs                  a fine-tuning job (Idempotency-Key); waits for start
    POST /learning/jobs/{id}/start
    POST /rl/jobs                                   a reinforcement-learning job (Idempotency-Key); starts at once
    POST /rl/verify_task_app                        can the task app be reached with our key?
    GET  /JOBS, /JOBS/{id}                          list (?status&type&limit), one job
    GET  /JOBS/{id}/status, /config, /runs, /timeline
    GET  /JOBS/{id}/events?since_seq&limit          JSON, or a stream with Accept: text/event-stream
    GET  /JOBS/{id}/metrics?name&after_step&limit
    POST /JOBS/{id}/cancel
    GET  /jobs/{id}/runs
    POST /judge/v1/score                            a trace by a rubric: see train_app.judge
    GET  /models, /learning/models[?type], /learning/models/rl, /learning/models/{id}
    GET  /health                                    open

Keys: Authorization: Bearer, X-API-Key or X-API-Keys; wrong or missing: 401. No key configured: open.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import httpx
import orjson
from fastapi import APIRouter, Body, Depends, FastAPI, File, Form, Header, HTTPException, Query, UploadFile
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from crafter_pipeline.api_keys import ApiKeys
from crafter_pipeline.errors import ConfigError, PipelineError, ServiceError
from train_app.builtin import NoObservation, builtin_models, completion
from train_app.inference_proxy import MODULE, InferenceProxy
from train_app.jobs import JOB_ID, PREFIXES, Event, Job, JobStore, Model, new_file_id
from train_app.jobs import File as StoredFile
from train_app.judge import JudgeDesk, add_judge_routes
from train_app.specs import RlSpec, SftSpec, read_rl, read_sft
from train_app.supervisor import POLL_SECONDS, Supervisor, WorkerCommand

TINY = "crafter-tiny"
ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
STREAM_POLL_SECONDS = 0.5
STREAM_PING_SECONDS = 15.0
VERIFY_SECONDS = 10.0
MODEL_NAME = re.compile(rf"(?:{'|'.join(PREFIXES)}):.*|latest:.*|{JOB_ID.pattern}")
"""Names that can only mean a trained model."""
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

Payload = Annotated[dict[str, Any], Body()]
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=200)]
Limit = Annotated[int, Query(ge=1, le=10_000)]

log = logging.getLogger(__name__)


def make_app(
    data_dir: Path,
    *,
    api_key: str | None,
    aliases: Mapping[str, str] | None = None,
    public_url: str | None = None,
    task_app_key: str | None = None,
    worker_command: WorkerCommand | None = None,
    inference_module: str = MODULE,
    poll_seconds: float = POLL_SECONDS,
    task_app_transport: httpx.AsyncBaseTransport | None = None,
    model_transport: httpx.AsyncBaseTransport | None = None,
) -> FastAPI:
    """The service as an ASGI app. Jobs run, and the inference child may start, between its startup and its shutdown.

    Args:
        data_dir: Files, job table, jobs and models.
        api_key: What clients must send; None: open.
        aliases: BASE -> STAND-IN for weights that are not at hand.
        public_url: Our address as others see it, for the `inference_url` of models.
        task_app_key: Sent to task apps that a client asks us to verify.
        worker_command: For tests: what to run for a job.
        inference_module: For tests: what to run as inference child.
        poll_seconds: The supervisor's pace.
        task_app_transport: For tests: how task apps are reached.
        model_transport: For tests: how chat models elsewhere are reached.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    store = JobStore.in_folder(data_dir)
    supervisor = Supervisor(store, data_dir, command=worker_command, poll_seconds=poll_seconds)
    proxy = InferenceProxy(data_dir, inference_module)
    backend = Backend(store, data_dir, dict(aliases or {}), public_url, supervisor)
    guard = Guard(api_key)
    inference = Inference(backend, proxy, guard)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(supervisor.start)
        try:
            yield
        finally:
            await desk.close()
            await proxy.close()
            await run_in_threadpool(supervisor.stop)
            store.close()

    hot: list[BaseRoute] = [
        Route(f"{prefix}{path}", handler, methods=[method])
        for prefix in ("/v1", "/api/inference/v1", "/api/v1/inference/v1")
        for path, handler, method in (
            ("/chat/completions", inference.chat, "POST"),
            ("/models", inference.models, "GET"),
        )
    ]
    app = FastAPI(title="crafter-pipeline training service", lifespan=lifespan, routes=hot)
    desk = JudgeDesk(
        app,
        api_key=api_key,
        record=data_dir / "judge.sqlite",
        task_app_key=task_app_key,
        task_app_transport=task_app_transport,
        model_transport=model_transport,
    )
    app.state.store, app.state.supervisor, app.state.proxy = store, supervisor, proxy

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    health = {"healthy": True, "status": "ok", "auth": {"required": api_key is not None}}
    for path in ("/health", "/api/health", "/api/v1/health"):
        app.add_api_route(path, lambda: health, methods=["GET"])

    router = APIRouter(dependencies=[Depends(guard.require)])
    add_file_routes(router, backend)
    add_job_routes(router, backend)
    add_model_routes(router, backend)
    add_task_app_routes(router, task_app_key, task_app_transport)
    add_judge_routes(router, desk)
    for prefix in ("/api/v1", "/api"):
        app.include_router(router, prefix=prefix)

    @app.exception_handler(RequestValidationError)
    async def wrong_field(_: Request, e: RequestValidationError) -> JSONResponse:
        # FastAPI's own answer repeats the input, which may hold what JSON cannot: NaN, or half a surrogate pair.
        return JSONResponse(
            {"detail": [{key: error[key] for key in ("type", "loc", "msg")} for error in e.errors()]}, 422
        )

    @app.exception_handler(PipelineError)
    async def operator_error(_: Request, e: PipelineError) -> JSONResponse:
        status = 400 if isinstance(e, ConfigError) else 502 if isinstance(e, ServiceError) else 500
        return JSONResponse({"detail": _error("invalid_request" if status == 400 else "unavailable", str(e))}, status)

    return app


# --------------------------------------------------------------------------- keys


class Guard:
    """Refuses requests without the key."""

    def __init__(self, api_key: str | None) -> None:
        self._keys = ApiKeys((api_key,) if api_key else ())

    def lets_in(self, request: Request) -> bool:
        """Whether the request carries the key in one of the known headers."""
        return self._keys.let_in(request.headers)

    def require(self, request: Request) -> None:
        """A dependency: 401 without the key."""
        if not self.lets_in(request):
            detail = _error("unauthorised", "API key missing or invalid")
            raise HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})


# --------------------------------------------------------------------------- what routes share


class Backend:
    """The table, and what requests mean in its terms."""

    def __init__(
        self, store: JobStore, data_dir: Path, aliases: dict[str, str], public_url: str | None, supervisor: Supervisor
    ) -> None:
        self.store, self.data_dir, self.aliases, self.supervisor = store, data_dir, aliases, supervisor
        self.public_url = public_url.rstrip("/") if public_url else None

    def job(self, job_id: str) -> Job:
        """The job, or 404."""
        try:
            return self.store.get(job_id)
        except KeyError:
            raise HTTPException(404, _error("not_found", f"There is no job {job_id}.")) from None

    def start_model(self, name: str) -> str:
        """What training starts from, pinned: a trained model's full id, or the base as named. 400 without weights."""
        model = self.store.resolve_model(name)
        if model is not None:
            return model.id
        if MODEL_NAME.fullmatch(name):
            raise ConfigError(f"There is no trained model {name!r}. See GET /api/learning/models.")
        if name in builtin_models():
            raise ConfigError(f"{name} is a script without weights; start from {TINY}, a folder or a hub name.")
        return name

    def create(self, job: Job, not_applied: Mapping[str, str], source: str) -> None:
        """The first events of a new job: stand-ins and what has no effect here."""
        stand_in = self.aliases.get(self.store.base_of(source))
        if stand_in is not None:
            message = f"{stand_in} stands in for {self.store.base_of(source)} (--alias)"
            self.store.add_event(job.id, "model.stand_in", message, {"stand_in": stand_in}, "warning")
        for key, reason in not_applied.items():
            data = {"key": key, "reason": reason}
            self.store.add_event(job.id, "job.not_applied", f"{key} not applied: {reason}", data, "warning")

    def create_sft(self, payload: dict[str, Any], key: str | None) -> Job:
        """A fine-tuning job from the wire's payload."""
        file_id = payload.get("training_file_id") or payload.get("training_file")
        if not isinstance(payload.get("model"), str) or not payload["model"]:
            raise ConfigError("model: name the model to fine-tune.")
        if not isinstance(file_id, str):
            raise ConfigError("training_file_id: upload the dataset first (POST /api/files) and name its id here.")
        try:
            file = self.store.get_file(file_id)
        except KeyError:
            raise ConfigError(f"training_file_id: there is no file {file_id}.") from None
        source = self.start_model(payload["model"])
        config, not_applied = read_sft({**payload, "model": source})
        spec = SftSpec(
            config=config,
            training_file=file.path,
            training_file_sha256=file.sha256,
            aliases=self.aliases,
            not_applied=not_applied,
        )
        return self._add("sft", source, spec, payload, key, ready=False)

    def create_rl(self, payload: dict[str, Any], key: str | None) -> Job:
        """A reinforcement-learning job from the wire's payload."""
        values = read_rl(payload)
        source = values["source"] = self.start_model(values["source"])
        return self._add("rl", source, RlSpec(**values, aliases=self.aliases), payload, key, ready=True)

    def _add(
        self, kind: Any, source: str, spec: SftSpec | RlSpec, payload: dict[str, Any], key: str | None, *, ready: bool
    ) -> Job:
        with self.store.transaction():
            before = self.store.job_of_key(kind, key)
            if before is not None:
                return before
            job = self.store.create_job(
                kind,
                self.store.base_of(source),
                spec.model_dump(mode="json"),
                _name_of(payload),
                request=payload,
                ready=ready,
                idempotency_key=key,
            )
            self.create(job, spec.not_applied, source)
        self.supervisor.wake()
        return job

    def job_view(self, job: Job) -> dict[str, Any]:
        """A job as clients read it."""
        spec = job.spec
        return {
            "job_id": job.id,
            "id": job.id,
            "object": "job",
            "name": job.name,
            "type": job.kind,
            "job_type": job.kind,
            "training_type": "sft_offline" if job.kind == "sft" else "rl",
            "status": job.status,
            "state": job.status,
            "base_model": job.base_model,
            "model": spec.get("source") or spec.get("config", {}).get("base_model") or job.base_model,
            "model_id": job.model_id,
            "fine_tuned_model": job.model_id,
            "error": job.error,
            "attempts": job.attempts,
            "cancel_requested": job.cancel_requested,
            "training_file_id": job.request.get("training_file_id"),
            "dataset_sha256": spec.get("training_file_sha256"),
            "linked_job_id": None,
            "not_applied": spec.get("not_applied") or {},
            "stand_in": (spec.get("aliases") or {}).get(job.base_model),
            "config": spec.get("config") or {},
            "metadata": job.request.get("metadata") or {},
            "created_at": _iso(job.created_at),
            "updated_at": _iso(job.updated_at),
            "started_at": _iso(job.started_at),
            "finished_at": _iso(job.finished_at),
        }

    def model_view(self, model: Model) -> dict[str, Any]:
        """A model as clients read it."""
        spec = self.store.get(model.job_id).spec
        return {
            "id": model.id,
            "name": model.id,
            "object": "model",
            "base_model": model.base_model,
            "base": model.base_model,
            "job_id": model.job_id,
            "kind": model.kind,
            "type": model.kind,
            "status": "ready",
            "parent": model.parent,
            "dataset_sha256": model.dataset_sha256,
            "stand_in": (spec.get("aliases") or {}).get(model.base_model),
            "metrics": model.metrics,
            "path": model.path,
            "owner": "local",
            "inference_url": f"{self.public_url}/v1" if self.public_url else None,
            "created_at": _iso(model.created_at),
        }


# --------------------------------------------------------------------------- files


def add_file_routes(router: APIRouter, backend: Backend) -> None:
    """Upload and look up datasets."""
    store = backend.store

    def upload(
        file: Annotated[UploadFile, File()], purpose: Annotated[str, Form(max_length=100)] = "fine-tune"
    ) -> dict[str, Any]:
        file_id = new_file_id()
        folder = backend.data_dir / "files"
        folder.mkdir(exist_ok=True)
        part, path = folder / f"{file_id}.part", folder / f"{file_id}.jsonl"
        try:
            with part.open("wb") as output:
                size, rows, sha256 = store_dataset(file.file, output)
            os.replace(part, path)
        except ValueError as e:
            raise HTTPException(400, _error("invalid_file", f"{file.filename or 'file'}, {e}")) from None
        finally:
            part.unlink(missing_ok=True)
        name = (file.filename or "dataset.jsonl")[:200]
        return file_view(
            store.add_file(path, purpose=purpose, filename=name, bytes=size, rows=rows, sha256=sha256, id=file_id)
        )

    def list_files(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        views = [file_view(f) for f in store.files(limit)]
        return {"object": "list", "data": views, "files": views}

    def get_file(file_id: str) -> dict[str, Any]:
        try:
            return file_view(store.get_file(file_id))
        except KeyError:
            raise HTTPException(404, _error("not_found", f"There is no file {file_id}.")) from None

    for path in ("/files", "/learning/files"):
        router.add_api_route(path, upload, methods=["POST"])
        router.add_api_route(path, list_files, methods=["GET"])
        router.add_api_route(path + "/{file_id}", get_file, methods=["GET"])


def store_dataset(source: BinaryIO, output: BinaryIO) -> tuple[int, int, str]:
    """Copy a JSONL dataset while checking it; returns (bytes, rows, sha256).

    Raises:
        ValueError: the first line that is wrong, with its number and the reason.
    """
    digest, size, rows = hashlib.sha256(), 0, 0
    for number, line in enumerate(source, start=1):
        output.write(line)
        digest.update(line)
        size += len(line)
        if line.strip():
            check_row(number, line)
            rows += 1
    if not rows:
        raise ValueError("line 1: the file holds no examples")
    return size, rows, digest.hexdigest()


def check_row(number: int, line: bytes) -> None:
    """One training example: an object with `messages`, or with `prompt` and `completion` as lists of messages, the last
    of them the assistant's. ValueError names the line."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as e:
        raise ValueError(f"line {number}: not valid JSON: {e}") from None
    messages = row.get("messages") if isinstance(row, dict) else None
    if messages is None and isinstance(row, dict) and isinstance(row.get("prompt"), list):
        messages = [*row["prompt"], *(row["completion"] if isinstance(row.get("completion"), list) else ())]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"line {number}: needs a non-empty list `messages`, or lists `prompt` and `completion`")
    for i, message in enumerate(messages):
        where = f"line {number}: messages[{i}]"
        if not isinstance(message, dict):
            raise ValueError(f"{where} is not an object")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"{where}: role {role!r} is none of {', '.join(sorted(ROLES))}")
        if not isinstance(content, str | list) and not (role == "assistant" and message.get("tool_calls")):
            raise ValueError(f"{where}: content must be a text or a list of parts")
    last = messages[-1]
    if last["role"] != "assistant":
        raise ValueError(f"line {number}: the last message must be the assistant's, this one is of role {last['role']}")
    if not last.get("content") and not last.get("tool_calls"):
        raise ValueError(f"line {number}: the assistant's last message is empty")


def file_view(file: StoredFile) -> dict[str, Any]:
    """A file as clients read it."""
    return {
        "id": file.id,
        "file_id": file.id,
        "object": "file",
        "purpose": file.purpose,
        "filename": file.filename,
        "bytes": file.bytes,
        "rows": file.rows,
        "sha256": file.sha256,
        "status": "ready",
        "state": "ready",
        "created_at": _iso(file.created_at),
    }


# --------------------------------------------------------------------------- jobs


def add_job_routes(router: APIRouter, backend: Backend) -> None:
    """Create, follow and cancel jobs. Every family of paths sees every job, with one seq space for events."""
    store = backend.store

    def create_sft(payload: Payload, key: Key = None) -> JSONResponse:
        is_rl = str(payload.get("job_type") or payload.get("training_type") or "").lower() == "rl"
        job = backend.create_rl(payload, key) if is_rl else backend.create_sft(payload, key)
        return JSONResponse(backend.job_view(job), 201)

    def create_rl(payload: Payload, key: Key = None) -> JSONResponse:
        return JSONResponse(backend.job_view(backend.create_rl(payload, key)), 201)

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
        since_seq: int = 0,
        limit: Limit = 200,
        last_event_id: Annotated[int | None, Header(alias="Last-Event-ID")] = None,
    ) -> Response:
        backend.job(job_id)
        if "text/event-stream" in request.headers.get("accept", ""):
            stream = stream_events(store, job_id, last_event_id if last_event_id is not None else since_seq)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        views = [event_view(job_id, e) for e in store.events(job_id, since_seq, limit)]
        next_seq = views[-1]["seq"] if views else since_seq
        return JSONResponse({"job_id": job_id, "events": views, "data": views, "next_seq": next_seq})

    def metrics(
        job_id: str, name: str | None = None, after_step: int | None = None, limit: Limit = 1000
    ) -> dict[str, Any]:
        backend.job(job_id)
        points = [
            {"name": m.name, "step": m.step, "value": m.value, "phase": m.phase, "created_at": _iso(m.created_at)}
            for m in store.metrics(job_id, name, after_step, limit)
        ]
        return {"job_id": job_id, "points": points, "data": points, "metrics": points}

    def timeline(job_id: str, limit: Limit = 200) -> dict[str, Any]:
        backend.job(job_id)
        phases = [
            {"phase": PHASES[e.type], "created_at": _iso(e.created_at), "seq": e.seq, "message": e.message}
            for e in store.events(job_id, 0, 1_000_000)
            if e.type in PHASES
        ][:limit]
        return {"job_id": job_id, "events": phases, "timeline": phases}

    def runs(job_id: str) -> dict[str, Any]:
        job = backend.job(job_id)
        starts = [e for e in store.events(job_id, 0, 1_000_000) if e.type == "job.worker.started"]
        views = [
            {
                "id": f"{job.id}-{i}",
                "run_number": i,
                "engine": "local",
                "status": job.status if i == len(starts) else "failed",
                "created_at": _iso(e.created_at),
                "started_at": _iso(e.created_at),
                "ended_at": _iso(job.finished_at if i == len(starts) else starts[i].created_at),
            }
            for i, e in enumerate(starts, start=1)
        ]
        return {"job_id": job.id, "runs": views, "data": views}

    def cancel(job_id: str) -> dict[str, Any]:
        backend.job(job_id)
        job = store.request_cancel(job_id)
        backend.supervisor.wake()
        return backend.job_view(job)

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
    }
    for family, kind in (("learning", None), ("sft", "sft"), ("rl", "rl"), ("orchestration", None)):
        jobs = f"/{family}/jobs"
        router.add_api_route(jobs, lister(backend, kind), methods=["GET"])
        router.add_api_route(jobs + "/{job_id}", get_job, methods=["GET"])
        for word, get in getters.items():
            router.add_api_route(f"{jobs}/{{job_id}}/{word}", get, methods=["GET"])
        router.add_api_route(jobs + "/{job_id}/start", start, methods=["POST"])
        router.add_api_route(jobs + "/{job_id}/cancel", cancel, methods=["POST"])
    router.add_api_route("/jobs/{job_id}/runs", runs, methods=["GET"])


def lister(backend: Backend, only: Any) -> Callable[..., dict[str, Any]]:
    """The list of a family of paths; `only`: its one kind of job."""

    def list_jobs(
        status: str | None = None,
        type: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        asked = "sft" if type and type.startswith("sft") else type
        if only and asked and asked != only:
            return {"object": "list", "data": [], "jobs": []}
        found = backend.store.list(only or asked, status, limit)  # type: ignore[arg-type]
        views = [backend.job_view(j) for j in found]
        return {"object": "list", "data": views, "jobs": views}

    return list_jobs


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
    at = _iso(event.created_at)
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


# --------------------------------------------------------------------------- models


def add_model_routes(router: APIRouter, backend: Backend) -> None:
    """Look up trained models."""
    store = backend.store

    def views(models: Iterable[Model]) -> dict[str, Any]:
        found = [backend.model_view(m) for m in models]
        return {"object": "list", "data": found, "models": found}

    def list_models(type: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        return views(store.models(type, limit))

    def list_rl(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
        return views(store.models("rl", limit))

    def get_model(model_id: str) -> dict[str, Any]:
        model = store.resolve_model(model_id)
        if model is None:
            raise HTTPException(404, _error("not_found", f"There is no trained model {model_id!r}."))
        return backend.model_view(model)

    router.add_api_route("/learning/models/rl", list_rl, methods=["GET"])
    for path in ("/learning/models", "/models"):
        router.add_api_route(path, list_models, methods=["GET"])
        router.add_api_route(path + "/{model_id:path}", get_model, methods=["GET"])


# --------------------------------------------------------------------------- task apps


def add_task_app_routes(
    router: APIRouter, task_app_key: str | None, transport: httpx.AsyncBaseTransport | None
) -> None:
    """Whether a task app can be reached from here."""

    async def verify(payload: Payload) -> dict[str, Any]:
        url = payload.get("endpoint_base_url")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise ConfigError("endpoint_base_url: the http(s) address of the task app is missing.")
        headers = {"Authorization": f"Bearer {task_app_key}", "X-API-Key": task_app_key} if task_app_key else {}
        attempt: dict[str, Any] = {"url": f"{url.rstrip('/')}/health", "status": None}
        try:
            async with httpx.AsyncClient(transport=transport, timeout=VERIFY_SECONDS) as http:
                attempt["status"] = (await http.get(attempt["url"], headers=headers)).status_code
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            attempt["error"] = f"{type(e).__name__}: {e}"
        # the wire shows the beginnings of keys in candidates_first15; ours stay here
        return {"any_ok": attempt["status"] == 200, "attempts": [attempt], "candidates_first15": []}

    router.add_api_route("/rl/verify_task_app", verify, methods=["POST"])


# --------------------------------------------------------------------------- inference


class Inference:
    """Chat completions: the hot path. Raw Starlette handlers, one parse of the body."""

    def __init__(self, backend: Backend, proxy: InferenceProxy, guard: Guard) -> None:
        self._backend, self._proxy, self._guard = backend, proxy, guard
        self._builtins = builtin_models()
        self._resolved: dict[str, tuple[str, str]] = {}

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        if not self._guard.lets_in(request):
            return _openai_error(401, "API key missing or invalid", "invalid_api_key")
        raw = await request.body()
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as e:
            return _openai_error(400, f"The body is not valid JSON: {e}")
        name = body.get("model") if isinstance(body, dict) else None
        if not isinstance(name, str) or not name:
            return _openai_error(400, "`model` is missing.")
        name = name if name in self._builtins else self._backend.aliases.get(name, name)
        builtin = self._builtins.get(name)
        if builtin is not None:
            if body.get("stream"):
                return _openai_error(400, f"{name} answers at once; ask without `stream`.")
            try:
                return Response(completion(name, builtin, body), media_type="application/json")
            except NoObservation as e:
                return _openai_error(400, str(e))
        found = self._weights(body["model"])
        if found is None:
            known = ", ".join(self._known())
            return _openai_error(404, f"There is no model {body['model']!r}. Known: {known}.", "model_not_found")
        path, model_id = found
        try:
            return await self._proxy.forward(raw, path=path, model_id=model_id)
        except ServiceError as e:
            return _openai_error(503, str(e), "inference_unavailable")

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        if not self._guard.lets_in(request):
            return _openai_error(401, "API key missing or invalid", "invalid_api_key")
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "crafter-pipeline"} for name in self._known()]
        return JSONResponse({"object": "list", "data": data})

    def _weights(self, name: str) -> tuple[str, str] | None:
        """(what to load, id to answer with) of a name: a trained model, the tiny student, an alias, a folder."""
        known = self._resolved.get(name)
        if known is not None:
            return known
        model = self._backend.store.resolve_model(name)
        if model is not None:
            found = (model.path, model.id)
            if not name.startswith("latest:"):
                self._resolved[name] = found
            return found
        path = self._backend.store.weights_of(name, self._backend.aliases)
        if path != name or name == TINY or (Path(name) / "config.json").is_file():
            return path, name
        return None

    def _known(self) -> list[str]:
        trained = (m.id for m in self._backend.store.models(limit=1000))
        return [*self._builtins, TINY, *self._backend.aliases, *trained]


# --------------------------------------------------------------------------- small things


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _openai_error(status: int, message: str, code: str = "invalid_request") -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return Response(orjson.dumps({"error": error}), status, media_type="application/json")


def _iso(at: float | None) -> str | None:
    """ISO 8601 in UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _name_of(payload: Mapping[str, Any]) -> str:
    """A label that the client gave, wherever it put it."""
    data = payload.get("data")
    toml = data.get("config") if isinstance(data, dict) else None
    model = toml.get("model") if isinstance(toml, dict) else None
    for table, key in ((payload, "name"), (payload.get("metadata"), "name"), (model, "label")):
        if isinstance(table, Mapping) and isinstance(table.get(key), str):
            return str(table[key])[:200]
    return ""
