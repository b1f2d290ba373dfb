"""Who may come in: a service's keys, in any of three headers.

`X-API-Key: k`, `X-API-Keys: k1,k2` and `Authorization: Bearer k`; one right key is enough. Nothing of a key, neither of
ours nor of the one that was sent, gets into an answer or a log.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping


class ApiKeys:
    """The keys that open a service.

    Args:
        keys: Every key that opens; none: everybody may come in. A blank one opens to nobody.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = [key.encode() for key in keys]

    @property
    def required(self) -> bool:
        """Whether a key is asked for."""
        return bool(self._keys)

    def let_in(self, headers: Mapping[str, str]) -> bool:
        """Whether the headers of a request (names in lower case) hold a right key, or none is asked for."""
        # Every pair is compared, in constant time: how long it takes tells nothing.
        matches = [hmac.compare_digest(sent, key) for sent in _sent(headers) for key in self._keys]
        return not self._keys or any(matches)


def _sent(headers: Mapping[str, str]) -> list[bytes]:
    values = [headers.get("x-api-key", ""), headers.get("x-api-keys", "")]
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        values.append(token)
    return [key.strip().encode() for value in values for key in value.split(",") if key.strip()]
