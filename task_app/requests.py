"""Bodies of requests: read within limits, checked by a model, described for OpenAPI; and how a request is refused.

Every refusal has one of two shapes: `{"detail": {"error": {"code", "message"}}}`, or, where a field is wrong, FastAPI's
422: `{"detail": [{"type", "loc", "msg"}]}`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from crafter_pipeline.clients.http import SHOULD_RETRY
from crafter_pipeline.errors import DataError, FieldError, ModelError

log = logging.getLogger(__name__)
M = TypeVar("M", bound=BaseModel)

MAX_BODY_BYTES = 2_000_000
BODY_SECONDS = 30.0
"""For the whole body to arrive."""
JSON = "application/json"


class Refusal(Exception):
    """A request that is refused as a whole.

    Args:
        status: HTTP status.
        code: A word for programs.
        message: What is wrong and what to do.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


async def read_body(request: Request, model: type[M]) -> M:
    """The JSON body of a request. Refusal (408, 413, 415) or FieldError/ValidationError (422) if it is none."""
    return check(await read_json(request), model)


async def read_json(request: Request, most_bytes: int = MAX_BODY_BYTES) -> Any:
    """The JSON value of a body. NaN, infinity and text that is not UTF-8 are no JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON and not (kind.startswith("application/") and kind.endswith("+json")):
        # Not only order: a browser sends other types across origins without asking, to loopback too.
        raise Refusal(415, "not_json", f"Send the body as JSON, with Content-Type: {JSON}.")
    too_large = Refusal(413, "body_too_large", f"The body is larger than {most_bytes:,} bytes.")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise too_large
    except TimeoutError:
        raise Refusal(408, "body_too_slow", f"The body did not arrive within {BODY_SECONDS:.0f} s.") from None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as e:
        raise FieldError("", f"the body is not JSON: {e}") from None


def check(value: Any, model: type[M]) -> M:
    """The value as a model. ValidationError names what is wrong."""
    if not isinstance(value, dict):
        raise FieldError("", "the body must be a JSON object")
    return model.model_validate(value)


def refused(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a refused request."""
    content = orjson.dumps({"detail": {"error": {"code": code, "message": message}}})
    return Response(content, status, dict(headers or {}), JSON)


def add_refusals(app: FastAPI) -> None:
    """Answer our exceptions: what a handler raises is what the client reads."""

    @app.exception_handler(Refusal)
    async def refusal(_: Request, e: Refusal) -> Response:
        return refused(e.status, e.code, e.message, e.headers)

    @app.exception_handler(FieldError)
    async def wrong_field(_: Request, e: FieldError) -> Response:
        parts = e.field.split(".") if e.field else []
        loc = ["body", *(int(part) if part.isdecimal() else part for part in parts)]
        return _wrong_fields([{"type": "value_error", "loc": loc, "msg": e.message}])

    @app.exception_handler(ValidationError)
    async def wrong_fields(_: Request, e: ValidationError) -> Response:
        errors = e.errors(include_url=False, include_context=False, include_input=False)
        return _wrong_fields([{**error, "loc": ["body", *error["loc"]]} for error in errors])

    @app.exception_handler(ModelError)
    async def model_failed(_: Request, e: ModelError) -> Response:
        return refused(502, f"model_{e.kind}", str(e), {SHOULD_RETRY: "false"})  # the chat client has tried again

    @app.exception_handler(DataError)
    async def traces_failed(_: Request, e: DataError) -> Response:
        log.error("%s", e)
        return refused(503, "traces_unavailable", str(e))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, e: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(Exception)
    async def broken(_: Request, e: Exception) -> Response:  # the server logs the traceback
        return refused(500, "internal_error", "The task app has a bug here; its log has the traceback.")


def _wrong_fields(errors: list[Any]) -> Response:
    return Response(orjson.dumps({"detail": errors}, default=str), 422, media_type=JSON)


# --------------------------------------------------------------------------- OpenAPI


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads its body by `read_body(request, model)`."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


def describe(app: FastAPI, models: Iterable[type[BaseModel]]) -> None:
    """Make the app's OpenAPI document hold the models that its routes take, and how those refuse."""
    bodies = list(models)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, bodies)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI, models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    document.setdefault("components", {}).setdefault("schemas", {}).update(definitions.get("$defs", {}))
    for operations in document["paths"].values():
        for operation in operations.values():
            if "requestBody" in operation:
                operation["responses"] |= _REFUSED
    return document


_REFUSED = {
    "408": {"description": "The body came too slowly."},
    "413": {"description": "The body is too large."},
    "415": {"description": "The body is not JSON."},
    "422": {"description": "A field is wrong; the answer names it."},
}
