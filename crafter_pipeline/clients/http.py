"""HTTP to our services: one client, one policy of retries and limits, one translation of failures.

What is tried again: a connection that could not be made, 429 and 503 (nothing was done), and 500, 502, 504 or a lost
connection for requests that may be sent twice (GET, or marked by `REPEATABLE`), unless the answer says that it is of no
use (`SHOULD_RETRY`). Timeouts of an answer are final.
"""

from __future__ import annotations

import html
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit, urlunsplit

import httpx
import tenacity

from crafter_pipeline.errors import ConfigError, ServiceError

TRIES = 4
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
CONNECT_SECONDS = 10.0
CONNECTIONS = 512
REPEATABLE = {"repeatable": True}
"""`extensions=` of a request that may safely be sent twice: a rollout (keyed by run_id), a job with a key."""
SHOULD_RETRY = "x-should-retry"
"""Header of an error: `false` where who answers has tried everything itself. OpenAI's clients read it, too."""

_REFUSED = frozenset({429, 503})
_BROKEN = frozenset({500, 502, 504})
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_LOST = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)

log = logging.getLogger(__name__)
# httpx logs whole URLs at INFO, and the URL of an inference gateway is a credential.
logging.getLogger("httpx").setLevel(logging.WARNING)


class RetryTransport(httpx.BaseTransport):
    """Sends a request up to `tries` times over another transport, see the module's text for when.

    Args:
        transport: What sends.
        sleep: Called with the seconds to wait; for tests.
    """

    def __init__(
        self, transport: httpx.BaseTransport, *, tries: int = TRIES, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._transport, self._tries, self._sleep = transport, tries, sleep

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        may_repeat = request.method in ("GET", "HEAD", "PUT", "DELETE") or bool(request.extensions.get("repeatable"))
        errors = (*_NOT_SENT, *_LOST) if may_repeat else _NOT_SENT
        codes = _REFUSED | _BROKEN if may_repeat else _REFUSED
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(errors)
            | tenacity.retry_if_result(
                lambda response: response.status_code in codes and response.headers.get(SHOULD_RETRY) != "false"
            ),
            stop=tenacity.stop_after_attempt(self._tries),
            wait=_wait,
            sleep=self._sleep,
            before_sleep=_before_sleep,
            retry_error_callback=_last_outcome,
        )
        return retrying(self._transport.handle_request, request)

    def close(self) -> None:
        self._transport.close()


def service_client(
    base_url: str,
    api_key: str | None = None,
    timeout: float = 60.0,
    *,
    transport: httpx.BaseTransport | None = None,
    tries: int = TRIES,
    sleep: Callable[[float], None] = time.sleep,
) -> httpx.Client:
    """A client of one of our services, with the one retry and limit policy.

    Args:
        base_url: With or without `/api` or `/api/v1` at its end.
        api_key: Sent as Bearer and as X-API-Key, to this host alone: redirects are not followed.
        timeout: Seconds for an answer.
        transport: What sends; default: httpx's own. Tests give a MockTransport.

    ConfigError when `base_url` cannot be an address.
    """
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    inner = transport if transport is not None else httpx.HTTPTransport(limits=limits)
    try:
        root = httpx.URL(service_root(base_url))
    except httpx.InvalidURL as e:
        raise ConfigError(f"{base_url!r} is no address ({e}); write http://host:port.") from e
    return httpx.Client(
        base_url=root,
        headers={"Authorization": f"Bearer {api_key}", "X-API-Key": api_key} if api_key else {},
        timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
        transport=RetryTransport(inner, tries=tries, sleep=sleep),
    )


def service_root(url: str) -> str:
    """The address without `/api`, `/api/v1` and slashes at its end."""
    url = url.strip().rstrip("/")
    for suffix in ("/api/v1", "/api"):
        if url.endswith(suffix):
            return url.removesuffix(suffix).rstrip("/")
    return url


