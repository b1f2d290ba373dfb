"""The one client for OpenAI-compatible chat models: deadlines, retries, 429, keys, thinking.

This is the hottest path of the project: every turn of every rollout is one call. It therefore goes through httpx over
its aiohttp transport, encodes with orjson, and involves the retry machinery only once something failed.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterable, Mapping
from email.utils import parsedate_to_datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, NamedTuple, Self, TypedDict
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import anyio
import httpx
import orjson
import tenacity
from httpx_aiohttp import AiohttpTransport

from crafter_pipeline.answers import REFUSED_CALL
from crafter_pipeline.clients.http import page_in_words, redirect_in_words
from crafter_pipeline.contracts import Reply
from crafter_pipeline.errors import ModelError, ModelFailure
from crafter_pipeline.settings import Settings, load_settings
from crafter_pipeline.thinking import split_thinking

TRIES = 5
BUSY_TRIES = 12
"""Of a call that is answered 429: a host that is busy for two minutes is not broken."""
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 20.0
CONNECT_SECONDS = 20.0
MAX_ANSWER_BYTES = 1_000_000


class ChatRequest(TypedDict, total=False):
    """Body of a chat completion as OpenAI defines it, and one field beyond. Nothing else is ever sent: strict servers
    refuse the rest."""

    model: str
    messages: list[dict[str, Any]]
    temperature: float
    top_p: float
    max_tokens: int
    max_completion_tokens: int
    user: str
    seed: int
    stop: str | list[str]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    reasoning_effort: str
    response_format: dict[str, Any]
    logprobs: bool
    """Left out where it is known to be refused, see `tells_logprobs`."""
    chat_template_kwargs: dict[str, Any]
    """Of vLLM, SGLang and our own servers, as is `return_token_ids`; left out for hosts that are known to refuse it."""
    return_token_ids: bool


STANDARD_FIELDS = frozenset(ChatRequest.__annotations__)
_VENDOR_FIELDS = frozenset({"chat_template_kwargs", "return_token_ids"})
_REFUSED = {"api.openai.com": _VENDOR_FIELDS, "api.groq.com": _VENDOR_FIELDS | {"logprobs"}}
_REASONING_AT_OPENAI = ("gpt-5", "o1", "o3", "o4")  # these refuse `max_tokens` and `logprobs`


PROVIDER_URLS = {"groq": "https://api.groq.com/openai/v1", "openai": "https://api.openai.com/v1"}
"""Providers that need no address."""


def chat_url(base: str) -> str:
    """The chat completions URL of a base URL; its query is kept.

    `…/chat/completions` stays; `…/v1` gets `/chat/completions`; anything else gets `/v1/chat/completions`.
    """
    parts = urlsplit(base)
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions" if path.endswith("/v1") else "/v1/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def tells_logprobs(base: str, model: str) -> bool:
    """False where a request for logprobs is known to be refused; others may still not tell them."""
    host = (urlsplit(base).hostname or "").lower()
    return "logprobs" not in _REFUSED.get(host, ()) and not (
        host == "api.openai.com" and model.startswith(_REASONING_AT_OPENAI)
    )


def shown_url(url: str) -> str:
    """A URL for logs and messages: no user info, no query, and 6 characters of a gateway's rollout id."""
    parts = urlsplit(url)
    path = re.sub(r"(/rollouts/[^/]{1,6})[^/]*", r"\1…", parts.path)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))


