"""vLLM on CUDA: `vllm serve` as a child of ours, and an engine that samples from it over loopback.

vLLM is no dependency: it wants an older fastapi than Prefect does, so it lives in an environment of its own (`make
vllm`). `VLLM_COMMAND` says how it is called; unset, the `vllm` on the path or of this environment is taken.

Weights reach it in two ways. An adapter is loaded beside the base under a name of its own, `policy-v7`, while answers
of `policy-v6` go on. Whole weights are written to a folder and the server is started anew with them: right, and slow.
(vLLM can read new weights in place, but from a cache that may be stale, and its transfer by NCCL wants its package here
and a second GPU.)
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import secrets
import shlex
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import torch
from safetensors.torch import save_file

from crafter_pipeline.errors import ModelError
from crafter_pipeline.model_names import student_size
from crafter_pipeline.processes import Service, free_port
from crafter_pipeline.settings import load_settings
from train_app.workers.inference.sampling import Alternatives, Busy, Sample, Sampling, Token, Watch, Weights

START_SECONDS = 900.0
ANSWER_SECONDS = 1800.0
BASE = "base"
"""The name under which whole weights are served."""
ADAPTERS_KEPT = 2
"""Versions of an adapter that can still answer."""
MAX_LOGPROBS = 20
COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "tokenizer*")
"""Files beside the weights that a folder of new weights needs, too."""


def vllm_command() -> list[str] | None:
    """How vLLM is called; None: it is not installed."""
    told = load_settings().vllm_command
    if told:
        return shlex.split(told)
    found = shutil.which("vllm")
    if found is not None:
        return [found]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main"] if importlib.util.find_spec("vllm") else None


def vllm_serves(source: str, device: torch.device) -> bool:
    """Whether vLLM is to sample from weights at `source`: it is installed, on CUDA, and reads them."""
    return (
        device.type == "cuda"
        and vllm_command() is not None
        and student_size(source) is None
        and not source.endswith(".gguf")
    )


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """How a server is started."""

    context: int
    """Prompt and answer together, in tokens."""
    dtype: str = "bfloat16"
    gpu_share: float = 0.4
    """Of the GPU's memory."""
    lora_rank: int | None = None
    """Largest rank of adapters; None: there are none."""
    adapter: str | None = None
    """Folder of the adapter that answers first, as version 0."""
    seed: int = 0
    gpus: str | None = None
    """CUDA_VISIBLE_DEVICES of the server; None: as ours."""


class VllmServer:
    """A `vllm serve` of ours: loopback only, with a key of its own, for it can load any adapter.

    Args:
        model: Folder or hub name of the base.
        log: Takes what it prints.
    """

    def __init__(self, model: str, options: VllmOptions, log: Path) -> None:
        self.options, self._log = options, log
        self.key = secrets.token_hex(16)
        self._service = self._make(model)

    @property
    def url(self) -> str:
        return self._service.url

    @property
    def running(self) -> bool:
        """Its process lives."""
        return self._service.process is not None and self._service.process.poll() is None

    def start(self) -> None:
        """Start and wait until it answers. ServiceError: it does not; the log's last lines say why."""
        self._service.start()
        try:
            self._service.wait_ready(START_SECONDS, "/health")
        except BaseException:
            self.stop()
            raise

    def restart(self, model: str) -> None:
        """Serve another base."""
        self.stop()
        self._service = self._make(model)
        self.start()

    def stop(self) -> None:
        """End it with all its processes."""
        self._service.stop()

    def _make(self, model: str) -> Service:
        port = free_port()
        environment = {
            "VLLM_API_KEY": self.key,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            **({"CUDA_VISIBLE_DEVICES": self.options.gpus} if self.options.gpus else {}),
        }
        return Service(
            "vLLM",
            "train_app.workers.inference.process_group",  # vLLM knows nothing of our end
            [*(vllm_command() or ["vllm"]), *serve_arguments(model, port, self.options)],
            log=self._log,
            host=None,
            url=f"http://127.0.0.1:{port}",
            environment=environment,
        )


