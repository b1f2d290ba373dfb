"""Refusals: what a caller sent that cannot be played, said so that it can be corrected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RequestRefused(Exception):
    """A field of a request is missing or wrong: answered as 422, naming the field.

    Args:
        field: Dotted path in the body, e.g. `policy.config.model`.
        message: What is wrong and what to send instead.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


class RunIdConflict(Exception):
    """A run_id is known already, for another request: answered as 409."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of known names when none is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
