"""Inference in OpenAI's shape: the hot path. Raw Starlette handlers, one parse of the body."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from crafter_pipeline.errors import ConfigError, DataError, ServiceError
from crafter_pipeline.model_names import is_mlp, student_size
from crafter_pipeline.tokens import TINY
from train_app.answers import openai_error
from train_app.backend import Backend
from train_app.builtin import Model, NoObservation, builtin_models, completion, completion_stream
from train_app.disconnects import Gone, unless_gone
from train_app.guard import Guard
from train_app.inference_proxy import InferenceProxy, Keep
from train_app.jobs import ALIASES, is_moving
from train_app.mlp import MlpModel, Network

LOADED_NETWORKS = 16
PREFIXES = ("/v1", "/api/inference/v1", "/api/v1/inference/v1")
CHAT, COMPLETIONS = "chat/completions", "completions"


class Inference:
    """Finds the model that a request names, and passes the request on."""

    def __init__(self, backend: Backend, proxy: InferenceProxy, guard: Guard) -> None:
        self._backend, self._proxy, self._guard = backend, proxy, guard
        self._builtins = builtin_models()
        self._resolved: dict[str, tuple[str, str]] = {}

    def routes(self) -> list[BaseRoute]:
        """Under every prefix: chat/completions, completions, models, models/{id}."""
        return [
            Route(f"{prefix}{path}", handler, methods=[method])
            for prefix in PREFIXES
            for path, handler, method in (
                (f"/{CHAT}", self.chat, "POST"),
                (f"/{COMPLETIONS}", self.completions, "POST"),
                ("/models", self.models, "GET"),
                ("/models/{name:path}", self.model, "GET"),
            )
        ]

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._serve(request, CHAT)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._serve(request, COMPLETIONS)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        if not self._guard.lets_in(request):
            return _no_key()
        return JSONResponse({"object": "list", "data": [_model_view(name) for name in self._known()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        if not self._guard.lets_in(request):
            return _no_key()
        name = request.path_params["name"]
        if name not in self._builtins and self.weights_of(name) is None:
            return self.no_model(name)
        return JSONResponse(_model_view(name))

    async def pass_on(
        self, request: Request, body: bytes, path: str, found: tuple[str, str], keep: Keep | None = None
    ) -> Response:
        """The inference child's answer.

        Args:
            request: Whose caller waits; its body has been read.
            path: `CHAT` or `COMPLETIONS`.
            found: See `weights_of`.
            keep: Given the answer's tokens.
        """
        source, model_id = found
        forward = self._proxy.forward(body, path=source, model_id=model_id, endpoint=f"/v1/{path}", keep=keep)
        try:
            return await unless_gone(request, forward)
        except ServiceError as e:
            refusal = openai_error(503, str(e), "inference_unavailable")
            refusal.headers["Retry-After"] = "1"
            return refusal
        except Gone:
            return Response(status_code=499)

    def weights_of(self, name: str) -> tuple[str, str] | None:
        """(what to load, id to answer with) of a name: a trained model, the tiny student, an alias, a folder."""
        known = self._resolved.get(name)
        if known is not None:
            return known
        model = self._backend.store.resolve_model(name)
        if model is not None:
            found = (model.path, model.id)
            if not is_moving(name):
                self._resolved[name] = found
            return found
        path = self._backend.store.weights_of(name, self._backend.aliases)
        if (
            path != name
            or student_size(name) is not None
            or (Path(name) / "config.json").is_file()
            or Path(name).suffix == ".gguf"
        ):
            return path, name
        return None

    def no_model(self, name: str) -> Response:
        """404, with the models that there are."""
        known = ", ".join(self._known())
        return openai_error(404, f"There is no model {name!r}. Known: {known}.", "model_not_found")

    # ------------------------------------------------------------------ inside

    async def _serve(self, request: Request, path: str) -> Response:
        if not self._guard.lets_in(request):
            return _no_key()
        raw = await request.body()
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as e:
            return openai_error(400, f"The body is not valid JSON: {e}")
        name = body.get("model") if isinstance(body, dict) else None
        if not isinstance(name, str) or not name:
            return openai_error(400, "`model` is missing.")
        builtin = self._backend.aliases.get(name, name) if name not in self._builtins else name
        if builtin in self._builtins:
            return self._in_process(builtin, self._builtins[builtin], body, path)
        found = self.weights_of(name)
        if found is None:
            return self.no_model(name)
        source, model_id = found
        if not is_mlp(model_id):
            return await self.pass_on(request, raw, path, found)
        try:
            return self._in_process(model_id, _mlp(source), body, path)
        except DataError as e:
            return openai_error(503, str(e), "model_unavailable")

    def _in_process(self, name: str, model: Model, body: Mapping[str, Any], path: str) -> Response:
        if path != CHAT:
            return openai_error(400, f"{name} reads conversations alone; ask it at chat/completions.")
        try:
            if body.get("stream"):
                return Response(completion_stream(name, model, body), media_type="text/event-stream")
            return Response(completion(name, model, body), media_type="application/json")
        except (NoObservation, ConfigError) as e:
            return openai_error(400, str(e))

    def _known(self) -> list[str]:
        trained = (m.id for m in self._backend.store.models(limit=1000))
        held = (alias for alias in ALIASES if self._backend.store.resolve_model(alias) is not None)
        return [*self._builtins, TINY, *self._backend.aliases, *held, *trained]


@lru_cache(maxsize=LOADED_NETWORKS)
def _mlp(folder: str) -> MlpModel:
    return MlpModel(Network.load(folder))


def _model_view(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "crafter-pipeline"}


def _no_key() -> Response:
    return openai_error(401, "API key missing or invalid", "invalid_api_key")
