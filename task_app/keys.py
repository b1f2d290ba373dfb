"""Who may come in: the task app's key and its aliases, in any of three headers.

`X-API-Key: k`, `X-API-Keys: k1,k2` and `Authorization: Bearer k`; one right key is enough. Nothing of a key, neither of
ours nor of the one that was sent, gets into an answer or a log.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping

from starlette.requests import Request

from task_app.requests import Refusal


class KeyCheck:
    """A dependency of every closed route: Refusal 401 without a right key.

    Args:
        keys: Every key that opens; blanks do not count. None: everybody may come in.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = [key.strip().encode() for key in keys if key.strip()]

    @property
    def required(self) -> bool:
        """Whether a key is asked for."""
        return bool(self._keys)

    async def __call__(self, request: Request) -> None:
        if self._keys and not self._opens(request.headers):
            raise Refusal(
                401,
                "unauthorised",
                "API key missing or invalid. Send it as X-API-Key or Authorization: Bearer.",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _opens(self, headers: Mapping[str, str]) -> bool:
        # Every pair is compared, in constant time: how long it takes tells nothing.
        matches = [hmac.compare_digest(sent, key) for sent in _sent(headers) for key in self._keys]
        return any(matches)


def _sent(headers: Mapping[str, str]) -> list[bytes]:
    values = [headers.get("x-api-key", ""), headers.get("x-api-keys", "")]
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        values.append(token)
    return [key.strip().encode() for value in values for key in value.split(",")]
