"""The scripted expert in a chat client's place: episodes as the task app plays them, with no HTTP between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from crafter_pipeline.contracts import Reply
from crafter_pipeline.environments import CRAFTER
from crafter_pipeline.scripted import CrafterPlayer, reply_of


class ExpertChat:
    """Plays one episode of Crafter.

    Args:
        told: What a served model would tell of its answers besides, by the fields of `Reply`.
    """

    def __init__(self, **told: Any) -> None:
        self._player, self._told = CrafterPlayer(), told

    async def complete(self, url: str, payload: Mapping[str, Any], *, deadline_s: float, key: Any) -> Reply:
        """A call of the tool where one is offered, else text."""
        decision = self._player.decide(payload["messages"])
        reply = reply_of(decision, CRAFTER, by_tool="tools" in payload, call_id="call_0123456789ab")
        return replace(reply, **self._told)
