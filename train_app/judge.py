"""Judging an episode over HTTP, in the wire's shape.

    POST /judge/v1/score    a trace, by a program or a chat model: reviews of each turn and of the outcome

`options.model` names the judge: `programmatic`, or a chat model. Its address is `options.inference_url`, else that of
`options.provider` (groq, openai), else our own /v1. The rubric is the request's, else the one that the task app at
`task_app.base_url` shows in /info.

Refusals: 400 the trace cannot be judged, 404 no such rubric or model, 422 a field is wrong, 429 the chat model is busy,
502 the chat model or the task app failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import orjson
from fastapi import APIRouter, HTTPException
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp

from crafter_pipeline.clients.chat import PROVIDER_URLS, ChatClient
from crafter_pipeline.contracts import Rollout
from crafter_pipeline.errors import DataError, FieldError, ModelError, TaskAppError
from crafter_pipeline.judging.model import CALL_SECONDS, CONCURRENCY, ModelJudge
from crafter_pipeline.judging.programmatic import ProgrammaticJudge
from crafter_pipeline.judging.record import JudgeRecord
from crafter_pipeline.judging.review import Judge, judge_rollout
from crafter_pipeline.judging.rubric import PROGRAMMATIC, Rubrics, read_rubrics
from crafter_pipeline.judging.trace import read_trace

OWN_URL = "http://this-backend/v1"
"""Our own chat models, reached without a socket."""
OWN_PROVIDERS = ("", "local", "crafter-pipeline", "synth")
INFO_SECONDS = 10.0
NOT_APPLIED = {
    "tracks": "a rubric's criteria say what is judged",
    "weights": "each criterion of a rubric has its weight",
}
"""Options of the wire without effect here."""


class _Wire(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class TaskAppRef(_Wire):
    """Where the episode was played."""

    id: str = ""
    base_url: str | None = Field(default=None, pattern=r"^https?://[^/]")


class Trace(_Wire):
    """A structured trace; what published clients send has no `session_time_steps`."""

    session_id: str | None = None
    session_time_steps: list[dict[str, Any]] = Field(default_factory=list)
    event_history: list[dict[str, Any]]
    markov_blanket_message_history: list[dict[str, Any]] = Field(default_factory=list)
    metadata: dict[str, Any] = Field(default_factory=dict)


class Options(_Wire):
    """Who judges what."""

    model: str = Field(min_length=1)
    provider: str | None = None
    inference_url: str | None = Field(default=None, pattern=r"^https?://[^/]")
    rubric_id: str | None = None
    """Of the task app's rubric: its environment's name, whatever follows a slash."""
    rubric_overrides: dict[str, Any] | None = None
    """Instead of the rubric."""
    event: bool = True
    """Whether turns are judged."""
    outcome: bool = True
    """Whether the episode is judged."""
    timeout_s: float = Field(default=CALL_SECONDS, gt=0, le=600)
    """Of each call of the chat model."""
    max_concurrency: int = Field(default=CONCURRENCY, ge=1, le=64)
    """Calls at once."""


class JudgeRequest(_Wire):
    """Body of `POST /judge/v1/score`."""

    policy_name: str = ""
    task_app: TaskAppRef = TaskAppRef()
    trace: Trace
    rubric: dict[str, Any] | None = None
    options: Options


class JudgeDesk:
    """Judges traces; opens its chat clients and its record when first asked for a chat model.

    Args:
        backend: Our own app, whose /v1 serves chat models.
        api_key: What our own app asks for.
        record: File of the judge's calls.
        task_app_key: Sent to task apps.
        task_app_transport: For tests: how task apps are reached.
        model_transport: For tests: how chat models elsewhere are reached.
    """

    def __init__(
        self,
        backend: ASGIApp,
        *,
        api_key: str | None,
        record: Path,
        task_app_key: str | None = None,
        task_app_transport: httpx.AsyncBaseTransport | None = None,
        model_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._own_transport = _OwnTransport(backend, api_key)
        self._record_path = record
        self._record: JudgeRecord | None = None
        self._headers = {"Authorization": f"Bearer {task_app_key}", "X-API-Key": task_app_key} if task_app_key else {}
        self._task_app_transport, self._model_transport = task_app_transport, model_transport
        self._chats: dict[bool, ChatClient] = {}

    async def close(self) -> None:
        """Close what was opened."""
        for chat in self._chats.values():
            await chat.aclose()
        if self._record is not None:
            self._record.close()

    async def score(self, request: JudgeRequest) -> dict[str, Any]:
        """The wire's answer. FieldError, DataError, ModelError, TaskAppError, HTTPException 404."""
        options = request.options
        rollout = await run_in_threadpool(lambda: read_trace(request.trace.model_dump()))
        rubrics = (await self._rubrics(request, rollout)).only(outcome=options.outcome, events=options.event)
        if rubrics == Rubrics():
            raise FieldError("options", "event and outcome are both off, or the rubric has nothing for them")
        judge = self._judge(options)
        try:
            review = await judge_rollout(rollout, rubrics, judge)
        except FieldError as e:
            raise e.below("rubric") from None
        extra = options.model_extra or {}
        return {
            "status": "ok",
            **review.to_wire(),
            "metadata": {
                "judge": review.judge,
                "policy_name": request.policy_name,
                "task_app": request.task_app.id,
                "run_id": rollout.run_id,
                "turns": len(rollout.turns),
                "not_applied": {name: reason for name, reason in NOT_APPLIED.items() if extra.get(name)},
            },
        }

    def _judge(self, options: Options) -> Judge:
        if options.model == PROGRAMMATIC:
            return ProgrammaticJudge()
        provider = (options.provider or "").lower()
        url = options.inference_url or PROVIDER_URLS.get(provider)
        if url is None and provider not in OWN_PROVIDERS:
            raise FieldError(
                "options.provider",
                f"no address is known for {options.provider!r}; send options.inference_url, or provider groq or openai",
            )
        if self._record is None:
            self._record = JudgeRecord(self._record_path)
        return ModelJudge(
            self._chat(own=url is None),
            url=url or OWN_URL,
            model=options.model,
            record=self._record,
            concurrency=options.max_concurrency,
            call_seconds=options.timeout_s,
        )

    def _chat(self, *, own: bool) -> ChatClient:
        if own not in self._chats:
            self._chats[own] = ChatClient(transport=self._own_transport if own else self._model_transport)
        return self._chats[own]

    async def _rubrics(self, request: JudgeRequest, rollout: Rollout) -> Rubrics:
        options, app = request.options, request.task_app
        for field, given in (("options.rubric_overrides", options.rubric_overrides), ("rubric", request.rubric)):
            if given is not None:
                return read_rubrics(given, field)
        if app.base_url is None:
            raise FieldError("rubric", "send a rubric, or task_app.base_url of a task app that has one")
        if options.rubric_id is not None:
            name = options.rubric_id.partition("/")[0].lower()
            if name not in (app.id.lower(), rollout.environment.lower()):
                raise _refusal(404, "not_found", f"There is no rubric {options.rubric_id!r}; send it as `rubric`.")
        rubrics = await self._shown_rubrics(app.base_url)
        if rubrics is None:
            raise _refusal(404, "not_found", f"The task app at {app.base_url} has no rubrics; send one as `rubric`.")
        return rubrics

    async def _shown_rubrics(self, base_url: str) -> Rubrics | None:
        """Of the task app's /info; None: it has none."""
        url = f"{base_url.rstrip('/')}/info"
        try:
            async with httpx.AsyncClient(transport=self._task_app_transport, timeout=INFO_SECONDS) as http:
                answer = await http.get(url, headers=self._headers)
            shown = answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as e:
            raise TaskAppError(f"{url} gives no rubrics: {type(e).__name__}: {e}") from e
        if not isinstance(shown, dict):
            raise TaskAppError(f"{url} gives no rubrics: it answered {answer.status_code}.")
        rubrics = shown.get("rubrics")
        if not isinstance(rubrics, Mapping) or not any(rubrics.values()):
            return None
        try:
            return read_rubrics(rubrics, "rubrics")
        except FieldError as e:
            raise TaskAppError(f"{url} shows a rubric that cannot be read: {e}") from e


