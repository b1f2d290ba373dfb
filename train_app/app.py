"""The training service: files, jobs, models, events, inference. No torch here.

    GET  /livez                                     open: the process answers
    GET  /health                                    open: {"healthy", "status", "auth", "slots": jobs at once}

Inference (OpenAI's shape), under /v1 and /api/inference/v1:

    POST /v1/chat/completions, /v1/completions      built-ins and networks answer here, other models in the child
    GET  /v1/models, /v1/models/{id}

The same behind a URL of one rollout, whose calls are captured token by token (train_app.routes.rollout_sessions):

    POST /rollouts/{id}/v1/chat/completions, /rollouts/{id}/v1/completions
    GET  /rollouts/{id}/v1/models

Everything below under both /api and /api/v1; JOBS is learning/jobs, sft/jobs, rl/jobs, orchestration/jobs or jobs:

    POST /files, /learning/files                    multipart purpose, file: a JSONL dataset, checked line by line
    GET  /files?purpose&after&limit, /files/{id}    likewise below /learning
    GET  /files/{id}/content, /files/{id}/jobs
    POST /learning/jobs, /sft/jobs                  a fine-tuning job (Idempotency-Key); waits for start
    POST /JOBS/{id}/start
    POST /rl/jobs                                   a reinforcement-learning job (Idempotency-Key); starts at once
    POST /plan                                      memory and time of a job, which is not made
    POST /rl/verify_task_app                        can the task app be reached with our key?
    GET  /JOBS, /JOBS/{id}                          list (?status&type&model&file_id&tag&created_after&after&limit)
    GET  /JOBS/{id}/status, /config, /runs, /timeline, /checkpoints
    GET  /JOBS/{id}/events?since_seq&limit          JSON, or a stream with Accept: text/event-stream
    GET  /JOBS/{id}/metrics?name&after_step&run_id&limit
    POST /JOBS/{id}/cancel
    GET  /rl/jobs/{id}/samples?iteration&seed&limit   what was trained; /samples/{sample}: token by token
    POST /rollouts, /rollouts/{id}/finish           open and end a rollout of an agent that is not ours
    GET  /rollouts/{id}                             its captured calls; DELETE forgets them
    POST /judge/v1/score                            a trace by a rubric: see train_app.judge
    GET  /models, /learning/models[?type], /learning/models/rl
    GET  /models/{id}, /learning/models/{id}        by any form of its id, or `champion`; /jobs
    GET  /models/{id}/export?form                   merged or adapter: a tar stream; card: Markdown
    GET  /learning/aliases, /learning/aliases/champion    who holds the name, by which evidence, and every move
    PUT  /learning/aliases/champion                 a promotion: {model, instead_of, evidence, by}
    POST /learning/aliases/champion/rollback        back to the one before: {move, by, reason}
    POST /pricing/preflight                         what a job costs: nothing; GET /balance/autumn-normalized likewise
    GET  /health                                    open

Keys: Authorization: Bearer, X-API-Key or X-API-Keys; wrong or missing: 401. No key configured: open.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from crafter_pipeline.errors import ConfigError, PipelineError, ServiceError
from train_app.answers import error_body
from train_app.backend import Backend
from train_app.guard import Guard
from train_app.inference_proxy import MODULE, InferenceProxy
from train_app.jobs import JobStore
from train_app.judge import JudgeDesk, add_judge_routes
from train_app.routes.aliases import add_alias_routes
from train_app.routes.files import add_file_routes
from train_app.routes.inference import Inference
from train_app.routes.jobs import add_job_routes
from train_app.routes.models import add_model_routes
from train_app.routes.plan import add_plan_routes
from train_app.routes.prices import add_price_routes
from train_app.routes.rollout_sessions import RolloutSessions, add_rollout_routes
from train_app.routes.samples import add_sample_routes
from train_app.routes.task_apps import add_task_app_routes
from train_app.slots import find_slots
from train_app.supervisor import POLL_SECONDS, Supervisor, WorkerCommand
from train_app.upload_limit import MAX_UPLOAD_MB, UploadLimit

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
    slots: int | None = None,
    max_upload_mb: int = MAX_UPLOAD_MB,
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
        slots: Jobs at once; None: one per GPU, or one.
        max_upload_mb: Largest file that is taken.
        task_app_transport: For tests: how task apps are reached.
        model_transport: For tests: how chat models elsewhere are reached.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    store = JobStore.in_folder(data_dir)
    supervisor = Supervisor(store, data_dir, command=worker_command, slots=find_slots(slots), poll_seconds=poll_seconds)
    proxy = InferenceProxy(data_dir, inference_module)
    backend = Backend(store, data_dir, dict(aliases or {}), public_url, supervisor)
    guard = Guard(api_key)
    inference = Inference(backend, proxy, guard)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(backend.clear_away)
        await run_in_threadpool(supervisor.start)
        try:
            yield
        finally:
            await desk.close()
            await proxy.close()
            await run_in_threadpool(supervisor.stop)
            store.close()

    sessions = RolloutSessions(inference, backend.public_url)
    hot = [*inference.routes(), *sessions.routes()]
    app = FastAPI(title="crafter-pipeline training service", lifespan=lifespan, routes=hot)
    app.add_middleware(UploadLimit, guard=guard, limit_mb=max_upload_mb)
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

    health = {
        "healthy": True,
        "status": "ok",
        "auth": {"required": api_key is not None},
        "slots": supervisor.slots.count,
    }
    for path in ("/health", "/api/health", "/api/v1/health"):
        app.add_api_route(path, lambda: health, methods=["GET"])

    router = APIRouter(dependencies=[Depends(guard.require)])
    add_alias_routes(router, backend)
    add_file_routes(router, backend)
    add_job_routes(router, backend)
    add_model_routes(router, backend)
    add_plan_routes(router, backend)
    add_price_routes(router)
    add_rollout_routes(router, sessions)
    add_sample_routes(router, backend)
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
        detail = error_body("invalid_request" if status == 400 else "unavailable", str(e))
        return JSONResponse({"detail": detail}, status)

    return app
