"""Doors for agents that are not ours: an OpenAI base URL per rollout, behind which every call is captured.

    POST   /api/rollouts                        {model, temperature?} → {rollout_id, base_url, expires_at, …}
    GET    /api/rollouts/{id}                   the captured calls: prompt ids, sampled ids, logprobs, weight version
    POST   /api/rollouts/{id}/finish            the same; the URL is dead from now on
    DELETE /api/rollouts/{id}                   the same; and nothing is kept

    POST   /rollouts/{id}/v1/chat/completions   no key: the URL, 128 bits of it, is the credential
    POST   /rollouts/{id}/v1/completions
    GET    /rollouts/{id}/v1/models

Whatever model an agent names, the rollout's answers. A rollout that nobody calls ends by itself, and is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from crafter_pipeline.model_names import is_mlp
from train_app.answers import error_body, iso, openai_error
from train_app.routes.inference import CHAT, COMPLETIONS, Inference
from train_app.workers.capture import CapturedCall, Captures, sample_from_view, shown

IDLE_SECONDS = 1800.0
MAX_SESSIONS = 4096


class SessionRequest(BaseModel):
    """What a rollout is opened with."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1)
    """Any name of a model with weights."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Of every call; unset: what each call asks for."""


@dataclass(slots=True)
class _Session:
    model: str
    found: tuple[str, str]
    temperature: float | None
    opened_at: float
    used_at: float
    calls: list[CapturedCall] | None = None
    """Of a finished rollout."""


