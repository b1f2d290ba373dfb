"""Task apps: can they be reached?"""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import APIRouter

from crafter_pipeline.errors import ConfigError
from train_app.answers import Payload

VERIFY_SECONDS = 10.0


def add_task_app_routes(
    router: APIRouter, task_app_key: str | None, transport: httpx.AsyncBaseTransport | None
) -> None:
    """Whether a task app can be reached from here."""

    async def verify(payload: Payload) -> dict[str, Any]:
        url = payload.get("endpoint_base_url")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise ConfigError("endpoint_base_url: the http(s) address of the task app is missing.")
        headers = {"Authorization": f"Bearer {task_app_key}", "X-API-Key": task_app_key} if task_app_key else {}
        attempt: dict[str, Any] = {"url": f"{url.rstrip('/')}/health", "status": None}
        try:
            async with httpx.AsyncClient(transport=transport, timeout=VERIFY_SECONDS) as http:
                attempt["status"] = (await http.get(attempt["url"], headers=headers)).status_code
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            attempt["error"] = f"{type(e).__name__}: {e}"
        # the wire shows the beginnings of keys in candidates_first15; ours stay here
        return {"any_ok": attempt["status"] == 200, "attempts": [attempt], "candidates_first15": []}

    router.add_api_route("/rl/verify_task_app", verify, methods=["POST"])
