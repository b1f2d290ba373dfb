"""The one client for OpenAI-compatible chat models: deadlines, retries, 429, keys, thinking.

This is the hottest path of the project: every turn of every rollout is one call. It therefore goes through httpx over
its aiohttp transport, encodes with orjson, and involves the retry machinery only once something failed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, Self, TypedDict
from urllib.parse import urlsplit, urlunsplit

import httpx
import orjson
import tenacity
from httpx_aiohttp import AiohttpTransport

from crafter_pipeline.contracts import Reply
from crafter_pipeline.errors import ModelError
from crafter_pipeline.settings import Settings, load_settings
from crafter_pipeline.thinking import split_thinking

CONNECTIONS = 512
TRIES = 5
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 20.0
CONNECT_SECONDS = 20.0

# httpx logs whole URLs at INFO, and the URL of an inference gateway is a credential.
logging.getLogger("httpx").setLevel(logging.WARNING)


class ChatRequest(TypedDict, total=False):
    """Body of a chat completion as OpenAI defines it. Nothing else is ever sent: strict servers refuse the rest."""

    model: str
    messages: list[dict[str, Any]]
    temperature: float
    top_p: float
    max_tokens: int
    user: str
    seed: int
    stop: str | list[str]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    response_format: dict[str, Any]


STANDARD_FIELDS = frozenset(ChatRequest.__annotations__)
_RENAMED_AT_OPENAI = ("gpt-5", "o1", "o3", "o4")  # these refuse `max_tokens`


def chat_url(base: str) -> str:
    """The chat completions URL of a base URL; its query is kept.

    `…/chat/completions` stays; `…/v1` gets `/chat/completions`; anything else gets `/v1/chat/completions`.
    """
    parts = urlsplit(base)
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions" if path.endswith("/v1") else "/v1/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def shown_url(url: str) -> str:
    """A URL for logs and messages: no user info, no query, and 6 characters of a gateway's rollout id."""
    parts = urlsplit(url)
    path = re.sub(r"(/rollouts/[^/]{1,6})[^/]*", r"\1…", parts.path)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))


class ChatClient:
    """An async client for any number of chat model endpoints; one connection pool. Close it, or use `async with`.

    Args:
        settings: Where API keys come from; a key goes to the host it was made for and to no other.
        http: An httpx client for tests; default: the aiohttp transport with a pool of `CONNECTIONS`.
        tries: Calls per completion, the first included.
        first_wait_seconds: Wait before the first retry; it doubles each time, with jitter.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        http: httpx.AsyncClient | None = None,
        tries: int = TRIES,
        first_wait_seconds: float = FIRST_WAIT_SECONDS,
    ) -> None:
        self._settings = settings if settings is not None else load_settings()
        self._http = http if http is not None else _default_http()
        self._tries, self._first_wait_seconds = tries, first_wait_seconds
        self._headers: dict[str, list[tuple[bytes, bytes]]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def complete(self, url: str, payload: ChatRequest | Mapping[str, Any], *, deadline_s: float) -> Reply:
        """One chat completion.

        Args:
            url: Base URL or full URL, see `chat_url`.
            payload: The request; fields outside `ChatRequest` are left out.
            deadline_s: Seconds for everything: all tries and the waits between them.

        Raises:
            ModelError: refused (a 4xx other than 429), or failed until the tries or the seconds were used up.
        """
        url = chat_url(url)
        body = _encode(url, payload)
        deadline = time.monotonic() + deadline_s
        try:
            return await self._once(url, body, deadline)
        except _Transient as e:
            return await self._again(url, body, deadline, e)

    async def _once(self, url: str, body: bytes, deadline: float) -> Reply:
        """One HTTP call: a Reply, `_Transient` if another try may help, ModelError if not."""
        started = time.monotonic()
        request = httpx.Request("POST", _parsed(url), headers=self._headers_for(url), content=body)
        try:
            async with asyncio.timeout(deadline - started):
                response = await self._http.send(request)
        except TimeoutError:
            raise _Transient("no answer before the deadline", None) from None
        except httpx.UnsupportedProtocol as e:
            raise ModelError(f"{shown_url(url)} is not an http(s) address of a chat model.") from e
        except httpx.TransportError as e:
            raise _Transient(f"{type(e).__name__}: {e}" if str(e) else type(e).__name__, None) from e
        latency_ms = 1000.0 * (time.monotonic() - started)
        if response.status_code == 200:
            return _read(response.content, latency_ms, url)
        message = self._words_of(response, url)
        if response.status_code == 429 or response.status_code >= 500:
            raise _Transient(message, _retry_after(response))
        raise ModelError(f"The chat model at {shown_url(url)} refused the request: {message}")

    async def _again(self, url: str, body: bytes, deadline: float, first: _Transient) -> Reply:
        """Further tries after `first`."""
        last = first

        def wait(state: tenacity.RetryCallState) -> float:
            longest = min(LONGEST_WAIT_SECONDS, self._first_wait_seconds * 2.0 ** (state.attempt_number - 1))
            backoff = longest * random.uniform(0.5, 1.0)
            return backoff if last.retry_after is None else max(last.retry_after, 0.1 * backoff)

        async def sleep(seconds: float) -> None:
            if time.monotonic() + seconds >= deadline:
                raise self._giving_up(url, last)
            await asyncio.sleep(seconds)

        pending: _Transient | None = first

        async def attempt() -> Reply:
            nonlocal last, pending
            if pending is not None:  # the first try has been made
                e, pending = pending, None
                raise e
            try:
                return await self._once(url, body, deadline)
            except _Transient as e:
                last = e
                raise

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            stop=tenacity.stop_after_attempt(self._tries),
            wait=wait,
            sleep=sleep,
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except _Transient as e:
            raise self._giving_up(url, e) from e

    def _giving_up(self, url: str, last: _Transient) -> ModelError:
        return ModelError(
            f"The chat model at {shown_url(url)} gave no usable answer in the time and the {self._tries} tries it had."
            f" Last: {last.reason}"
        )

    def _headers_for(self, url: str) -> list[tuple[bytes, bytes]]:
        origin = url.split("/", 3)[2]
        headers = self._headers.get(origin)
        if headers is None:
            headers = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
            key = self._settings.inference_key(url)
            if key is not None:
                headers.append((b"authorization", b"Bearer " + key.encode()))
            self._headers[origin] = headers
        return headers

    def _words_of(self, response: httpx.Response, url: str) -> str:
        """`HTTP 404: model not found`: status and the server's own words, without our key should it echo it."""
        text = response.text[:2000]
        try:
            parsed = orjson.loads(response.content)
            error = parsed.get("error", parsed.get("detail", parsed))
            text = error["message"] if isinstance(error, dict) and "message" in error else str(error)
        except (orjson.JSONDecodeError, AttributeError):
            pass
        key = self._settings.inference_key(url)
        if key:
            text = text.replace(key, "[key]")
        return f"HTTP {response.status_code}: {' '.join(str(text).split())[:500]}"