def serve_arguments(model: str, port: int, options: VllmOptions) -> list[str]:
    """The command line behind `vllm`."""
    arguments = ["serve", model, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", BASE]
    arguments += ["--dtype", options.dtype, "--max-model-len", str(options.context), "--seed", str(options.seed)]
    arguments += ["--gpu-memory-utilization", str(options.gpu_share)]
    # logprobs of the distribution that is sampled from, as our own engine tells them
    arguments += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", str(MAX_LOGPROBS)]
    arguments += ["--generation-config", "vllm"]  # no top_k of the model's own
    if options.lora_rank is not None:
        arguments += ["--enable-lora", "--max-lora-rank", str(_lora_rank(options.lora_rank))]
        arguments += ["--max-loras", str(ADAPTERS_KEPT), "--max-cpu-loras", str(ADAPTERS_KEPT + 1)]
        if options.adapter is not None:
            arguments += ["--lora-modules", f"{adapter_name(0)}={options.adapter}"]
    return arguments


def _lora_rank(rank: int) -> int:
    """vLLM knows these ranks alone; a smaller adapter fits into the next larger one."""
    return next((known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= rank), rank)


def adapter_name(version: int) -> str:
    """A name per version: vLLM's prefix cache goes by names, so that a name must never have two weights."""
    return f"policy-v{version}"


class VllmEngine:
    """Samples from a server over HTTP, token ids in and out.

    Args:
        server: Started; the engine owns it from now on.
        model: Folder of what the server serves.
        end_ids: Tokens that end an answer.
        folder: For weights on their way to the server.
        adapter_config: peft's `adapter_config.json`, where adapters are published.
        max_waiting: Requests under way at once; one more is refused (Busy).
    """

    def __init__(
        self,
        server: VllmServer,
        model: str,
        end_ids: Sequence[int],
        folder: Path,
        *,
        adapter_config: Mapping[str, Any] | None = None,
        max_waiting: int = 4096,
    ) -> None:
        self._server, self._model, self._end_ids, self._folder = server, model, list(end_ids), folder
        self._adapter_config, self._max_waiting = adapter_config, max_waiting
        self._policy = (adapter_name(0) if server.options.adapter is not None else BASE, 0)
        """Name and version of the weights that answer: one assignment changes both."""
        self._adapters: list[int] = [0] if server.options.adapter is not None else []
        self._open: set[Future[Sample]] = set()
        self._lock = threading.Lock()
        self._publishing = threading.Lock()
        self._admitted = threading.Event()
        self._admitted.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._client = self._call(self._new_client())

    @property
    def version(self) -> int:
        """Of the weights that answer now."""
        return self._policy[1]

    @property
    def broken(self) -> bool:
        """The server has ended."""
        return not self._server.running

    def submit(self, prompt_ids: Sequence[int], sampling: Sampling, watch: Watch | None = None) -> Future[Sample]:
        """Ask the server; cancelling the future closes the connection, and vLLM ends the request."""
        ids = tuple(prompt_ids)
        if not ids:
            raise ValueError("A prompt needs at least one token.")
        with self._lock:
            if len(self._open) >= self._max_waiting:
                raise Busy(f"{len(self._open)} requests are under way already; ask again in a moment.")
            future = asyncio.run_coroutine_threadsafe(self._sample(ids, sampling, watch), self._loop)
            self._open.add(future)
        future.add_done_callback(self._closed)
        return future

    def publish(self, weights: Weights, version: int) -> None:
        """Later answers are by these weights: an adapter's, loaded beside the last one, or a whole model's, with which
        the server is started anew once the answers under way are complete.

        Raises:
            ServiceError: the server refused them, or did not start again.
        """
        with self._publishing:
            if any(".lora_" in name for name in weights):
                self._publish_adapter(weights, version)
            else:
                self._publish_model(weights, version)

    def close(self) -> None:
        """Stop the server; what is under way is cancelled."""
        with self._lock:
            for future in list(self._open):
                future.cancel()
        self._call(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._server.stop()

    # ------------------------------------------------------------------ weights

    def _publish_adapter(self, weights: Weights, version: int) -> None:
        if self._adapter_config is None:
            raise ValueError("These are an adapter's weights, and this engine was not told of an adapter.")
        name, folder = adapter_name(version), self._folder / adapter_name(version)
        _write(folder, "adapter_model.safetensors", weights)
        (folder / "adapter_config.json").write_text(json.dumps(dict(self._adapter_config)), encoding="utf-8")
        self._call(self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}))
        self._policy = (name, version)
        self._adapters.append(version)
        while len(self._adapters) > ADAPTERS_KEPT:
            old = self._adapters.pop(0)
            self._call(self._post("/v1/unload_lora_adapter", {"lora_name": adapter_name(old)}))
            shutil.rmtree(self._folder / adapter_name(old), ignore_errors=True)

    def _publish_model(self, weights: Weights, version: int) -> None:
        folder = self._folder / f"model-v{version}"
        _write(folder, "model.safetensors", weights)
        for pattern in COPIED:
            for file in Path(self._model).glob(pattern):
                if not file.name.endswith(".index.json"):
                    shutil.copy(file, folder / file.name)
        self._admitted.clear()
        try:
            with self._lock:
                under_way = list(self._open)
            for future in under_way:
                _wait(future)
            self._server.restart(str(folder))
            self._call(self._client.close())
            self._client = self._call(self._new_client())
            self._policy = (BASE, version)
        finally:
            self._admitted.set()
        for old in self._folder.glob("model-v*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)

    # ------------------------------------------------------------------ in the loop

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _new_client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            base_url=self._server.url,
            headers={"Authorization": f"Bearer {self._server.key}"},
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
            read_bufsize=2**22,
            trust_env=False,
        )

    async def _post(self, path: str, body: Mapping[str, Any]) -> None:
        async with self._client.post(path, json=dict(body)) as answer:
            if answer.status != 200:
                raise ModelError(f"vLLM refused {path}: {(await answer.text())[:500]}", "refused")

    async def _sample(self, prompt_ids: tuple[int, ...], sampling: Sampling, watch: Watch | None) -> Sample:
        while not self._admitted.is_set():
            await asyncio.sleep(0.05)
        name, version = self._policy
        body = self._body(name, prompt_ids, sampling, stream=watch is not None)
        try:
            async with self._client.post("/v1/completions", json=body) as answer:
                if answer.status != 200:
                    raise ModelError(f"vLLM answered {answer.status}: {(await answer.text())[:500]}", "refused")
                if watch is None:
                    choices = [(await answer.json())["choices"][0]]
                else:
                    choices = await self._watched(answer, watch)
        except (aiohttp.ClientError, TimeoutError) as e:
            raise ModelError(f"vLLM broke off: {e!r}. Its log has the reason.", "unreachable") from e
        return _sample_of(prompt_ids, sampling, version, choices)

    def _body(self, name: str, prompt_ids: tuple[int, ...], sampling: Sampling, *, stream: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": name,
            "prompt": list(prompt_ids),
            "max_tokens": max(1, sampling.max_tokens),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "logprobs": sampling.top_logprobs,
            "stop_token_ids": self._end_ids,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
            "stream": stream,
        }
        if sampling.prompt_logprobs:
            body["prompt_logprobs"] = sampling.top_logprobs
        return body

    @staticmethod
    async def _watched(answer: aiohttp.ClientResponse, watch: Watch) -> list[dict[str, Any]]:
        """The stream's parts, up to where the watcher ended it: leaving the connection ends the request."""
        choices: list[dict[str, Any]] = []
        async for line in answer.content:
            data = line.removeprefix(b"data: ").strip()
            if not data or data == b"[DONE]":
                continue
            event = orjson.loads(data)
            if "error" in event:
                raise ModelError(f"vLLM ended the answer: {event['error']}", "refused")
            if not event.get("choices"):
                continue
            choice = event["choices"][0]
            for i, token in enumerate(_tokens(choice)):
                if watch(token):
                    choices.append({**_cut(choice, i + 1), "finish_reason": "stop"})
                    answer.close()
                    return choices
            choices.append(choice)
        return choices

    def _closed(self, future: Future[Sample]) -> None:
        with self._lock:
            self._open.discard(future)


