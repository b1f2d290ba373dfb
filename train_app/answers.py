"""Small shapes that many answers share."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from fastapi import Body, Header, Query
from starlette.responses import Response

from crafter_pipeline.errors import ConfigError

Payload = Annotated[dict[str, Any], Body()]
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=200)]
Limit = Annotated[int, Query(ge=1, le=10_000)]


def error_body(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def listed(name: str, views: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A list, under `data` and under its own name: clients differ."""
    return {"object": "list", "data": views, name: views}


def openai_error(status: int, message: str, code: str = "invalid_request") -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return Response(orjson.dumps({"error": error}), status, media_type="application/json")


def moment(text: str, where: str) -> float:
    """Unix seconds of a time that clients write: Unix seconds, ISO 8601 (without a zone: UTC), or `24h` ago.

    ConfigError names `where`.
    """
    ago = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if ago is not None:
        return time.time() - float(ago[1]) * _UNITS[ago[2]]
    try:
        return float(text)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{where}: {text!r} is no time. Write 2026-01-31, 24h (ago), or Unix seconds.") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def iso(at: float | None) -> str | None:
    """ISO 8601 in UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