class _Transient(Exception):
    """A failure that another try may cure. `retry_after`: seconds the server asked for."""

    def __init__(self, reason: str, retry_after: float | None) -> None:
        super().__init__(reason)
        self.reason, self.retry_after = reason, retry_after


_parsed = lru_cache(maxsize=1024)(httpx.URL)  # parsing a URL costs a tenth of a call; a rollout's stays the same


def _default_http() -> httpx.AsyncClient:
    # Idle connections are dropped before uvicorn drops them (5 s): no race for a connection that is being closed.
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=4.0)
    return httpx.AsyncClient(
        transport=AiohttpTransport(limits=limits),
        timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        follow_redirects=False,  # a redirect could carry a key to another host
        trust_env=False,
    )


def _encode(url: str, payload: Mapping[str, Any]) -> bytes:
    fields = payload if payload.keys() <= STANDARD_FIELDS else {k: payload[k] for k in payload if k in STANDARD_FIELDS}
    if "api.openai.com" in url and str(fields.get("model", "")).startswith(_RENAMED_AT_OPENAI):
        fields = {"max_completion_tokens" if k == "max_tokens" else k: v for k, v in fields.items()}
    return orjson.dumps(fields)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of a Retry-After header, in seconds or as a date."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _read(content: bytes, latency_ms: float, url: str) -> Reply:
    """A chat completion as a Reply. ModelError if it is none."""
    try:
        answer = orjson.loads(content)
        choice = answer["choices"][0]
        message = choice["message"]
        text = message.get("content")
        thinking = message.get("reasoning_content") or message.get("reasoning") or ""
        usage = answer.get("usage") or {}
        calls = message.get("tool_calls")
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        shown = content[:200].decode(errors="replace")
        raise ModelError(f"{shown_url(url)} answered, but not with a chat completion: {shown}") from None
    if not isinstance(text, str):  # null beside tool calls; some servers send parts
        text = "".join(str(p.get("text", "")) for p in text if isinstance(p, dict)) if isinstance(text, list) else ""
    thinking = thinking if isinstance(thinking, str) else str(thinking)
    text, thinking = split_thinking(text, thinking)
    return Reply(
        content=text,
        thinking=thinking,
        tool_calls=tuple(c for c in calls if isinstance(c, dict)) if isinstance(calls, list) else (),
        finish_reason=choice.get("finish_reason") or "stop",
        prompt_tokens=usage.get("prompt_tokens") or 0,
        completion_tokens=usage.get("completion_tokens") or 0,
        latency_ms=latency_ms,
    )
