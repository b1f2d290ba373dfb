"""Several task apps behind one list of addresses: each seed has its own, and when that one is gone, the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from crafter_pipeline.services import ServiceGone, needing

T = TypeVar("T")

REST_SECONDS = 30.0
"""A task app that was gone is asked last for so long: to find out again costs seconds for each seed."""

_gone: dict[str, float] = {}
"""Address -> when nobody answered there."""


def turns(urls: Sequence[str], seed: int) -> list[str]:
    """Whom to ask for a seed: always the same one, whose ledger knows it; then the others. Who is gone comes last."""
    first = seed % len(urls)
    in_turn = [*urls[first:], *urls[:first]]
    rested = time.monotonic() - REST_SECONDS
    return sorted(in_turn, key=lambda url: _gone.get(url, rested) > rested)


def ask(urls: Sequence[str], seed: int, inference_url: str, send: Callable[[str], T]) -> T:
    """What `send(url)` returns for the seed's task app, or for the next one where that one is gone.

    Raises ServiceGone when no task app is left, or when nobody serves the model at `inference_url`.
    """
    *others, last = turns(urls, seed)
    for url in others:
        try:
            with needing(url, inference_url):
                return send(url)
        except ServiceGone as e:
            if e.url != url:
                raise
            _gone[url] = time.monotonic()
    with needing(last, inference_url):
        return send(last)
