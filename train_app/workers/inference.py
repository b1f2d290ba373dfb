"""The inference child: serves trained models to users and to evaluation.

    python -m train_app.workers.inference --data-dir DIR --fd N

    POST /v1/chat/completions     headers X-Model-Path (folder or built-in) and X-Model-Id say which model
    GET  /livez

The API process resolves names and keys; this child loads weights and samples. It keeps the most recent models.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from collections import OrderedDict
from collections.abc import Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from crafter_pipeline.errors import PipelineError
from crafter_pipeline.processes import exit_with_parent
from train_app.workers.chat import BadRequest, ChatModel, error_response, json_response, parse_request
from train_app.workers.engine import Engine
from train_app.workers.students import load_student, use_cpu_threads

MODELS_KEPT = 3


class ModelPool:
    """Models by path, least recently used out first."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, asyncio.Task[ChatModel]] = OrderedDict()

    async def get(self, path: str) -> ChatModel:
        """The model at `path`, loaded at first use; concurrent callers share one load."""
        task = self._models.get(path)
        if task is None:
            task = self._models[path] = asyncio.create_task(asyncio.to_thread(load_chat_model, path))
            while len(self._models) > MODELS_KEPT:
                _, old = self._models.popitem(last=False)
                if old.done() and not old.cancelled() and old.exception() is None:
                    old.result().engine.close()
        self._models.move_to_end(path)
        try:
            return await asyncio.shield(task)
        except PipelineError:
            self._models.pop(path, None)
            raise


def load_chat_model(path: str) -> ChatModel:
    """Weights, tokenizer and a running engine."""
    model, tokenizer = load_student(path)
    context = int(getattr(model.config, "max_position_embeddings", 0) or tokenizer.model_max_length)
    engine = Engine(model, end_ids(model, tokenizer), tokenizer.pad_token_id or 0)
    return ChatModel(engine, tokenizer, context)


def end_ids(model: object, tokenizer: object) -> list[int]:
    """Every token that ends a turn: the tokenizer's and the generation config's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None) or []
    ids = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id}  # type: ignore[attr-defined]
    return sorted(i for i in ids if i is not None)


def make_app() -> Starlette:
    """The child's ASGI app."""
    pool = ModelPool()

    async def chat(request: Request) -> Response:
        path = request.headers.get("x-model-path", "")
        try:
            body = parse_request(await request.body())
            body.model = request.headers.get("x-model-id") or body.model
            model = await pool.get(path)
            sample = await model.complete(body)
        except BadRequest as e:
            return error_response(400, str(e))
        except PipelineError as e:
            return error_response(404, str(e), "model_not_found")
        return json_response(model.answer(body, sample))

    async def livez(_: Request) -> Response:
        return json_response({"status": "ok"})

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/livez", livez)])


def main(argv: Sequence[str]) -> int:
    """Serve on the socket handed over by the parent."""
    parser = argparse.ArgumentParser(prog="train_app.workers.inference")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--fd", type=int, required=True)
    options = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    use_cpu_threads(1)  # one thread: with two, a busy neighbour costs a factor of ten at batch 1
    exit_with_parent()
    sock = socket.socket(fileno=options.fd)
    config = uvicorn.Config(make_app(), log_level="warning", access_log=False, timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[sock])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
