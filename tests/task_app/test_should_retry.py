"""A model that failed for good is not asked for again by whoever sent the rollout: the chat client has tried."""

from __future__ import annotations

import httpx
import pytest

from crafter_pipeline.clients.http import RetryTransport
from crafter_pipeline.clients.task_app import TaskAppClient
from crafter_pipeline.contracts import RolloutRequest
from crafter_pipeline.errors import TaskAppError


@pytest.mark.parametrize("status", [401, 500])
def test_a_failed_model_is_tried_once_per_try_of_its_client(serve, make_chat, make_body, status):
    chat = make_chat(lambda body, n: httpx.Response(status, json={"error": {"message": "no"}}))
    app = serve(chat)
    waits: list[float] = []

    def forward(request: httpx.Request) -> httpx.Response:
        answer = app.request(request.method, request.url.path, content=request.content, headers=dict(request.headers))
        return httpx.Response(answer.status_code, headers=dict(answer.headers), content=answer.content)

    transport = RetryTransport(httpx.MockTransport(forward), tries=4, sleep=waits.append)
    with httpx.Client(transport=transport, base_url="http://testserver") as http:
        with pytest.raises(TaskAppError, match="502"):
            TaskAppClient(http).rollout(RolloutRequest.model_validate({"mode": "eval", **make_body()}))
    assert waits == [] and len(chat.requests) == (1 if status == 401 else 5)
