"""Uploads end where the limit is, before they fill the disk; strangers' before the first byte."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from train_app.answers import error_body
from train_app.guard import Guard

MAX_UPLOAD_MB = 2048
FORM_BYTES = 64 * 1024
"""What a form may have around its file."""


class UploadLimit:
    """ASGI middleware: forms need the key, and are 413 beyond `limit_mb`.

    A dependency would come too late: forms are read, into a temporary file, before any runs.
    """

    def __init__(self, app: ASGIApp, guard: Guard, limit_mb: int) -> None:
        self._app, self._guard, self._limit_mb = app, guard, limit_mb
        self._limit = limit_mb * 1024 * 1024 + FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_form(scope):
            return await self._app(scope, receive, send)
        refusal = self._refusal(Request(scope))
        if refusal is not None:
            answer = JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
            return await answer(scope, receive, send)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _refusal(self, request: Request) -> HTTPException | None:
        try:
            self._guard.require(request)
        except HTTPException as e:
            return e
        length = request.headers.get("content-length", "")
        return self._too_large() if length.isdigit() and int(length) > self._limit else None

    def _too_large(self) -> HTTPException:
        message = f"The file is larger than {self._limit_mb} MB. Split it, or start the backend with --max-upload-mb."
        return HTTPException(413, error_body("file_too_large", message))


def _is_form(scope: Scope) -> bool:
    return any(name == b"content-type" and value.startswith(b"multipart/") for name, value in scope["headers"])