class ChatClient:
    """An async client for any number of chat model endpoints; one connection pool. Close it, or use `async with`.

    Args:
        settings: Where API keys come from (a key goes to the host it was made for and to no other), and how many
            calls one host gets at once. ConfigError when its keys cannot be read.
        transport: For tests; default: aiohttp. The calls go to it directly: httpx's client above it (cookies,
            redirects, logs, none of which is wanted here) would cost a third of a call.
        tries: Calls per completion, the first included; a host that answers 429 gets `BUSY_TRIES`.
        first_wait_seconds: Wait before the first retry; it doubles each time, with jitter.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        tries: int = TRIES,
        first_wait_seconds: float = FIRST_WAIT_SECONDS,
    ) -> None:
        self._settings = settings if settings is not None else load_settings()
        _ = self._settings.host_keys  # what is wrong there is said now, not at the first call
        self._transport = transport if transport is not None else _default_transport()
        self._tries, self._first_wait_seconds = tries, first_wait_seconds
        self._hosts: dict[str, _Host] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def complete(
        self, url: str, payload: ChatRequest | Mapping[str, Any], *, deadline_s: float, key: str | None = None
    ) -> Reply:
        """One chat completion.

        Args:
            url: Base URL or full URL, see `chat_url`.
            payload: The request; fields outside `ChatRequest` are left out.
            deadline_s: Seconds for everything: all tries, the waits between them, and the wait for a place among the
                calls that the host gets at once.
            key: Sent to this address instead of the settings' key for its host; kept for no other call.

        Raises:
            ModelError: refused, or failed until the tries or the seconds were used up; `kind` says how.
        """
        deadline = time.monotonic() + deadline_s
        try:
            target = _target(url)
        except (ValueError, httpx.InvalidURL) as e:
            raise ModelError(f"The address of the chat model is not a URL ({e}).", "refused") from e
        host = self._hosts.get(target.origin)
        if host is None:
            own = None if "@" in target.origin else self._settings.inference_key(url)
            host = self._hosts[target.origin] = _Host(target, own, self._settings.inference_max_concurrent)
        body = host.encode(payload)
        try:
            return await self._once(host, target, body, deadline, key)
        except _Transient as e:
            return await self._again(host, target, body, deadline, key, e)

    async def _once(self, host: _Host, target: _Target, body: bytes, deadline: float, key: str | None) -> Reply:
        """One HTTP call: a Reply, `_Transient` if another try may help, ModelError if not."""
        headers = host.headers if key is None else _headers(key)
        request = httpx.Request("POST", target.url, headers=headers, content=body, extensions=_EXTENSIONS)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await host.enter(request)
                started = time.monotonic()
                try:
                    response = await self._transport.handle_async_request(request)
                    content = await _content(response)
                finally:
                    host.leave(request)
        except TimeoutError:
            raise _Transient("no answer before the deadline", "timeout") from None
        except httpx.UnsupportedProtocol as e:
            raise ModelError(f"{target} is not an http(s) address of a chat model.", "refused") from e
        except httpx.DecodingError as e:
            raise ModelError(f"{target} answered with what cannot be unpacked ({e}).", "bad_answer") from e
        except (httpx.TransportError, aiohttp.ClientError) as e:  # not all of aiohttp's are translated
            raise _Transient(" ".join(str(e).split())[:300] or type(e).__name__, "unreachable") from e
        status = response.status_code
        if status == 200:
            host.answered()
            return _read(content, 1000.0 * (time.monotonic() - started), target)
        if status == 400 and (unread := _failed_generation(content)) is not None:
            host.answered()
            return unread
        message, code = _words_of(response, content, key or host.key)
        if status == 429 and "insufficient_quota" not in code:
            host.slow_down(started)
            raise _Transient(message, "rate_limited", _retry_after(response))
        if status in (408, 504):
            raise _Transient(message, "timeout", _retry_after(response))
        if status >= 500:
            raise _Transient(message, "unreachable", _retry_after(response))
        kind: ModelFailure = "context_too_long" if _is_too_long(status, message, code) else "refused"
        if status in (401, 403):
            wanted = "another key" if key or host.key else "a key; none was sent"
            name = self._settings.inference_key_name(str(target.url))
            message = f"{message.rstrip('.')}. It wants {wanted}: set {name}."
        refusal = ModelError(f"The chat model at {target} refused the request: {message}", kind)
        refusal.status = status
        raise refusal

    async def _again(
        self, host: _Host, target: _Target, body: bytes, deadline: float, key: str | None, first: _Transient
    ) -> Reply:
        """Further tries after `first`."""
        last = first

        def enough(state: tenacity.RetryCallState) -> bool:
            return state.attempt_number >= (BUSY_TRIES if last.kind == "rate_limited" else self._tries)

        def wait(state: tenacity.RetryCallState) -> float:
            longest = min(LONGEST_WAIT_SECONDS, self._first_wait_seconds * 2.0 ** (state.attempt_number - 1))
            backoff = longest * random.uniform(0.5, 1.0)
            return backoff if last.retry_after is None else last.retry_after + 0.2 * backoff

        async def sleep(seconds: float) -> None:
            if time.monotonic() + seconds >= deadline:
                raise last
            await asyncio.sleep(seconds)

        pending: _Transient | None = first

        async def attempt() -> Reply:
            nonlocal last, pending
            if pending is not None:  # the first try has been made
                e, pending = pending, None
                raise e
            try:
                return await self._once(host, target, body, deadline, key)
            except _Transient as e:
                last = e
                raise

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Transient), stop=enough, wait=wait, sleep=sleep, reraise=True
        )
        try:
            return await retrying(attempt)
        except _Transient as e:
            raise ModelError(
                f"The chat model at {target} gave no usable answer in the time and the tries it had. Last: {e.reason}",
                e.kind,
            ) from e


class _Transient(Exception):
    """A failure that another try may cure. `retry_after`: seconds the server asked for."""

    def __init__(self, reason: str, kind: ModelFailure, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.retry_after = reason, retry_after
        self.kind: ModelFailure = kind


class _Target(NamedTuple):
    """Where a completion is asked for. Its `str` may be shown."""

    url: httpx.URL
    origin: str
    """scheme://host:port, with user info if there is any."""
    name: str
    """The host's name in lower case."""

    def __str__(self) -> str:
        return shown_url(str(self.url))


