"""Work that nobody waits for any more is stopped, and what it held is given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class Gone(Exception):
    """The caller has disconnected; there is nobody to answer."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives; it is cancelled when the caller disconnects, and that raises Gone.

    The request's body must have been read.
    """
    task = asyncio.create_task(work)
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await task
    except asyncio.CancelledError:
        task.cancel()
        if gone:
            raise Gone from None
        raise
    finally:
        watcher.cancel()


class ClosingStream(StreamingResponse):
    """A stream that is closed when it ends, breaks off, or was never read.

    Args:
        events: The stream's parts.
        close: Called once.
    """

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None], **options: Any) -> None:
        super().__init__(events, media_type="text/event-stream", **options)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()
