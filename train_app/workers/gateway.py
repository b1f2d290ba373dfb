"""The inference gateway of an RL job: every rollout has a base URL of its own, and every call is captured.

    POST /rollouts/{id}/v1/chat/completions     sample as the policy; the call is stored under the rollout

The URL is the credential: a 128-bit id that dies with the rollout. Sampling parameters that would bias the ratio
(top_p, temperature) are forced. RL trains on the ids captured here alone, never on re-tokenised text.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from train_app.workers.chat import BadRequest, ChatModel, error_response, json_response, parse_request
from train_app.workers.engine import Sample

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Gateway:
    """Opens and closes rollouts, and serves them."""

    model: ChatModel
    temperature: float
    base_url: str = ""
    _open: dict[str, list[Sample]] = field(default_factory=dict)

    def open(self) -> tuple[str, str]:
        """(rollout id, its base URL)."""
        rollout_id = secrets.token_hex(16)
        self._open[rollout_id] = []
        return rollout_id, f"{self.base_url}/rollouts/{rollout_id}/v1"

    def close(self, rollout_id: str) -> list[Sample]:
        """End a rollout; its captured calls in order. Later calls to its URL get 404."""
        return self._open.pop(rollout_id, [])

    def app(self) -> Starlette:
        """The ASGI app."""
        return Starlette(
            routes=[
                Route("/rollouts/{rollout_id}/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/livez", _livez),
            ]
        )

    async def _chat(self, request: Request) -> Response:
        rollout_id = request.path_params["rollout_id"]
        if rollout_id not in self._open:
            return error_response(404, f"No open rollout {rollout_id[:6]}…", "rollout_not_found")
        try:
            chat = parse_request(await request.body())
            chat.temperature, chat.top_p = self.temperature, 1.0
            sample = await self.model.complete(chat)
        except BadRequest as e:
            return error_response(400, str(e))
        calls = self._open.get(rollout_id)
        if calls is None:
            return error_response(404, f"Rollout {rollout_id[:6]}… has ended.", "rollout_not_found")
        calls.append(sample)
        return json_response(self.model.answer(chat, sample))


async def _livez(_: Request) -> Response:
    return json_response({"status": "ok"})