@lru_cache(maxsize=4096)  # parsing a URL costs a tenth of a call; a rollout's stays the same
def _target(base: str) -> _Target:
    text = chat_url(base)
    parts = urlsplit(text)
    _ = parts.port  # ValueError for one that is none
    return _Target(httpx.URL(text), f"{parts.scheme}://{parts.netloc}", (parts.hostname or "").lower())


class _Host:
    """One host: our key for it, what it may be sent, and how many calls it gets at once.

    Each answer 429 halves the number of calls (those that were under way together halve it once); as many good answers
    as there are places give one more, up to `most`.
    """

    def __init__(self, target: _Target, key: str | None, most: int) -> None:
        self.key, self.headers = key, _headers(key)
        self._fields = STANDARD_FIELDS - _REFUSED.get(target.name, frozenset())
        self._is_openai = target.name == "api.openai.com"
        self._most = most
        self._places = anyio.CapacityLimiter(most)
        self._good_answers = 0
        self._slowed_at = 0.0

    def encode(self, payload: Mapping[str, Any]) -> bytes:
        """The body of a request."""
        fields = self._fields
        body = payload if payload.keys() <= fields else {k: payload[k] for k in payload if k in fields}
        if self._is_openai and str(body.get("model", "")).startswith(_REASONING_AT_OPENAI):
            body = dict(body)
            body.pop("logprobs", None)
            if (most := body.pop("max_tokens", None)) is not None:
                body.setdefault("max_completion_tokens", most)
        return orjson.dumps(body)

    async def enter(self, call: object) -> None:
        """Take a place, when one is free."""
        try:
            self._places.acquire_on_behalf_of_nowait(call)
        except anyio.WouldBlock:
            await self._places.acquire_on_behalf_of(call)

    def leave(self, call: object) -> None:
        """Give the place back."""
        self._places.release_on_behalf_of(call)

    def answered(self) -> None:
        """A call went well."""
        if (places := self._places).total_tokens < self._most:
            self._good_answers += 1
            if self._good_answers >= places.total_tokens:
                self._good_answers = 0
                places.total_tokens += 1

    def slow_down(self, started: float) -> None:
        """A call, started then (monotonic seconds), was answered 429."""
        if started >= self._slowed_at:
            self._slowed_at, self._good_answers = time.monotonic(), 0
            self._places.total_tokens = max(1, (self._places.borrowed_tokens + 1) // 2)


def _headers(key: str | None) -> httpx.Headers:
    fields = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
    if key is not None:
        fields.append((b"authorization", b"Bearer " + key.encode()))
    return httpx.Headers(fields, encoding="utf-8")


_EXTENSIONS = {"timeout": {"connect": CONNECT_SECONDS}}


def _default_transport() -> AiohttpTransport:
    # Each host has its places, the pool no limit (0: aiohttp's word for none). Idle connections are dropped before
    # uvicorn drops them (5 s): no race for a connection that is being closed.
    return AiohttpTransport(limits=httpx.Limits(max_connections=0, keepalive_expiry=4.0))


async def _content(response: httpx.Response) -> bytes:
    """The answer; of one above `MAX_ANSWER_BYTES` only so much that it shows."""
    packed = "content-encoding" in response.headers  # though we asked for none; else httpx's layers cost a tenth
    stream = response.aiter_bytes() if packed else response.stream
    assert isinstance(stream, AsyncIterable)
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in stream:
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                break
    finally:
        await response.aclose()
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _failed_generation(content: bytes) -> Reply | None:
    """What the model said where its server refuses the answer as a tool call that nobody can read (Groq): an answer
    all the same, and an unreadable one. None: the error is another one."""
    try:
        error = orjson.loads(content)["error"]
        if error.get("code") not in (REFUSED_CALL, "tool_call_failed"):
            return None
        said = error.get("failed_generation")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    text, thinking = split_thinking(said if isinstance(said, str) else "", "")
    return Reply(content=text, thinking=thinking, finish_reason=REFUSED_CALL)


def _words_of(response: httpx.Response, content: bytes, key: str | None) -> tuple[str, str]:
    """(`HTTP 404: model not found`, error code and type): status and the server's own words, without our key should it
    echo it."""
    status, code = response.status_code, ""
    text = content[:2000].decode(errors="replace")
    text = page_in_words(text, response.headers) or redirect_in_words(response) or text
    try:
        answer = orjson.loads(content)
        error = answer.get("error", answer.get("detail", answer))
        text = str(error)
        if isinstance(error, dict):
            text = str(error.get("message", error))
            code = " ".join(str(error[k]) for k in ("code", "type") if error.get(k))
        elif answer.get("message"):
            text = str(answer["message"])
    except (orjson.JSONDecodeError, AttributeError):
        pass
    if key:
        text = text.replace(key, "[key]")
    return f"HTTP {status}: {' '.join(text.split())[:500]}", code


_TOO_LONG = re.compile(
    r"context[_ ](length|size|window|is)|maximum model length|(prompt|input|request) (is )?too (long|large)"
    r"|too many tokens|reduce (the|your) (length|message)",
    re.IGNORECASE,
)
"""The words of OpenAI, Groq, vLLM, SGLang, llama.cpp and our own servers for a prompt that does not fit."""


def _is_too_long(status: int, message: str, code: str) -> bool:
    return status in (400, 413, 422) and _TOO_LONG.search(f"{code} {message}") is not None


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of a Retry-After header, in seconds or as a date."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if seconds == seconds else None  # `nan` is a float, too
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _read(content: bytes, latency_ms: float, target: _Target) -> Reply:
    """A chat completion as a Reply. ModelError if it is none."""
    if len(content) > MAX_ANSWER_BYTES:
        raise ModelError(f"{target} answered with more than {MAX_ANSWER_BYTES:,} bytes.", "bad_answer")
    try:
        answer = orjson.loads(content)
        choice = answer["choices"][0]
        message = choice["message"]
        text = message.get("content")
        thinking = message.get("reasoning_content") or message.get("reasoning") or ""
        calls = message.get("tool_calls")
        finish_reason = choice.get("finish_reason")
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        shown = content[:2000].decode(errors="replace")
        shown = page_in_words(shown) or shown[:200]
        raise ModelError(f"{target} answered, but not with a chat completion: {shown}", "bad_answer") from None
    if not isinstance(text, str):  # null beside tool calls; some servers send parts
        text = "".join(str(p.get("text", "")) for p in text if isinstance(p, dict)) if isinstance(text, list) else ""
    thinking = thinking if isinstance(thinking, str) else str(thinking)
    text, thinking = split_thinking(text, thinking)
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        content=text,
        thinking=thinking,
        tool_calls=tuple(c for c in calls if isinstance(c, dict)) if isinstance(calls, list) else (),
        finish_reason=finish_reason if isinstance(finish_reason, str) else "stop",
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        latency_ms=latency_ms,
        prompt_token_ids=_token_ids(answer.get("prompt_token_ids")),
        token_ids=_token_ids(choice.get("token_ids")),
        logprobs=_logprobs(choice.get("logprobs")),
    )


def _token_ids(told: Any) -> tuple[int, ...] | None:
    """vLLM's lists of token ids; None for what is none."""
    return tuple(told) if isinstance(told, list) and all(type(n) is int for n in told) else None


def _logprobs(told: Any) -> tuple[float, ...] | None:
    """OpenAI's `logprobs.content[].logprob`; None where it is missing for any token."""
    content = told.get("content") if isinstance(told, dict) else None
    if not isinstance(content, list):
        return None
    values = [token.get("logprob") if isinstance(token, dict) else None for token in content]
    numbers = [float(n) for n in values if isinstance(n, int | float)]
    return tuple(numbers) if len(numbers) == len(values) else None


def _count(value: Any) -> int:
    """Tokens as a server counts them; 0 for what is no such number."""
    return value if type(value) is int and 0 <= value < 2**31 else 0
