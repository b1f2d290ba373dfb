"""A teacher as vLLM serves one: `/v1/completions` with the log-probabilities of the prompt's own tokens."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import torch


class VllmTeacher(httpx.MockTransport):
    """Answers with a model's real numbers.

    Args:
        model, tokenizer: The teacher.
        failures: Requests that are answered 503 first.
    """

    def __init__(self, model: Any, tokenizer: Any, failures: int = 0) -> None:
        super().__init__(self._answer)
        self._model, self._tokenizer, self._failures = model.eval(), tokenizer, failures
        self.requests: list[dict[str, Any]] = []

    def _answer(self, request: httpx.Request) -> httpx.Response:
        body = orjson.loads(request.content)
        self.requests.append({"path": request.url.path, "headers": dict(request.headers), **body})
        if self._failures:
            self._failures -= 1
            return httpx.Response(503, json={"error": {"message": "busy"}})
        if body.get("model") != "big":
            return httpx.Response(404, json={"error": {"message": f"The model `{body.get('model')}` does not exist."}})
        choices = [self._choice(i, ids, body.get("prompt_logprobs")) for i, ids in enumerate(body["prompt"])]
        return httpx.Response(200, json={"object": "text_completion", "model": "big", "choices": choices[::-1]})

    @torch.no_grad()
    def _choice(self, index: int, ids: list[int], prompt_logprobs: int | None) -> dict[str, Any]:
        logp = self._model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        told: list[Any] = [None]
        for place, token in enumerate(ids[1:]):
            piece = self._tokenizer.decode([token])
            told.append({str(token): {"logprob": float(logp[place, token]), "rank": 1, "decoded_token": piece}})
        shown = None if prompt_logprobs is None else told
        return {"index": index, "text": "x", "finish_reason": "length", "prompt_logprobs": shown}