# --------------------------------------------------------------------------- vLLM's answers


def _sample_of(
    prompt_ids: tuple[int, ...], sampling: Sampling, version: int, choices: Sequence[Mapping[str, Any]]
) -> Sample:
    tokens = [token for choice in choices for token in _tokens(choice)]
    if sampling.max_tokens < 1:  # vLLM draws one at least
        tokens = []
    scored = choices[0].get("prompt_logprobs") if sampling.prompt_logprobs else None
    scores = list(zip(prompt_ids[1:], scored[1:], strict=True)) if scored else []
    top = sampling.top_logprobs
    return Sample(
        prompt_ids,
        tuple(t.id for t in tokens),
        tuple(t.logprob for t in tokens),
        version,
        choices[-1].get("finish_reason") == "stop",
        tuple(t.top[:top] for t in tokens) if top else (),
        tuple(float(entry[str(token)]["logprob"]) for token, entry in scores),
        tuple(_ranked({int(i): e["logprob"] for i, e in entry.items()})[:top] for _, entry in scores) if top else (),
    )


def _tokens(choice: Mapping[str, Any]) -> list[Token]:
    told = choice.get("logprobs") or {}
    ids, logprobs = choice.get("token_ids") or [], told.get("token_logprobs") or []
    if len(ids) != len(logprobs):
        raise ModelError(
            f"vLLM told {len(ids)} token ids, {len(logprobs)} logprobs. It needs to know return_token_ids.",
            "bad_answer",
        )
    tops = told.get("top_logprobs") or [None] * len(ids)
    return [
        Token(token, logprob, _ranked({int(k.removeprefix("token_id:")): v for k, v in (top or {}).items()}))
        for token, logprob, top in zip(ids, logprobs, tops, strict=True)
    ]


def _cut(choice: Mapping[str, Any], count: int) -> dict[str, Any]:
    told = choice.get("logprobs") or {}
    cut = {name: values[:count] if values else values for name, values in told.items()}
    return {**choice, "token_ids": choice["token_ids"][:count], "logprobs": cut}


def _ranked(scores: Mapping[int, float]) -> Alternatives:
    return tuple(sorted(scores.items(), key=lambda entry: -entry[1]))


def _write(folder: Path, name: str, weights: Weights) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Tied weights share their memory, which the format has no word for.
    save_file({key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}, folder / name)


def _wait(future: Future[Sample]) -> None:
    try:
        future.result()
    except BaseException:
        pass  # its caller is told