class RolloutSessions:
    """The open and the finished rollouts of this process.

    Args:
        public_url: Our address as agents see it; None: as the request that opens a rollout saw it.
        idle_seconds: A rollout is forgotten when it was not called or read for so long.
        clock: Unix seconds; for tests.
    """

    def __init__(
        self,
        inference: Inference,
        public_url: str | None,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._inference, self._public_url = inference, public_url
        self._idle, self._clock = idle_seconds, clock
        self._captures = Captures()
        self._sessions: dict[str, _Session] = {}

    def routes(self) -> list[BaseRoute]:
        """The doors: no key but the URL."""
        base = "/rollouts/{rollout_id}/v1"
        return [
            Route(f"{base}/{CHAT}", self._chat, methods=["POST"]),
            Route(f"{base}/{COMPLETIONS}", self._completions, methods=["POST"]),
            Route(f"{base}/models", self._models, methods=["GET"]),
        ]

    # ------------------------------------------------------------------ with the key

    def open(self, asked: SessionRequest, request: Request) -> dict[str, Any]:
        """A new rollout. 404: no such model with weights. 400: it has no tokens. 429: too many are open."""
        self._forget_idle()
        found = self._inference.weights_of(asked.model)
        if found is None:
            message = f"There is no model {asked.model!r} with weights. See GET /v1/models."
            raise HTTPException(404, error_body("model_not_found", message))
        if is_mlp(found[1]):
            raise HTTPException(
                400, error_body("no_tokens", f"{found[1]} answers without tokens: none can be captured.")
            )
        if len(self._sessions) >= MAX_SESSIONS:
            message = f"{len(self._sessions)} rollouts are open. DELETE those that are over."
            raise HTTPException(429, error_body("too_many_rollouts", message))
        now = self._clock()
        rollout_id = self._captures.open()
        self._sessions[rollout_id] = _Session(asked.model, found, asked.temperature, now, now)
        base = self._public_url or str(request.base_url).rstrip("/")
        return {"base_url": f"{base}/rollouts/{rollout_id}/v1", **self._view(rollout_id, with_calls=False)}

    def read(self, rollout_id: str) -> dict[str, Any]:
        """What was captured so far. 404: there is no such rollout."""
        self._session(rollout_id).used_at = self._clock()
        return self._view(rollout_id)

    def finish(self, rollout_id: str) -> dict[str, Any]:
        """End it, and tell what was captured."""
        session = self._session(rollout_id)
        if session.calls is None:
            session.calls = self._captures.close(rollout_id)
        return self.read(rollout_id)

    def forget(self, rollout_id: str) -> dict[str, Any]:
        """End it, tell what was captured, and keep nothing."""
        view = self.finish(rollout_id)
        del self._sessions[rollout_id]
        return view

    def _session(self, rollout_id: str) -> _Session:
        self._forget_idle()
        if rollout_id not in self._sessions:
            message = f"There is no rollout {shown(rollout_id)}: it was deleted, or not used for {self._idle:.0f} s."
            raise HTTPException(404, error_body("rollout_not_found", message))
        return self._sessions[rollout_id]

    def _view(self, rollout_id: str, *, with_calls: bool = True) -> dict[str, Any]:
        session = self._sessions[rollout_id]
        view: dict[str, Any] = {
            "rollout_id": rollout_id,
            "object": "rollout",
            "status": "open" if session.calls is None else "finished",
            "model": session.model,
            "temperature": session.temperature,
            "created_at": iso(session.opened_at),
            "expires_at": iso(session.used_at + self._idle),
        }
        if with_calls:
            calls = self._captures.calls(rollout_id) if session.calls is None else session.calls
            view["calls"] = [call.view() for call in calls]
        return view

    def _forget_idle(self) -> None:
        now = self._clock()
        for rollout_id in [i for i, s in self._sessions.items() if now - s.used_at > self._idle]:
            self._captures.close(rollout_id)
            del self._sessions[rollout_id]

    # ------------------------------------------------------------------ with the URL alone

    async def _chat(self, request: Request) -> Response:
        return await self._serve(request, CHAT)

    async def _completions(self, request: Request) -> Response:
        return await self._serve(request, COMPLETIONS)

    async def _serve(self, request: Request, path: str) -> Response:
        rollout_id = request.path_params["rollout_id"]
        session = self._open_session(rollout_id)
        if session is None:
            return _ended(rollout_id)
        try:
            body = orjson.loads(await request.body())
        except orjson.JSONDecodeError as e:
            return openai_error(400, f"The body is not valid JSON: {e}")
        if not isinstance(body, dict):
            return openai_error(400, "The body is no JSON object.")
        if session.temperature is not None:
            body["temperature"] = session.temperature

        def keep(choices: list[dict[str, Any]]) -> None:
            session.used_at = self._clock()
            self._captures.add(rollout_id, path, [sample_from_view(choice) for choice in choices])

        return await self._inference.pass_on(request, orjson.dumps(body), path, session.found, keep)

    async def _models(self, request: Request) -> Response:
        rollout_id = request.path_params["rollout_id"]
        session = self._open_session(rollout_id)
        if session is None:
            return _ended(rollout_id)
        model = {"id": session.model, "object": "model", "created": 0, "owned_by": "crafter-pipeline"}
        return JSONResponse({"object": "list", "data": [model]})

    def _open_session(self, rollout_id: str) -> _Session | None:
        self._forget_idle()
        session = self._sessions.get(rollout_id)
        if session is None or session.calls is not None:
            return None
        session.used_at = self._clock()
        return session


def add_rollout_routes(router: APIRouter, sessions: RolloutSessions) -> None:
    """The routes that need the key."""

    @router.post("/rollouts", status_code=201)
    async def open_rollout(asked: SessionRequest, request: Request) -> dict[str, Any]:
        return sessions.open(asked, request)

    @router.get("/rollouts/{rollout_id}")
    async def read_rollout(rollout_id: str) -> dict[str, Any]:
        return sessions.read(rollout_id)

    @router.post("/rollouts/{rollout_id}/finish")
    async def finish_rollout(rollout_id: str) -> dict[str, Any]:
        return sessions.finish(rollout_id)

    @router.delete("/rollouts/{rollout_id}")
    async def forget_rollout(rollout_id: str) -> dict[str, Any]:
        return sessions.forget(rollout_id)


def _ended(rollout_id: str) -> Response:
    return openai_error(404, f"There is no open rollout {shown(rollout_id)}", "rollout_not_found")
