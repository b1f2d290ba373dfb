"""The inference gateway of a worker's rollouts: each has a base URL of its own, and every call is captured.

    POST /rollouts/{id}/v1/chat/completions     sample as the policy; the call is kept under the rollout
    POST /rollouts/{id}/v1/completions          the same for text or token ids
    GET  /rollouts/{id}/v1/models               the policy, by its only name

The URL is the credential: a 128-bit id that dies with the rollout. RL trains on the tokens captured here alone, never
on re-tokenised text, and takes their probabilities as those of the whole distribution. So what a request says of the
distribution (temperature, top_p, top_k, min_p, penalties, a seed that would make equal siblings, …) is overridden:
the rollout's temperature and nothing else. What only ends an answer (max_tokens, stop) counts.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crafter_pipeline.deployment import is_local
from train_app.workers.capture import CapturedCall, Captures, shown
from train_app.workers.inference.chat import ChatModel
from train_app.workers.inference.requests import BadRequest
from train_app.workers.inference.sampling import Sample
from train_app.workers.inference.serving import answer, error_response, json_response

LOOPBACK = "127.0.0.1"
OVERRIDDEN = frozenset(
    ("temperature", "top_p", "top_k", "top_a", "min_p", "typical_p", "seed", "presence_penalty", "frequency_penalty")
    + ("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "logit_bias", "bad_words", "min_tokens")
    + ("use_beam_search", "best_of", "ignore_eos", "allowed_token_ids")
)
"""Fields of a request that change the distribution that is sampled from."""


@dataclass(slots=True)
class Gateway:
    """Opens and closes rollouts, and serves them."""

    model: ChatModel
    _captures: Captures = field(default_factory=Captures)
    _temperatures: dict[str, float] = field(default_factory=dict)

    def open(self, temperature: float) -> str:
        """A new rollout's id; it is sampled at this temperature."""
        rollout_id = self._captures.open()
        self._temperatures[rollout_id] = temperature
        return rollout_id

    def close(self, rollout_id: str) -> list[CapturedCall]:
        """End a rollout; its calls in order. Later calls to its URL get 404, late answers are not kept."""
        self._temperatures.pop(rollout_id, None)
        return self._captures.close(rollout_id)

    def app(self) -> Starlette:
        """The ASGI app."""
        return Starlette(
            routes=[
                Route("/rollouts/{rollout_id}/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/rollouts/{rollout_id}/v1/completions", self._complete, methods=["POST"]),
                Route("/rollouts/{rollout_id}/v1/models", self._models),
                Route("/livez", _livez),
            ]
        )

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, "chat/completions")

    async def _complete(self, request: Request) -> Response:
        return await self._answer(request, "completions")

    async def _answer(self, request: Request, path: str) -> Response:
        rollout_id = request.path_params["rollout_id"]
        temperature = self._temperatures.get(rollout_id)
        if temperature is None:
            return _ended(rollout_id)

        def keep(samples: Sequence[Sample]) -> dict[str, Any]:
            if len(samples) != 1:
                raise BadRequest("n: a turn is one answer to one prompt; ask for one choice.", param="n")
            if not self._captures.add(rollout_id, path, samples):
                raise BadRequest(f"Rollout {shown(rollout_id)} has ended.", "rollout_not_found", status=404)
            return {}

        body = on_policy(await request.body(), temperature)
        return await answer(self.model, request, chat=path.startswith("chat"), body=body, keep=keep)

    async def _models(self, request: Request) -> Response:
        rollout_id = request.path_params["rollout_id"]
        if rollout_id not in self._captures:
            return _ended(rollout_id)
        return json_response({"object": "list", "data": [{"id": "policy", "object": "model", "owned_by": "local"}]})


def address_for(task_app_urls: Sequence[str]) -> str:
    """The address of this machine by which the task apps reach a gateway: loopback while they are all here."""
    for url in task_app_urls:
        if not is_local(url):
            parts = urlsplit(url)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing: asks the routing table
                try:
                    probe.connect((parts.hostname or "", parts.port or 80))
                except OSError:
                    continue  # the check of the task app says that its host is unknown
                return str(probe.getsockname()[0])
    return LOOPBACK


def on_policy(body: bytes, temperature: float) -> bytes:
    """A request's body that samples as the policy does: what changes the distribution is taken out."""
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body  # whoever parses it says so
    if not isinstance(asked, dict):
        return body
    kept = {name: value for name, value in asked.items() if name not in OVERRIDDEN}
    return orjson.dumps({**kept, "temperature": temperature})


def samples_of(calls: Sequence[CapturedCall]) -> tuple[Sample, ...]:
    """One sample per call, in order."""
    return tuple(sample for call in calls for sample in call.samples)


def _ended(rollout_id: str) -> Response:
    return error_response(404, f"There is no open rollout {shown(rollout_id)}", "rollout_not_found")


async def _livez(_: Request) -> Response:
    return json_response({"status": "ok"})
