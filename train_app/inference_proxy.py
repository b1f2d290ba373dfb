"""The inference child and the way to it: raw bytes in, raw bytes out.

The child (`train_app.workers.inference`) holds the weights. It starts at the first call for a model with weights,
stops when nobody has called for ten minutes, and is started again if it died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from starlette.responses import Response

from crafter_pipeline.errors import ServiceError
from crafter_pipeline.processes import Service
from train_app.disconnects import ClosingStream

IDLE_SECONDS = 600.0
START_SECONDS = 120.0
ANSWER_SECONDS = 900.0
MODULE = "train_app.workers.inference"

CAPTURED_EVENT = b"event: captured\ndata: "

log = logging.getLogger(__name__)

Keep = Callable[[list[dict[str, Any]]], None]
"""Given the tokens of an answered request, a view per choice (`workers.capture.choices_view`)."""


class InferenceProxy:
    """Passes completions on to the child, which it starts and stops.

    Args:
        data_dir: Handed to the child; its log is `inference.log` there.
        module: For tests: another child with the same command line (`--data-dir DIR --fd N`).
    """

    def __init__(self, data_dir: Path, module: str = MODULE, idle_seconds: float = IDLE_SECONDS) -> None:
        self._data_dir, self._module, self._idle_seconds = data_dir, module, idle_seconds
        self._service: Service | None = None
        self._client: aiohttp.ClientSession | None = None
        self._starting = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self._in_flight, self._used_at = 0, time.monotonic()

    @property
    def running(self) -> bool:
        return self._service is not None

    async def forward(
        self, body: bytes, *, path: str, model_id: str, endpoint: str = "/v1/chat/completions", keep: Keep | None = None
    ) -> Response:
        """The child's answer to the same bytes.

        Args:
            path: Folder, hub name or built-in whose weights answer (header X-Model-Path).
            model_id: The name that the answer carries (header X-Model-Id).
            endpoint: Which of the child's routes.
            keep: Called with what was captured, which the answer then does not tell.

        Raises:
            ServiceError: the child does not start, or broke off.
        """
        headers = {"Content-Type": "application/json", "X-Model-Path": path, "X-Model-Id": model_id}
        if keep is not None:
            headers["X-Capture"] = "true"
        self._in_flight += 1
        streams = False
        try:
            client = await self._ready()
            answer = await client.post(endpoint, data=body, headers=headers)
            kind = answer.headers.get("content-type", "application/json")
            passed = {name: answer.headers[name] for name in ("Retry-After",) if name in answer.headers}
            if kind.startswith("text/event-stream"):
                streams = True
                return ClosingStream(
                    self._relay(answer, keep), lambda: self._end(answer), status_code=answer.status, headers=passed
                )
            content = await answer.read()
            if keep is not None and answer.status == 200:
                content = _without_captured(content, keep)
            return Response(content, answer.status, passed, media_type=kind)
        except (aiohttp.ClientError, TimeoutError) as e:
            raise ServiceError(f"The inference child broke off: {e!r}. Its log: {self._log}") from e
        finally:
            if not streams:
                self._done()

    async def close(self) -> None:
        """Stop the child."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        async with self._starting:
            await self._stop()

    # ------------------------------------------------------------------ inside

    @property
    def _log(self) -> Path:
        return self._data_dir / "inference.log"

    async def _relay(self, answer: aiohttp.ClientResponse, keep: Keep | None) -> AsyncIterator[bytes]:
        try:
            if keep is None:
                async for chunk in answer.content.iter_any():
                    yield chunk
                return
            while event := await answer.content.readuntil(b"\n\n"):
                if event.startswith(CAPTURED_EVENT):
                    keep(orjson.loads(event[len(CAPTURED_EVENT) :])["captured"])
                else:
                    yield event
        except (aiohttp.ClientError, TimeoutError) as e:
            log.warning("the inference child broke off in a stream: %r", e)

    def _end(self, answer: aiohttp.ClientResponse) -> None:
        answer.close()
        self._done()

    def _done(self) -> None:
        self._in_flight -= 1
        self._used_at = time.monotonic()

    def _alive(self) -> bool:
        return self._service is not None and self._service.process is not None and self._service.process.poll() is None

    async def _ready(self) -> aiohttp.ClientSession:
        if self._client is not None and self._alive():
            return self._client
        async with self._starting:
            if self._client is None or not self._alive():
                await self._stop()
                await self._start()
            assert self._client is not None
            return self._client

    async def _start(self) -> None:
        service = Service("inference child", self._module, ["--data-dir", str(self._data_dir)], log=self._log)
        try:
            await asyncio.to_thread(service.start)
            await asyncio.to_thread(service.wait_ready, START_SECONDS)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(service.stop))
            raise
        self._client = aiohttp.ClientSession(
            base_url=service.url,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, connect=10.0),
            read_bufsize=2**20,
            trust_env=False,
        )
        self._service = service
        if self._watch is None:
            self._watch = asyncio.create_task(self._stop_when_idle())
        log.info("inference child started at %s, log %s", service.url, self._log)

    async def _stop(self) -> None:
        client, service, self._client, self._service = self._client, self._service, None, None
        if client is not None:
            await client.close()
        if service is not None:
            await asyncio.to_thread(service.stop)

    async def _stop_when_idle(self) -> None:
        while True:
            await asyncio.sleep(min(30.0, self._idle_seconds / 4))
            async with self._starting:
                idle = time.monotonic() - self._used_at
                if self._service is not None and not self._in_flight and idle > self._idle_seconds:
                    log.info("inference child idle for %.0f s: stopped", idle)
                    await self._stop()


def _without_captured(content: bytes, keep: Keep) -> bytes:
    """An answer without the tokens that it was asked to tell, which are kept."""
    answer = orjson.loads(content)
    keep(answer.pop("captured"))
    return orjson.dumps(answer)
