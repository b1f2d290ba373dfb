"""The task app as a FastAPI factory.

    GET, HEAD /           open   {"status": "ok", "service": <app>}
    GET  /livez           open   {"status": "ok"}
    GET  /health          key    {"healthy", "status", "auth": {"required"}}
    GET  /info            key    service, data set, rubrics, inference, limits
    GET  /task_info       key    the taskset; ?seed=1 one task; several seeds a list
    POST /rollout         key    play one episode: contracts.RolloutRequest -> contracts.RolloutResponse
    POST /done            key    {"ok": true}

A key travels in X-API-Key, X-API-Keys (a comma list) or Authorization: Bearer. Refusals: 401 no or wrong key, 409 a
run_id known for another request, 422 a field is wrong (FastAPI's shape), 502 the chat model failed for good.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, ValidationError

from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.contracts import RolloutRequest, RolloutResponse
from crafter_pipeline.errors import FieldError, ModelError
from crafter_pipeline.settings import Settings, load_settings
from crafter_pipeline.traces.ledger import find_stored, forget
from crafter_pipeline.traces.store import TraceStore, default_trace_path
from task_app.environments import Environment, environment_of
from task_app.requests import RunIdConflict
from task_app.rollout import Plan, answer_of, plan_rollout, play

log = logging.getLogger(__name__)
T = TypeVar("T")
JSON = "application/json"
MAX_SEEDS = 1000
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Query()]
NO_SEEDS: list[int] = []


def make_app(
    environment: str = "grpo-crafter",
    *,
    trace_db: Path | None = None,
    trace_dir: Path | None = None,
    api_key: str | None = None,
    chat: ChatClient | None = None,
    settings: Settings | None = None,
) -> FastAPI:
    """The task app of one environment.

    Args:
        environment: App name or alias. ConfigError names the known ones.
        trace_db: File to write rollouts to; default: a new file in `trace_dir`. DataError if it cannot be written.
        trace_dir: Folder whose databases are the ledger; default: the folder of `trace_db`. Both None: nothing is
            stored, and every request is played.
        api_key: Key to ask for; None: open. (Whoever binds a socket refuses to be open beyond loopback.)
        chat: Client for the models; default: one of its own, closed with the app.
        settings: Where that client's keys come from; default: the environment.
    """
    env = environment_of(environment)
    service = env.info.app_names[0]
    if trace_db is None and trace_dir is not None:
        trace_db = default_trace_path(trace_dir)
    store = None if trace_db is None else TraceStore(trace_db)
    client = chat if chat is not None else ChatClient(settings if settings is not None else load_settings())
    desk = RolloutDesk(env, client, store, trace_dir)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warm = asyncio.create_task(asyncio.to_thread(env.task, 0))  # the first world of a process takes 0.5 s
        yield
        await warm
        await desk.aclose()
        if chat is None:
            await client.aclose()

    app = FastAPI(title=service, lifespan=lifespan)
    app.state.trace_db = trace_db
    app.state.desk = desk
    with_key = [Depends(_key_check(api_key))]

    @app.api_route("/", methods=["GET", "HEAD"])
    async def root() -> dict[str, str]:
        return {"status": "ok", "service": service}

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/health", dependencies=with_key)
    async def health() -> dict[str, Any]:
        return {"healthy": True, "status": "healthy", "auth": {"required": api_key is not None}}

    @app.get("/info", dependencies=with_key)
    async def info() -> dict[str, Any]:
        task = env.task(None)
        return {
            "service": {"task": task["task"], "version": task["task"]["version"]},
            "dataset": task["dataset"],
            "rubrics": {"outcome": task["rubric"].get("outcome"), "events": task["rubric"].get("events")},
            "inference": task["inference"],
            "limits": task["limits"],
        }

    @app.get("/task_info", dependencies=with_key)
    async def task_info(seed: Seeds = NO_SEEDS, seeds: Seeds = NO_SEEDS) -> dict[str, Any] | list[dict[str, Any]]:
        wanted = [*seed, *seeds]
        if not wanted:
            return {"taskset": env.taskset()}
        if len(wanted) > MAX_SEEDS:
            raise HTTPException(422, _error("too_many_seeds", f"Ask for at most {MAX_SEEDS} seeds at once."))
        tasks = await asyncio.to_thread(lambda: [env.task(s) for s in wanted])
        return tasks[0] if len(tasks) == 1 else tasks

    @app.post("/rollout", dependencies=with_key, response_model=RolloutResponse)
    async def rollout(request: Request) -> Response:
        try:
            parsed = RolloutRequest.model_validate_json(await request.body())
            answer = await desk.answer(plan_rollout(parsed, env))
        except ValidationError as e:
            errors = e.errors(include_url=False, include_context=False, include_input=False)
            return _refused([{**error, "loc": ["body", *error["loc"]]} for error in errors])
        except FieldError as e:
            loc = ["body", *(int(p) if p.isdigit() else p for p in e.field.split("."))]
            return _refused([{"type": "value_error", "loc": loc, "msg": e.message}])
        except RunIdConflict as e:
            return JSONResponse({"detail": _error("run_id_conflict", str(e))}, 409)
        except ModelError as e:
            return JSONResponse({"detail": _error("model_failed", str(e))}, 502)
        return Response(answer, media_type=JSON)

    @app.post("/done", dependencies=with_key)
    async def done() -> dict[str, Any]:
        return {"ok": True, "service": service}

    return app


class RolloutDesk:
    """Answers rollout requests, each run_id once: from the ledger, from a play under way, or by playing.

    Everything runs on the event loop except SQLite, which has one writer thread.
    """

    def __init__(
        self, environment: Environment, chat: ChatClient, store: TraceStore | None, folder: Path | None
    ) -> None:
        self.environment, self._chat, self._store = environment, chat, store
        self._folder = folder if folder is not None else (store.path.parent if store is not None else None)
        self._plays: dict[str, tuple[str, asyncio.Task[bytes]]] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="trace-writer")

    async def answer(self, plan: Plan) -> bytes:
        """The answer to a plan. RunIdConflict if its run_id is known for another request; ModelError from the play."""
        run_id = plan.request.run_id
        under_way = self._plays.get(run_id)
        if under_way is None:
            task = asyncio.create_task(self._find_or_play(plan), name=f"rollout-{run_id}")
            self._plays[run_id] = (plan.digest, task)
            task.add_done_callback(lambda _: self._plays.pop(run_id, None))
        else:
            digest, task = under_way
            _check_same(run_id, digest, plan.digest)
        # A client that goes away does not end the episode: its retry finds the play, or the answer.
        return await asyncio.shield(task)

    async def _find_or_play(self, plan: Plan) -> bytes:
        run_id, started_at = plan.request.run_id, time.time()
        store = self._store if plan.request.record.store else None
        if store is not None:
            known = await asyncio.to_thread(self._look_up, run_id)
            if known is not None:
                _check_same(run_id, known[1], plan.digest)
                return known[0]
        try:
            played = await play(plan, self._chat)
            answer = answer_of(plan, played)
        except Exception as e:
            if not isinstance(e, ModelError):
                log.exception("Rollout %s broke", run_id)
            if store is not None:
                await self._write(store.add_attempt, run_id, f"{type(e).__name__}: {e}", started_at)
            raise
        if store is not None:
            if played.rollout.turns:
                await self._write(store.add, played.rollout, answer, plan.digest)
            else:  # out of time before the first answer: nothing that a finished rollout would have
                await self._write(store.add_attempt, run_id, "out of time before the first answer", started_at)
        return answer

    def _look_up(self, run_id: str) -> tuple[bytes, str] | None:
        """(answer, request digest) of a finished run_id; the digest is empty where it is not known."""
        found = None if self._folder is None else find_stored(self._folder, run_id)
        if found is not None:
            return found.answer, found.request_digest
        answer = None if self._store is None else self._store.answer(run_id)  # its name need not end in .db
        return None if answer is None else (answer, "")

    async def _write(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, function, *arguments)

    async def aclose(self) -> None:
        """End the plays under way and close the trace database."""
        for _, task in list(self._plays.values()):
            task.cancel()
        await asyncio.to_thread(self._writer.shutdown)
        if self._store is not None:
            if self._folder is not None:
                forget(self._folder)
            self._store.close()


def _check_same(run_id: str, known: str, asked: str) -> None:
    if known and known != asked:
        raise RunIdConflict(
            f"run_id {run_id!r} was used for a request with other settings. Send the same env, policy, ops, safety and "
            "record as before to get that answer, or another run_id to play anew."
        )


def _key_check(api_key: str | None) -> Callable[[Request], Awaitable[None]]:
    expected = None if api_key is None else api_key.encode()

    async def check(request: Request) -> None:
        if expected is None:
            return
        headers = request.headers
        sent = [*headers.get("x-api-key", "").split(","), *headers.get("x-api-keys", "").split(",")]
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            sent += token.split(",")
        matches = [hmac.compare_digest(key.strip().encode(), expected) for key in sent]
        if not any(matches):
            raise HTTPException(
                401,
                _error("unauthorised", "API key missing or invalid. Send it as X-API-Key or Authorization: Bearer."),
                headers={"WWW-Authenticate": "Bearer"},
            )

    return check


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _refused(errors: list[Any]) -> Response:
    return Response(orjson.dumps({"detail": errors}), 422, media_type=JSON)
