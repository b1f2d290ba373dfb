"""The task app over HTTP: health, what it offers, rollouts, and live environments step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from crafter_pipeline.clients.http import REPEATABLE, json_object, send
from crafter_pipeline.contracts import RolloutRequest, RolloutResponse
from crafter_pipeline.errors import TaskAppError

KEY_HEADERS = ("authorization", "x-api-key", "x-api-keys")


class NoLiveRoutes(TaskAppError):
    """The task app plays whole rollouts only: it has no `/create`, `/step` and so on."""


@dataclass(frozen=True, slots=True)
class LiveEnvironment:
    """An environment that was made or restored."""

    env_id: str
    observation: dict[str, Any]
    """The environment's state; `text` is what a policy sees."""
    answer: dict[str, Any]
    """The whole body."""

    @property
    def text(self) -> str:
        return text_of(self.observation)


@dataclass(frozen=True, slots=True)
class LiveStep:
    """What one turn brought."""

    observation: dict[str, Any]
    reward: float
    done: bool
    info: dict[str, Any]

    @property
    def text(self) -> str:
        return text_of(self.observation)


def text_of(observation: Mapping[str, Any]) -> str:
    """What a policy sees of a low-level observation."""
    return str(observation.get("text") or "")


class TaskAppClient:
    """A task app behind `http` (see `clients.http.service_client`; tests give the real app). Failures: TaskAppError."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    @property
    def url(self) -> str:
        """Its address."""
        return str(self._http.base_url).rstrip("/")

    @property
    def has_key(self) -> bool:
        """Whether a key travels with the requests."""
        return any(name in self._http.headers for name in KEY_HEADERS)

    def health(self) -> dict[str, Any]:
        """`GET /health`: proves address and key."""
        return self._object("GET", "/health")

    def service(self) -> str:
        """The app's name, from `GET /`."""
        return str(self._object("GET", "/").get("service") or "")

    def info(self) -> dict[str, Any]:
        """`GET /info`."""
        return self._object("GET", "/info")

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

    def state_of(self, run_id: str) -> str | None:
        """running, completed, aborted or failed; None where the task app does not know the rollout."""
        try:
            return str(self._object("GET", f"/run/status/{quote(run_id)}").get("status"))
        except TaskAppError as e:
            if e.status in (404, 405):
                return None
            raise

    def status_without_key(self, method: str, path: str, key: str | None = None) -> int:
        """The HTTP status that somebody gets who has no key, or a wrong one."""
        request = self._http.build_request(method, path, json={} if method == "POST" else None)
        for name in KEY_HEADERS:
            request.headers.pop(name, None)
        if key is not None:
            request.headers["X-API-Key"] = key
        try:
            return self._http.send(request).status_code
        except httpx.HTTPError as e:
            raise TaskAppError(f"The task app at {self.url} broke off {method} {path}: {type(e).__name__}: {e}") from e

    # ------------------------------------------------------------------ live environments

    def create(self, environment: str, seed: int, config: Mapping[str, Any]) -> LiveEnvironment:
        """A new environment. NoLiveRoutes if the task app has none."""
        try:
            body = self._object("POST", "/create", json={"env_name": environment, "seed": seed, "config": dict(config)})
        except TaskAppError as e:
            if e.status in (404, 405):
                raise NoLiveRoutes(f"The task app at {self.url} has no route POST /create.") from e
            raise
        return self._live("/create", body)

    def step(self, env_id: str, tool_name: str, arguments: Mapping[str, Any]) -> LiveStep:
        """One turn: a call of the environment's tool."""
        call = {"tool_name": tool_name, "arguments": dict(arguments)}
        body = self._object("POST", "/step", json={"env_id": env_id, "tool_calls": [call]})
        observation, reward = body.get("observation"), body.get("reward")
        if not isinstance(observation, dict) or not isinstance(reward, (int, float)):
            raise self._odd("/step")
        over = bool(body.get("done")) or bool(body.get("truncated"))
        return LiveStep(observation, float(reward), over, body.get("info") or {})

    def reset(self, env_id: str, seed: int) -> dict[str, Any]:
        """The environment from its start, in the world of `seed`; the answer as it is."""
        return self._object("POST", "/reset", json={"env_id": env_id, "seed": seed})

    def snapshot(self, env_id: str) -> str:
        """The id of a copy of the state."""
        return str(self._object("POST", "/snapshot", json={"env_id": env_id}).get("snapshot_id") or "")

    def restore(self, snapshot_id: str) -> LiveEnvironment:
        """A new environment that goes on from a snapshot."""
        return self._live("/restore", self._object("POST", "/restore", json={"snapshot_id": snapshot_id}))

    def terminate(self, env_id: str) -> None:
        """Drop an environment."""
        self._object("POST", "/terminate", json={"env_id": env_id})

    def _live(self, path: str, body: dict[str, Any]) -> LiveEnvironment:
        env_id, observation = body.get("env_id"), body.get("observation")
        if not isinstance(env_id, str) or not isinstance(observation, dict):
            raise self._odd(path)
        return LiveEnvironment(env_id, observation, body)

    def _odd(self, path: str) -> TaskAppError:
        return TaskAppError(f"{self.url} answered POST {path}, but not as a task app does.")

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

    def _object(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        what = f"{self._http.base_url}{path} is no task app: it answers with something else than JSON."
        return json_object(self._send(method, path, **arguments), TaskAppError(what))
