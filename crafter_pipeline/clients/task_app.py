"""The task app over HTTP: health, what it offers, rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
from pydantic import ValidationError

from crafter_pipeline.clients.http import REPEATABLE, json_object, send
from crafter_pipeline.contracts import RolloutRequest, RolloutResponse
from crafter_pipeline.errors import TaskAppError


class TaskAppClient:
    """A task app behind `http` (see `clients.http.service_client`; tests give the real app). Failures: TaskAppError."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def health(self) -> dict[str, Any]:
        """`GET /health`: proves address and key."""
        return self._object(self._send("GET", "/health"), "/health")

    def task_info(self, seeds: Sequence[int] = ()) -> Any:
        """`GET /task_info`: the task set; with one seed its TaskInfo, with several a list of them."""
        return self._send("GET", "/task_info", params={"seed": list(seeds)} if seeds else None).json()

    def rollout(self, request: RolloutRequest) -> RolloutResponse:
        """Play one episode. Safe to repeat: a finished run_id is answered from the ledger."""
        response = self._send(
            "POST",
            "/rollout",
            content=request.model_dump_json(),
            headers={"Content-Type": "application/json"},
            extensions=REPEATABLE,
        )
        try:
            return RolloutResponse.model_validate_json(response.content)
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise TaskAppError(
                f"{self._http.base_url} answered POST /rollout, but not as a task app does: {where}: {first['msg']}"
            ) from e

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return send(
            self._http,
            method,
            path,
            raises=TaskAppError,
            service="task app",
            start_with="crafter-pipeline serve",
            key_name="ENVIRONMENT_API_KEY",
            **arguments,
        )

    def _object(self, response: httpx.Response, path: str) -> dict[str, Any]:
        what = f"{self._http.base_url}{path} is no task app: it answers with something else than JSON."
        return json_object(response, TaskAppError(what))
