"""Who may ask."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.requests import Request

from crafter_pipeline.api_keys import ApiKeys
from train_app.answers import error_body


class Guard:
    """Refuses requests without the key."""

    def __init__(self, api_key: str | None) -> None:
        self._keys = ApiKeys((api_key,) if api_key else ())

    def lets_in(self, request: Request) -> bool:
        """Whether the request carries the key in one of the known headers."""
        return self._keys.let_in(request.headers)

    def require(self, request: Request) -> None:
        """A dependency: 401 without the key."""
        if not self.lets_in(request):
            detail = error_body("unauthorised", "API key missing or invalid")
            raise HTTPException(401, detail, headers={"WWW-Authenticate": "Bearer"})
