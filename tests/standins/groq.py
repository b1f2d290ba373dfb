"""Groq's chat completions as they are on a bad day: rate limits, slow answers, tool calls that failed, errors, pages.

In process: `ChatClient(transport=GroqLike(...).transport())`, whatever the address. For other processes:
`with GroqLike(...).serving() as url`, where url is what stands in for https://api.groq.com/openai/v1.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import httpx
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from crafter_pipeline.processes import listen, url_of
from train_app.builtin import NoObservation, builtin_models, completion

KEY = "gsk-of-the-stand-in"
MODELS = ("qwen/qwen3-32b", "openai/gpt-oss-120b", "openai/gpt-oss-20b", "llama-3.3-70b-versatile")
Fault = Literal["ok", "rate_limited", "slow", "tool_use_failed", "unavailable", "html", "cut"]
KNOWN_FIELDS = frozenset(
    {"model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "user", "seed", "stop", "n"}
    | {"tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "reasoning_format", "include_reasoning"}
    | {"response_format", "stream", "service_tier"}
)
"""Everything else is refused by its name."""
FAILED_GENERATION = '<tool_call>\n{"name": "interact_many", "arguments": {"actions": ["move_right", "move_up"'
PAGE = """<!DOCTYPE html>
<html lang="en"><head><title>api.groq.com | 502: Bad gateway</title></head>
<body><h1>Bad gateway</h1><p>Error code 502</p><footer>Performance &amp; security by cloudflare</footer></body></html>
"""


class GroqLike:
    """Answers as the scripted expert plays.

    Args:
        faults: What the first requests meet, one after the other; then all goes well.
        per_window: So many requests are answered within `window_s` seconds, the others are rate limited.
        retry_after_s: What those are told to wait.
        slow_s: How long a slow answer takes.
    """

    def __init__(
        self,
        faults: Sequence[Fault] = (),
        *,
        key: str = KEY,
        per_window: int | None = None,
        window_s: float = 1.0,
        retry_after_s: float = 1,
        slow_s: float = 0.5,
    ) -> None:
        self.faults: deque[Fault] = deque(faults)
        self.key, self.per_window, self.window_s = key, per_window, window_s
        self.retry_after_s, self.slow_s = retry_after_s, slow_s
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.statuses: list[int] = []
        self.at_once = self.most_at_once = 0
        self._recent: deque[float] = deque()
        self._player = builtin_models()["crafter-expert"]
        self.app = Starlette(
            routes=[
                Route("/openai/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/openai/v1/models", self._models, methods=["GET"]),
            ]
        )

    def transport(self) -> httpx.ASGITransport:
        """A transport on which every host is this one."""
        return httpx.ASGITransport(self.app)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The service on a free port of loopback, in a thread; its base URL."""
        sock = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"{url_of(sock)}/openai/v1"
        finally:
            server.should_exit = True
            thread.join(10.0)
            sock.close()

    # ------------------------------------------------------------------ HTTP

    async def _chat(self, request: Request) -> Response:
        body = orjson.loads(await request.body())
        self.bodies.append(body)
        self.headers.append({k.lower(): v for k, v in request.headers.items()})
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = await self._answer(request, body)
        finally:
            self.at_once -= 1
        self.statuses.append(answer.status_code)
        return answer

    async def _answer(self, request: Request, body: dict[str, Any]) -> Response:
        if request.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "Invalid API Key", "invalid_request_error", "invalid_api_key")
        if strange := sorted(body.keys() - KNOWN_FIELDS):
            return _error(400, f"property '{strange[0]}' is unsupported", "invalid_request_error")
        if body.get("model") not in MODELS:
            what = f"The model `{body.get('model')}` does not exist or you do not have access to it."
            return _error(404, what, "invalid_request_error", "model_not_found")
        fault = self.faults.popleft() if self.faults else "ok"
        if fault == "rate_limited" or self._is_too_much():
            return self._limited(body["model"])
        if fault == "tool_use_failed":
            what = "Failed to call a function. Please adjust your prompt. See 'failed_generation' for more details."
            kind = "invalid_request_error"
            return _error(400, what, kind, "tool_use_failed", failed_generation=FAILED_GENERATION)
        if fault == "unavailable":
            return _error(503, "Service unavailable. Please try again later.", "internal_server_error")
        if fault == "html":
            return HTMLResponse(PAGE, 502, {"server": "cloudflare"})
        await asyncio.sleep(self.slow_s if fault == "slow" else 0.002)
        answer = self._played(body)
        if fault == "cut":
            return Response(orjson.dumps(answer)[:40], media_type="application/json")
        return JSONResponse(answer, headers=self._limits())

    async def _models(self, request: Request) -> Response:
        models = [{"id": name, "object": "model", "owned_by": "stand-in", "active": True} for name in MODELS]
        return JSONResponse({"object": "list", "data": models})

    # ------------------------------------------------------------------ shapes

    def _played(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = orjson.loads(completion(body["model"], self._player, body))
        except NoObservation:
            message = {"role": "assistant", "content": "noop"}
            answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": {}}
        message = answer["choices"][0]["message"]
        thought = message.pop("reasoning_content", "")
        if thought and body["model"].startswith("qwen/") and not body.get("tools"):
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
        elif thought:
            message["reasoning"] = thought
        answer["usage"] |= {"queue_time": 0.02, "prompt_time": 0.01, "completion_time": 0.1, "total_time": 0.11}
        return {**answer, "system_fingerprint": "fp_1", "service_tier": "on_demand", "x_groq": {"id": "req_1"}}

    def _is_too_much(self) -> bool:
        if self.per_window is None:
            return False
        now = time.monotonic()
        while self._recent and now - self._recent[0] > self.window_s:
            self._recent.popleft()
        if len(self._recent) >= self.per_window:
            return True
        self._recent.append(now)
        return False

    def _limited(self, model: str) -> Response:
        what = (
            f"Rate limit reached for model `{model}` in organization `org_1` service tier `on_demand` on requests per "
            f"minute (RPM): Limit 30, Used 30, Requested 1. Please try again in {self.retry_after_s}s."
        )
        headers = {"retry-after": f"{self.retry_after_s:g}", **self._limits(0)}
        return _error(429, what, "requests", "rate_limit_exceeded", headers)

    def _limits(self, left: int = 29) -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": "30",
            "x-ratelimit-limit-tokens": "6000",
            "x-ratelimit-remaining-requests": str(left),
            "x-ratelimit-remaining-tokens": "5900",
            "x-ratelimit-reset-requests": "2m59.56s",
            "x-ratelimit-reset-tokens": "7.66s",
        }


def _error(
    status: int, message: str, kind: str, code: str | None = None, headers: dict[str, str] | None = None, **more: str
) -> Response:
    error = {"message": message, "type": kind, **({"code": code} if code else {}), **more}
    return JSONResponse({"error": error}, status, headers)
