"""The task apps that play for a job: checked before it starts, asked in turn, left alone while they do not answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
from httpx_aiohttp import AiohttpTransport
from pydantic import ValidationError

from crafter_pipeline.clients.chat import shown_url
from crafter_pipeline.contracts import RolloutRequest, RolloutResponse
from crafter_pipeline.errors import TaskAppError

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
"""How long a job waits when no task app answers any more."""
START_PATIENCE_SECONDS = 10.0
"""The same before its first rollout, when a wrong address is likelier than an outage."""
PROBE_SECONDS = 1.0
"""Between two looks at a task app that does not answer."""
CHECK_SECONDS = 10.0
"""For an answer to such a look."""

_LOST = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout, httpx.PoolTimeout)
_AWAY = frozenset({502, 503, 504})
_KEY_REFUSED = frozenset({401, 403})
_KEY_CODES = {400: "unauthorised", 503: "missing_environment_api_key"}
_START_IT = "Start it with `crafter-pipeline serve`; the newest checkpoint is kept."


class RolloutFailed(Exception):
    """A task app did not play a rollout, or its answer cannot be trained on. Another attempt may.

    Args:
        url: Of the task app, where the next attempt should avoid it.
    """

    def __init__(self, message: str, url: str | None = None) -> None:
        super().__init__(message)
        self.url = url


class TaskAppLost(RolloutFailed):
    """The task app went away under a rollout."""


@dataclass(slots=True, eq=False)
class _TaskApp:
    url: str
    """Without the slash at the end of its path; a query stays."""
    away_because: str | None = None
    """Why it is not asked now; None: it is."""

    def at(self, path: str) -> str:
        """The URL of a route."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))

    @property
    def shown(self) -> str:
        """For messages: without user info and query."""
        return shown_url(self.url)