class _Answer(Protocol):
    @property
    def status_code(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def json(self) -> Any: ...


def send(
    http: httpx.Client,
    method: str,
    path: str,
    *,
    raises: type[ServiceError],
    service: str,
    start_with: str,
    key_name: str,
    **arguments: Any,
) -> httpx.Response:
    """One request whose every failure is `raises`, in a sentence that says what to do.

    Args:
        service: For messages, e.g. "task app".
        start_with: The command that starts it.
        key_name: The variable that holds its key.
        arguments: Passed on to `httpx.Client.request`.
    """
    with _translated(http, f"{method} {path}", raises, service, start_with):
        response = http.request(method, path, **arguments)
    _require_success(http, response, raises, service, key_name)
    return response


def download(
    http: httpx.Client,
    path: str,
    into: BinaryIO,
    *,
    raises: type[ServiceError],
    service: str,
    start_with: str,
    key_name: str,
    **arguments: Any,
) -> None:
    """`GET path` into an open file, piece by piece; the other arguments and the errors are those of `send`."""
    with (
        _translated(http, f"GET {path}", raises, service, start_with),
        http.stream("GET", path, **arguments) as response,
    ):
        if response.status_code >= 300:
            response.read()
        else:
            for block in response.iter_bytes(1 << 20):
                into.write(block)
    _require_success(http, response, raises, service, key_name)


@contextmanager
def _translated(
    http: httpx.Client, what: str, raises: type[ServiceError], service: str, start_with: str
) -> Iterator[None]:
    """Failures of the connection as `raises`."""
    try:
        yield
    except _NOT_SENT as e:
        raise raises(f"No {service} at {http.base_url}. Start one with `{start_with}`.") from e
    except httpx.TimeoutException as e:
        raise raises(f"The {service} at {http.base_url} gave no answer to {what} in time.") from e
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as e:
        raise raises(f"{str(http.base_url)!r} is not the address of a {service}; write http://host:port.") from e
    except httpx.HTTPError as e:
        raise raises(f"The {service} at {http.base_url} broke off {what}: {type(e).__name__}: {e}") from e


def _require_success(
    http: httpx.Client, response: httpx.Response, raises: type[ServiceError], service: str, key_name: str
) -> None:
    """An answer that is an error as `raises`."""
    if response.status_code < 300:
        return
    words = words_of(response)
    request = response.request
    says = f"answered {response.status_code} to {request.method} {request.url.path}: {words}"
    if response.status_code in (401, 403):
        sent = "refuses the key" if "x-api-key" in http.headers else "asks for a key, and none is set"
        says = f"{sent}. Set {key_name} to its key. ({words})"
    elif where := redirect_in_words(response):
        says = f"{where}, and keys follow no redirect. Is this the {service}'s address, without a login before it?"
    refusal = raises(f"The {service} at {http.base_url} {says}")
    refusal.status = response.status_code
    raise refusal


def json_object(response: _Answer, complaint: ServiceError) -> dict[str, Any]:
    """The answer's body; raises `complaint` when it is not a JSON object, with a word on what it is."""
    try:
        body = response.json()
    except ValueError:
        if page := page_in_words(response.text):
            complaint.args = (f"{complaint} It is {page}.",)
        raise complaint from None
    if not isinstance(body, dict):
        raise complaint
    return body


def page_in_words(text: str, headers: Mapping[str, str] | None = None) -> str:
    """`an HTML page: 502 Bad Gateway, nginx`, of a page that a proxy or a login sends; empty: the text is no page."""
    start = text[:1000].lstrip().lower()
    if not start.startswith("<") or not any(word in start for word in ("<!doctype html", "<html", "<head", "<body")):
        return ""
    found = re.search(r"<(title|h1)[^>]*>(.*?)</\1\s*>", text, re.IGNORECASE | re.DOTALL)
    title = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", found[2])).split())[:100] if found else "without a title"
    server = str((headers or {}).get("server") or "").split("/")[0]
    if server.lower() in ("", "uvicorn"):
        server = next((name for name in ("nginx", "cloudflare", "openresty") if name in text.lower()), "")
    return f"an HTML page: {title}" + (f", {server}" if server and server.lower() not in title.lower() else "")


def redirect_in_words(response: httpx.Response) -> str:
    """`redirects (302) to https://…/login`, without the query; empty: it does not."""
    if not 300 <= response.status_code < 400 or "location" not in response.headers:
        return ""
    to = urlsplit(response.headers["location"])
    place = urlunsplit((to.scheme, to.netloc.rpartition("@")[2], to.path, "", ""))[:200]
    return f"redirects ({response.status_code}) to {place}"


def words_of(response: _Answer) -> str:
    """What an error answer says, whichever of the known shapes it has; at most 2,000 characters."""
    try:
        body = response.json()
    except ValueError:
        return page_in_words(response.text, response.headers) or response.text.strip()[:2000] or "no reason given"
    for key in ("detail", "error", "message"):
        while isinstance(body, dict) and key in body:
            body = body[key]
    return str(body)[:2000]


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds before the next try: the server's wish (`Retry-After`, seconds or a date), else doubling; bounded."""
    seconds = FIRST_WAIT_SECONDS * 2.0 ** (state.attempt_number - 1)
    outcome = state.outcome
    if outcome is not None and not outcome.failed:
        wish = outcome.result().headers.get("retry-after", "")
        try:
            seconds = float(wish) if wish.isdigit() else parsedate_to_datetime(wish).timestamp() - time.time()
        except (ValueError, TypeError):
            pass
    return min(LONGEST_WAIT_SECONDS, max(0.0, seconds))


def _before_sleep(state: tenacity.RetryCallState) -> None:
    request, outcome = state.args[0], state.outcome
    assert outcome is not None and state.next_action is not None
    if outcome.failed:
        why = repr(outcome.exception())
    else:
        why = f"status {outcome.result().status_code}"
        outcome.result().close()
    log.info("%s %s: %s; again in %.1f s", request.method, request.url.host, why, state.next_action.sleep)


def _last_outcome(state: tenacity.RetryCallState) -> httpx.Response:
    """Out of tries: the caller gets the last answer, or its exception."""
    assert state.outcome is not None
    response: httpx.Response = state.outcome.result()
    return response