class _OwnTransport(httpx.ASGITransport):
    """Calls our own app in this process, with its key."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        super().__init__(app, raise_app_exceptions=False)
        self._key = api_key

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return await super().handle_async_request(request)


def _refusal(status: int, code: str, message: str) -> HTTPException:
    return HTTPException(status, {"error": {"code": code, "message": message}})


def read_request(raw: bytes) -> JudgeRequest:
    """The body of a request, read by a thread: traces are large. HTTPException 400, RequestValidationError."""
    try:
        return JudgeRequest.model_validate(orjson.loads(raw))
    except orjson.JSONDecodeError as e:
        raise _refusal(400, "invalid_json", f"The body is not valid JSON: {e}") from None
    except ValidationError as e:
        raise RequestValidationError(e.errors()) from None


def add_judge_routes(router: APIRouter, desk: JudgeDesk) -> None:
    """Score traces."""

    async def score(request: Request) -> dict[str, Any]:
        body = await run_in_threadpool(read_request, await request.body())
        try:
            return await desk.score(body)
        except FieldError as e:
            raise _refusal(422, "invalid_field", str(e)) from None
        except DataError as e:
            raise _refusal(400, "invalid_trace", str(e)) from None
        except ModelError as e:
            status = 404 if e.status == 404 else 429 if e.kind == "rate_limited" else 502
            raise _refusal(status, f"model_{e.kind}", str(e)) from None

    router.add_api_route("/judge/v1/score", score, methods=["POST"])