class TaskApps:
    """Any number of task apps that play the same. Lives in one event loop.

    Args:
        urls: Their base URLs; a path and a query are kept.
        key: What they ask for.
        event: Called as `event(type, message, level, **data)` with what the job's owner should know.
        transport: For tests: how they are reached.
    """

    def __init__(
        self,
        urls: Sequence[str],
        key: str | None,
        event: Callable[..., None],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._apps = [_TaskApp(url) for url in dict.fromkeys(urls)]
        self._event, self._turn = event, 0
        self._away_since = 0.0
        self._answers = asyncio.Event()
        self._answers.set()
        self._probes: set[asyncio.Task[None]] = set()
        headers = {"X-API-Key": key, "Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        # no deadline here: each request has its own
        self._http = httpx.AsyncClient(
            transport=transport or AiohttpTransport(limits=limits), headers=headers, timeout=None
        )

    async def check(self) -> Mapping[str, Any]:
        """Look at every task app before the first rollout; what they tell about themselves (`/info` of the first).

        Raises:
            TaskAppError: one refuses our key or is no task app, or none answers.
        """
        infos = await asyncio.gather(*(self._checked(app) for app in self._apps))
        if all(app.away_because for app in self._apps):
            await self._wait(START_PATIENCE_SECONDS)
            infos = await asyncio.gather(*(self._checked(app) for app in self._apps if not app.away_because))
        return next((info for info in infos if info is not None), {})

    async def play(self, request: RolloutRequest, *, seconds: float, avoid: str | None = None) -> RolloutResponse:
        """Have a rollout played by the next task app that answers.

        Args:
            seconds: Deadline of the rollout.
            avoid: The URL of one that has failed it, and is asked only when there is no other.

        Raises:
            RolloutFailed: it was not played; `TaskAppLost` when the task app went away.
            TaskAppError: no attempt can succeed: the key or the request is refused, or nobody answers any more.
        """
        app = await self._next(avoid)
        headers = {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(seconds):
                response = await self._http.post(app.at("/rollout"), content=request.model_dump_json(), headers=headers)
        except TimeoutError:
            raise RolloutFailed(f"{app.shown} did not answer within {seconds:g} s", app.url) from None
        except _LOST as e:
            self._lose(app, _reason(e))
            raise TaskAppLost(f"{app.shown} went away: {_reason(e)}", app.url) from e
        if _key_refused(response):
            raise self._refused(app, response)
        if response.status_code in _AWAY:
            self._lose(app, f"it answered {response.status_code}: {response.text[:200]}")
            raise TaskAppLost(f"{app.shown} answered {response.status_code}: {response.text[:200]}", app.url)
        if response.status_code == 422:
            raise TaskAppError(f"The task app at {app.shown} refuses this job's rollouts: {response.text[:500]}")
        if response.status_code != 200:
            raise RolloutFailed(f"{app.shown} answered {response.status_code}: {response.text[:300]}", app.url)
        try:
            answer = RolloutResponse.model_validate_json(response.content)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RolloutFailed(f"{app.shown} answered without {where}: {first['msg']}", app.url) from e
        return answer

    @property
    def shown(self) -> str:
        """Their addresses, for messages."""
        return ", ".join(app.shown for app in self._apps)

    async def aclose(self) -> None:
        """Close the connections."""
        for probe in self._probes:
            probe.cancel()
        await self._http.aclose()

    # ------------------------------------------------------------------ which of them answer

    async def _next(self, avoid: str | None) -> _TaskApp:
        answering: list[_TaskApp] = []
        while not answering:  # one that has come back may be gone again before it is this rollout's turn
            await self._wait(PATIENCE_SECONDS)
            answering = [app for app in self._apps if not app.away_because]
        others = [app for app in answering if app.url != avoid] or answering
        self._turn += 1
        return others[self._turn % len(others)]

    async def _wait(self, patience: float) -> None:
        """Until one of them answers; TaskAppError when none has for so many seconds."""
        if self._answers.is_set():
            return
        try:
            async with asyncio.timeout(max(0.0, self._away_since + patience - time.monotonic())):
                await self._answers.wait()
        except TimeoutError:
            reasons = "; ".join(f"{app.shown}: {app.away_because}" for app in self._apps)
            raise TaskAppError(f"No task app has answered for {patience:g} s ({reasons}). {_START_IT}") from None

    def _lose(self, app: _TaskApp, reason: str) -> None:
        """Leave it alone until it answers again."""
        if app.away_because:
            return
        app.away_because = reason
        left = sum(not other.away_because for other in self._apps)
        if not left:
            self._answers.clear()
            self._away_since = time.monotonic()
        goes_on = f"its rollouts move to the other {left}" if left else f"waiting for it, up to {PATIENCE_SECONDS:g} s"
        self._event(
            "task_app.lost", f"The task app at {app.shown} does not answer ({reason}); {goes_on}.", "warning", left=left
        )
        probe = asyncio.create_task(self._until_back(app))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _until_back(self, app: _TaskApp) -> None:
        answers = False
        while not answers:
            await asyncio.sleep(PROBE_SECONDS)
            try:
                answers = (await self._get(app, "/health")).status_code not in _AWAY
            except httpx.HTTPError:
                continue
        app.away_because = None
        self._answers.set()
        self._event("task_app.back", f"The task app at {app.shown} answers again.", "info")

    # ------------------------------------------------------------------ the first look

    async def _checked(self, app: _TaskApp) -> Mapping[str, Any] | None:
        """What it tells about itself; None: it does not answer."""
        try:
            health, tasks, info = [await self._get(app, path) for path in ("/health", "/task_info", "/info")]
        except httpx.HTTPError as e:
            self._lose(app, _reason(e))
            return None
        if _key_refused(health) or _table(health).get("authorized") is False:
            raise self._refused(app, health)
        for path, response in (("/health", health), ("/task_info", tasks)):
            if response.status_code in _AWAY:
                self._lose(app, f"{path} answered {response.status_code}")
                return None
            if response.status_code != 200:
                raise TaskAppError(
                    f"{app.shown} is no task app that can be trained on: {path} answered {response.status_code}."
                )
        told = _table(info)
        if not _table(tasks).get("taskset") and not told.get("dataset"):
            self._missing(app, "dataset", "whether its seeds are those that you mean cannot be checked")
        if not any((told.get("rubrics") or {}).values()):
            self._missing(app, "rubric", "a judge needs one of its own, in judge.rubric")
        return told

    def _missing(self, app: _TaskApp, what: str, so: str) -> None:
        self._event(f"task_app.no_{what}", f"The task app at {app.shown} advertises no {what}: {so}.", "warning")

    async def _get(self, app: _TaskApp, path: str) -> httpx.Response:
        return await self._http.get(app.at(path), timeout=CHECK_SECONDS)

    def _refused(self, app: _TaskApp, response: httpx.Response) -> TaskAppError:
        sent = "the key that was sent" if "X-API-Key" in self._http.headers else "requests without a key"
        error = TaskAppError(
            f"The task app at {app.shown} refuses {sent} ({response.status_code}). Start the training backend with "
            "ENVIRONMENT_API_KEY set to the key of the task app."
        )
        error.status = response.status_code
        return error


def _reason(error: httpx.HTTPError) -> str:
    """Its words; the transport's names of them can mislead (a lost connection may be a ConnectTimeout)."""
    return str(error) or type(error).__name__


def _table(response: httpx.Response) -> Mapping[str, Any]:
    """The body as an object; empty when it is none."""
    try:
        value = response.json() if response.status_code == 200 else None
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _key_refused(response: httpx.Response) -> bool:
    """Whether it is about the key: 401, 403, or the wire's 400 and 503."""
    code = _KEY_CODES.get(response.status_code)
    return response.status_code in _KEY_REFUSED or (code is not None and code in response.text[:300])
