"""The task app as a FastAPI factory.

    GET, HEAD /                        open   {"status": "ok", "service": <app>}
    GET  /livez                        open   {"status": "ok"}
    GET  /health, /health/rollout      key    {"healthy", …}, {"ok": true, …}
    GET  /info                         key    service, data set, rubrics, inference, limits
    GET  /task_info                    key    the taskset; ?seed=1 one task; several seeds a list
    GET  /debug/env                    key    which keys are set, as booleans
    POST /done                         key    {"ok": true}

    POST /rollout                      key    play one episode: contracts.RolloutRequest -> contracts.RolloutResponse
    GET  /run/status/{run_id}          key    how far it is
    POST /run/abort                    key    end it early; its request is answered with what was played

    POST /create, /step, /reset, /terminate                            key    an environment between requests (live)
    POST /snapshot, /restore, /branch                                  key    its copies
    POST /CrafterClassic/initialize, /CrafterClassic/step, /CrafterClassic/terminate   key    Crafter's older names
    POST /proxy/v1/chat/completions, /proxy/groq/v1/chat/completions   key    OpenAI, Groq with the server's key (proxy)

A key travels in X-API-Key, X-API-Keys (a comma list) or Authorization: Bearer. How requests are refused, and with which
status, is in `requests`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from pydantic import Field

from crafter_pipeline.api_keys import ApiKeys
from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.contracts import MAX_SEED, RolloutRequest, RolloutResponse, Wire
from crafter_pipeline.settings import Settings, load_settings
from crafter_pipeline.traces.store import TraceStore, default_trace_path
from task_app import live_routes
from task_app.desk import RolloutDesk
from task_app.environments import Environment, environment_of
from task_app.live import LiveEnvironments
from task_app.proxy import Proxy, ProxyRequest, add_proxy_routes
from task_app.requests import JSON, Refusal, add_refusals, describe, read_body, takes

MAX_SEEDS = 1000
Seeds = Annotated[list[Annotated[int, Field(ge=0, le=MAX_SEED)]], Query()]
NO_SEEDS: list[int] = []


def make_app(
    environment: str = "grpo-crafter",
    *,
    trace_db: Path | None = None,
    trace_dir: Path | None = None,
    side_files: Path | None = None,
    api_keys: Sequence[str] = (),
    chat: ChatClient | None = None,
    vendor_http: httpx.AsyncClient | None = None,
    settings: Settings | None = None,
) -> FastAPI:
    """The task app of one environment.

    Args:
        environment: App name or alias. ConfigError names the known ones, DataError says what is wrong with its data.
        trace_db: File to write rollouts to; default: a new file in `trace_dir`. DataError if it cannot be written.
        trace_dir: Folder whose databases are the ledger; default: the folder of `trace_db`. Both None: nothing is
            stored, and every request is played.
        side_files: Folder for a JSONL file of each rollout that is stored; None: none are written.
        api_keys: Keys that open; none: open. (Whoever binds a socket refuses to be open beyond loopback.)
        chat: Client for the models; default: one of its own, closed with the app.
        vendor_http: For tests: how the proxy reaches its vendors.
        settings: Where the keys of that client and of the proxy come from; default: the environment.
    """
    env = environment_of(environment)
    env.taskset()  # what is wrong with its data is said now, not at the first request
    if trace_db is None and trace_dir is not None:
        trace_db = default_trace_path(trace_dir)
    store = None if trace_db is None else TraceStore(trace_db)
    settings = settings if settings is not None else load_settings()
    client = chat if chat is not None else ChatClient(settings)
    live = LiveEnvironments(env)
    desk = RolloutDesk(client, live, store, trace_dir, side_files)
    proxy = Proxy(settings, vendor_http)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warm = asyncio.create_task(asyncio.to_thread(env.task, 0))  # the first world of a process takes 0.5 s
        yield
        await warm
        await desk.aclose()
        await proxy.aclose()
        if chat is None:
            await client.aclose()

    app = FastAPI(title=env.info.app_names[0], lifespan=lifespan)
    app.state.trace_db, app.state.desk, app.state.live = trace_db, desk, live
    keys = ApiKeys(api_keys)
    closed = APIRouter(dependencies=[Depends(key_check(keys))])
    add_open_routes(app)
    add_facts(closed, env, keys, settings, proxy)
    add_rollout_routes(closed, desk)
    live_routes.add_live_routes(closed, live)
    add_proxy_routes(closed, proxy)
    app.include_router(closed)
    add_refusals(app)
    describe(app, (RolloutRequest, AbortRequest, ProxyRequest, *live_routes.MODELS))
    return app


def key_check(keys: ApiKeys) -> Callable[[Request], Awaitable[None]]:
    """A dependency of every closed route: Refusal 401 without a right key."""

    async def check(request: Request) -> None:
        if not keys.let_in(request.headers):
            raise Refusal(
                401,
                "unauthorised",
                "API key missing or invalid. Send it as X-API-Key or Authorization: Bearer.",
                headers={"WWW-Authenticate": "Bearer"},
            )

    return check


def add_open_routes(app: FastAPI) -> None:
    """What anybody may know: that it is there."""

    @app.head("/", include_in_schema=False)
    @app.get("/")
    async def root() -> dict[str, str]:
        return {"status": "ok", "service": app.title}

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}


def add_facts(router: APIRouter, env: Environment, keys: ApiKeys, settings: Settings, proxy: Proxy) -> None:
    """What the app is and which tasks it has."""
    endpoints = proxy.endpoints()
    proxied = {"supports_proxy": bool(endpoints), "endpoints": endpoints}

    def task_of(seed: int | None) -> dict[str, Any]:
        task = env.task(seed)
        return task | {"inference": task["inference"] | proxied}

    @router.get("/health")
    async def health() -> dict[str, Any]:
        return {"healthy": True, "status": "healthy", "auth": {"required": keys.required}}

    @router.get("/health/rollout")
    async def health_rollout() -> dict[str, bool]:
        return {"ok": True, "authorized": True}

    @router.get("/info")
    async def info() -> dict[str, Any]:
        task = task_of(None)
        return {
            "service": {"task": task["task"], "version": task["task"]["version"]},
            "dataset": task["dataset"],
            "rubrics": env.rubrics(),
            "inference": task["inference"],
            "limits": task["limits"],
        }

    @router.get("/task_info")
    async def task_info(seed: Seeds = NO_SEEDS, seeds: Seeds = NO_SEEDS) -> dict[str, Any] | list[dict[str, Any]]:
        wanted = [*seed, *seeds]
        if not wanted:
            return {**task_of(None), "taskset": env.taskset()}  # published clients read either
        if len(wanted) > MAX_SEEDS:
            raise Refusal(422, "too_many_seeds", f"Ask for at most {MAX_SEEDS} seeds at once.")
        tasks = await asyncio.to_thread(lambda: [task_of(s) for s in wanted])
        return tasks[0] if len(tasks) == 1 else tasks

    @router.get("/debug/env")
    async def debug_env() -> dict[str, bool]:
        return {
            "has_ENVIRONMENT_API_KEY": keys.required,
            "has_OPENAI_API_KEY": settings.openai_api_key is not None,
            "has_GROQ_API_KEY": settings.groq_api_key is not None,
        }

    @router.post("/done")
    async def done() -> dict[str, Any]:
        return {"ok": True, "service": env.info.app_names[0]}


class AbortRequest(Wire):
    """Body of `POST /run/abort`."""

    run_id: str = Field(min_length=1, max_length=200)


def add_rollout_routes(router: APIRouter, desk: RolloutDesk) -> None:
    """Play, follow, stop."""

    @router.post("/rollout", response_model=RolloutResponse, openapi_extra=takes(RolloutRequest))
    async def rollout(request: Request) -> Response:
        return Response(await desk.answer(await read_body(request, RolloutRequest)), media_type=JSON)

    @router.get("/run/status/{run_id:path}")
    async def status(run_id: str) -> dict[str, Any]:
        return await desk.status(run_id)

    @router.post("/run/abort", openapi_extra=takes(AbortRequest))
    async def abort(request: Request) -> dict[str, Any]:
        return await desk.abort((await read_body(request, AbortRequest)).run_id)
