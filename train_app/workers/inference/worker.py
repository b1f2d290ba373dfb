"""The inference child: serves models with weights to users and to evaluation.

    python -m train_app.workers.inference --data-dir DIR --fd N

    POST /v1/chat/completions     headers X-Model-Path (folder, hub name or built-in) and X-Model-Id say which model;
    POST /v1/completions          with X-Capture the answer tells the tokens, too, as `captured`
    GET  /livez

The API process resolves names and keys; this child loads weights and samples, several models at a time.
"""

from __future__ import annotations

import argparse
import functools
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from crafter_pipeline.errors import PipelineError, ServiceError
from crafter_pipeline.processes import exit_with_parent
from train_app.adapters import base_of, is_adapter
from train_app.workers.capture import choices_view
from train_app.workers.devices import Hardware, free_memory, probe, threads_for, use_cpu_threads
from train_app.workers.inference.chat import ChatModel
from train_app.workers.inference.engine import Engine
from train_app.workers.inference.pool import Loaded, ModelPool
from train_app.workers.inference.sampling import Sample
from train_app.workers.inference.serving import answer, error_response, json_response
from train_app.workers.inference.vllm import VllmEngine, VllmOptions, VllmServer, vllm_serves
from train_app.workers.students import load_student, parameters_of

MEMORY_SHARE = 0.5
"""Of the device's free memory, for the weights of all models; the rest is for what they remember of prompts."""


def load_chat_model(path: str, folder: Path) -> Loaded:
    """A model that answers: on CUDA by vLLM where that is installed, else by an engine of this process, on the fastest
    device that is there.

    Args:
        path: Folder, GGUF file, hub name or built-in.
        folder: For vLLM's log.

    Raises:
        PipelineError: there are no weights at `path`.
        ServiceError: vLLM did not start.
    """
    hardware = probe(parameters=parameters_of(path))
    if vllm_serves(path, hardware.device):
        return _served_by_vllm(path, hardware, folder)
    model, tokenizer = load_student(path, hardware=hardware)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    engine = Engine(model, end_ids(model, tokenizer), tokenizer.pad_token_id or 0)
    return Loaded(ChatModel(engine, tokenizer, context_of(model.config, tokenizer)), size)


def _served_by_vllm(path: str, hardware: Hardware, folder: Path) -> Loaded:
    base, rank = path, None
    if is_adapter(path):
        base = base_of(path)
        rank = int(json.loads(Path(path, "adapter_config.json").read_text(encoding="utf-8"))["r"])
    tokenizer = AutoTokenizer.from_pretrained(path)
    config = AutoConfig.from_pretrained(base)
    options = VllmOptions(
        context=context_of(config, tokenizer),
        dtype="bfloat16" if hardware.bf16 else "float32",
        lora_rank=rank,
        adapter=path if rank is not None else None,
    )
    server = VllmServer(base, options, folder / "vllm.log")
    server.start()
    ends = end_ids(_generation(base), tokenizer)
    engine = VllmEngine(server, base, ends, folder / "vllm-weights")
    return Loaded(ChatModel(engine, tokenizer, options.context), int(options.gpu_share * hardware.memory_bytes))


def _generation(base: str) -> Any:
    """What holds a base's generation config, if it has one."""
    try:
        return SimpleNamespace(generation_config=GenerationConfig.from_pretrained(base))
    except OSError:
        return SimpleNamespace()


def context_of(config: Any, tokenizer: Any) -> int:
    """Prompt and answer together, in tokens."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or tokenizer.model_max_length)


def end_ids(model: object, tokenizer: object) -> list[int]:
    """Every token that ends a turn: the tokenizer's and the generation config's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None) or []
    ids = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id}  # type: ignore[attr-defined]
    return sorted(i for i in ids if i is not None)


def captured(samples: Sequence[Sample]) -> dict[str, Any]:
    """What a captured request tells besides."""
    return {"captured": choices_view(samples)}


def make_app(load: Callable[[str], Loaded], memory_bytes: int | None = None) -> Starlette:
    """The child's ASGI app.

    Args:
        load: How a model comes to answer, by its path.
        memory_bytes: For the weights of all models; None: a share of what is free now.
    """
    if memory_bytes is None:
        memory_bytes = int(MEMORY_SHARE * free_memory(probe().device))
    pool = ModelPool(load, memory_bytes)

    async def serve(request: Request) -> Response:
        try:
            model, give_back = await pool.take(request.headers.get("x-model-path", ""))
        except ServiceError as e:
            return error_response(503, str(e), "model_not_loaded")
        except PipelineError as e:
            return error_response(404, str(e), "model_not_found", "model")
        except Exception as e:  # out of memory, damaged files: the next request tries again
            return error_response(503, f"The model cannot be loaded: {type(e).__name__}: {e}", "model_not_loaded")
        return await answer(
            model,
            request,
            chat=request.url.path.endswith("/chat/completions"),
            model_id=request.headers.get("x-model-id"),
            keep=captured if "x-capture" in request.headers else None,
            done=give_back,
        )

    async def livez(_: Request) -> Response:
        return json_response({"status": "ok"})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        pool.close()

    paths = ("/v1/chat/completions", "/v1/completions")
    routes = [*(Route(path, serve, methods=["POST"]) for path in paths), Route("/livez", livez)]
    return Starlette(routes=routes, lifespan=lifespan)


def main(argv: Sequence[str]) -> int:
    """Serve on the socket handed over by the parent."""
    parser = argparse.ArgumentParser(prog="train_app.workers.inference")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    options = parser.parse_args(argv)
    use_cpu_threads(threads_for("inference"))
    exit_with_parent()
    sock = socket.socket(fileno=options.fd)
    config = uvicorn.Config(
        make_app(functools.partial(load_chat_model, folder=options.data_dir)),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=120,
    )
    uvicorn.Server(config).run(sockets=[sock])
    return 0
