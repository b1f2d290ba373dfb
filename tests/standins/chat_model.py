"""A chat model that answers by a script, as an httpx transport: no network, every request on record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx

Script = Callable[[dict[str, Any], int], Any]
"""(request body, number of the call from 0) -> text, message dict, or httpx.Response."""


class ScriptedChat:
    """Answers of `script`, or always the same one: text is content, a dict a message, a Response is sent as it is."""

    def __init__(self, script: Script | str | dict[str, Any] = "noop", latency_s: float = 0.0) -> None:
        self.script = script if callable(script) else (lambda body, n: script)
        self.latency_s = latency_s
        self.requests: list[httpx.Request] = []
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0

    async def handle(self, request: httpx.Request) -> httpx.Response:
        number = len(self.requests)
        self.requests.append(request)
        body = json.loads(request.content)
        self.bodies.append(body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.latency_s)
        finally:
            self.at_once -= 1
        said = self.script(body, number)
        if isinstance(said, httpx.Response | Exception):
            if isinstance(said, Exception):
                raise said
            return said
        message = said if isinstance(said, dict) else {"content": said}
        return httpx.Response(
            200,
            json={
                "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13},
            },
        )

    def transport(self) -> httpx.MockTransport:
        """A transport on which every host is this model."""
        return httpx.MockTransport(self.handle)


def tool_call(arguments: Any, name: str = "interact_many") -> dict[str, Any]:
    """A message that calls a tool; `arguments` as a JSON string unless it is one already or None."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": name, "arguments": text}}],
    }
