"""Chat completions through the task app, for clients that hold no vendor's key.

The request goes on as it came, less the fields that the vendor refuses; nothing is added to the prompt, and the answer
comes back as it is. The vendor gets our key and none of the caller's headers.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
from fastapi import APIRouter, Request, Response
from pydantic import Field, SecretStr

from crafter_pipeline.contracts import Wire
from crafter_pipeline.settings import Settings, reveal
from task_app.requests import JSON, Refusal, check, read_json, takes

MAX_REQUEST_BYTES = 20_000_000
"""Pictures are large."""
MAX_ANSWER_BYTES = 10_000_000
SECONDS = 300.0
_REFUSED_BY_VENDORS = frozenset(
    {"stop_after_tool_calls", "thinking_mode", "thinking_budget", "reasoning", "extra_body"}
)
_NO_SAMPLING = ("gpt-5", "o1", "o3", "o4")
"""Models of OpenAI that take neither temperature nor top_p, and `max_completion_tokens` for `max_tokens`."""


@dataclass(frozen=True, slots=True)
class Vendor:
    """A host that we forward to."""

    name: str
    url: str


OPENAI = Vendor("openai", "https://api.openai.com/v1/chat/completions")
GROQ = Vendor("groq", "https://api.groq.com/openai/v1/chat/completions")


class ProxyRequest(Wire):
    """A chat completion as OpenAI defines it; further fields are passed on."""

    model: str = Field(min_length=1)
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool = False
    """Refused if true: answers come whole."""


class Proxy:
    """Forwards to the vendors.

    Args:
        settings: Where their keys come from.
        http: For tests; default: a client that is made when it is first needed.
    """

    def __init__(self, settings: Settings, http: httpx.AsyncClient | None = None) -> None:
        self._keys: dict[str, SecretStr | None] = {"openai": settings.openai_api_key, "groq": settings.groq_api_key}
        self._http = http

    def endpoints(self) -> dict[str, str]:
        """The routes that can work here: {vendor: path}."""
        return {vendor.name: path for path, vendor in ROUTES.items() if self._keys[vendor.name]}

    async def forward(self, vendor: Vendor, body: dict[str, Any]) -> bytes:
        """The vendor's answer. Refusal with the vendor's status, 502 or 504 if there is none, 503 without a key."""
        code, key = f"{vendor.name}_error", reveal(self._keys[vendor.name])
        if not key:
            name = f"{vendor.name}_api_key"
            raise Refusal(503, f"missing_{name}", f"The task app has no {name.upper()}; set it where it is served.")
        request = httpx.Request(
            "POST",
            vendor.url,
            headers={"authorization": f"Bearer {key}", "content-type": JSON},
            content=orjson.dumps(accepted(body, vendor)),
        )
        try:
            async with asyncio.timeout(SECONDS):
                response = await self._client().send(request, stream=True)
                try:
                    answer = await _read(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise Refusal(504, code, f"{vendor.name} gave no answer in {SECONDS:.0f} s.") from None
        except httpx.HTTPError as e:
            raise Refusal(502, code, f"{vendor.name} cannot be reached: {type(e).__name__}.") from None
        if response.status_code != 200:
            status = response.status_code if response.status_code >= 400 else 502
            retry = response.headers.get("retry-after")
            words = answer[:2000].decode(errors="replace").replace(key, "[key]")
            message = f"{vendor.name} answered HTTP {response.status_code}: {words}"
            raise Refusal(status, code, message, {"Retry-After": retry} if retry else None)
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.aclose()

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = httpx.AsyncClient(timeout=httpx.Timeout(None, connect=20.0), follow_redirects=False)
        return self._http


def accepted(body: dict[str, Any], vendor: Vendor) -> dict[str, Any]:
    """The request as the vendor takes it."""
    fields = {name: value for name, value in body.items() if name not in _REFUSED_BY_VENDORS}
    if "functions" not in fields:  # the published client sends it beside `tools`
        fields.pop("function_call", None)
    if vendor is OPENAI and str(fields.get("model", "")).startswith(_NO_SAMPLING):
        fields = {name: value for name, value in fields.items() if name not in ("temperature", "top_p")}
        if "max_tokens" in fields:
            fields.setdefault("max_completion_tokens", fields.pop("max_tokens"))
    return fields


async def _read(response: httpx.Response) -> bytes:
    answer = bytearray()
    async for part in response.aiter_bytes():
        answer += part
        if len(answer) > MAX_ANSWER_BYTES:
            raise Refusal(502, "answer_too_large", f"The answer is larger than {MAX_ANSWER_BYTES:,} bytes.")
    return bytes(answer)


ROUTES = {"/proxy/v1/chat/completions": OPENAI, "/proxy/groq/v1/chat/completions": GROQ}


def add_proxy_routes(router: APIRouter, proxy: Proxy) -> None:
    """A route for each vendor."""

    def route_of(vendor: Vendor) -> Any:
        async def complete(request: Request) -> Response:
            body = await read_json(request, MAX_REQUEST_BYTES)
            if check(body, ProxyRequest).stream:
                raise Refusal(422, "no_streaming", "Answers come whole here: leave `stream` out.")
            return Response(await proxy.forward(vendor, body), media_type=JSON)

        return complete

    for path, vendor in ROUTES.items():
        name = f"proxy_{vendor.name}"
        router.add_api_route(path, route_of(vendor), methods=["POST"], name=name, openapi_extra=takes(ProxyRequest))
