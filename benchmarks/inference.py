"""What serving a small model on a CPU costs.

The model has 1 M parameters (Qwen3's shape, the tiny student's tokenizer, random weights). Prompts have about 130
tokens, no two alike, and answers 32; 32 callers ask again as soon as they are answered. CPU seconds are those of whole
processes, ours being the API and its inference child; the callers are not counted. Every server has one thread.

`transformers serve` runs as it comes, one request at a time, and once more with continuous batching. The limit
of `http_share_of_limit` is the same engine in this process under the same load, ids in and ids out: what is missing to
1 is spent on HTTP, JSON, templates and text.
"""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks import workplace
from benchmarks.metrics import Metric
from crafter_pipeline.processes import Service, free_port

METRICS = (
    Metric(
        "inference.cpu_ratio_vs_transformers_serve_32",
        "CPU of a request at `transformers serve`, of one here; 32 callers",
        "×",
        at_least=4.0,
    ),
    Metric(
        "inference.cpu_ratio_vs_transformers_serve_batching_32", "the same, with its option --continuous-batching", "×"
    ),
    Metric(
        "inference.http_share_of_limit",
        "tokens per CPU second over HTTP, of the engine's in process; 32 callers",
        at_least=0.6,
    ),
    Metric("inference.cpu_ms_per_request", "CPU of a request, API and child", "ms"),
    Metric("inference.weight_sync_ms", "new weights for a served model of 5 M parameters", "ms", at_most=100.0),
)
CALLERS = 32
ANSWER_TOKENS = 32
WORDS = ("tree", "water", "stone", "cow", "sand", "coal", "zombie")
CELLS = 37
SMALL: dict[str, Any] = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4)
LARGER: dict[str, Any] = dict(hidden_size=256, intermediate_size=768, num_hidden_layers=6)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def measure(quick: bool) -> dict[str, float | None]:
    """All metrics; the ratios are None where `transformers[serving]` is missing."""
    import torch

    torch.set_num_threads(1)
    rounds, requests = (1, 64) if quick else (3, 512)
    with workplace() as folder:
        model = str(folder / "model")
        make_model(SMALL, model)
        theirs, batching = transformers_serve(folder, model, 32 if quick else 192, quick)
        ours, limits = [], []
        with backend(folder) as service:
            call(service, model, CALLERS)  # the child starts and loads
            for _ in range(rounds):
                ours.append(call(service, model, requests))
                limits.append(in_process(model, requests))
    shares = [o.tokens_per_cpu_s / limit.tokens_per_cpu_s for o, limit in zip(ours, limits, strict=True)]
    cpu_s = statistics.median(o.cpu_s / o.requests for o in ours)
    return {
        "inference.cpu_ratio_vs_transformers_serve_32": None if theirs is None else theirs / cpu_s,
        "inference.cpu_ratio_vs_transformers_serve_batching_32": None if batching is None else batching / cpu_s,
        "inference.http_share_of_limit": statistics.median(shares),
        "inference.cpu_ms_per_request": 1000 * cpu_s,
        "inference.weight_sync_ms": weight_sync_ms(5 if quick else 30),
    }


@dataclass(frozen=True, slots=True)
class Load:
    """What a load cost."""

    requests: int
    tokens: int
    cpu_s: float
    seconds: float

    @property
    def tokens_per_cpu_s(self) -> float:
        return self.tokens / self.cpu_s


# --------------------------------------------------------------------------- the models


def make_model(shape: dict[str, Any], folder: str | None = None) -> tuple[Any, Any]:
    """A model of this shape and its tokenizer, saved if a folder is named."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from train_app.workers.students import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).eval()
    if folder is not None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model, tokenizer


# --------------------------------------------------------------------------- the servers


def backend(folder: Path) -> Service:
    """Our service."""
    arguments = ["--data", str(folder / "data")]
    environment = {**ONE_THREAD, "SYNTH_API_KEY": ""}
    return Service("backend", "train_app", arguments, log=folder / "backend.log", environment=environment)


def transformers_serve(folder: Path, model: str, requests: int, quick: bool) -> list[float | None]:
    """CPU seconds of a request at `transformers serve`: as it comes, and with continuous batching (not if `quick`).
    None: it is not installed, or not measured."""
    if importlib.util.find_spec("openai") is None:
        return [None, None]
    costs: list[float | None] = []
    for options in ([], ["--continuous-batching", "--cb-num-blocks", "256"])[: 1 if quick else 2]:
        url = f"http://127.0.0.1:{free_port()}"
        arguments = ["serve", model, "--port", url.rsplit(":", 1)[1], "--device", "cpu", "--dtype", "float32", *options]
        service = Service(
            "transformers serve",
            "transformers.cli.transformers",
            arguments,
            log=folder / "serve.log",
            host=None,
            url=url,
            environment=ONE_THREAD,
        )
        service.start()
        try:
            service.wait_ready(180.0, "/health")
            call(service, model, 8)
            load = call(service, model, requests)
            costs.append(load.cpu_s / load.requests)
        finally:
            service.stop()
    return [*costs, None][:2]


def cpu_seconds(service: Service) -> float:
    """User and system time of a service and its children, so far."""
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


# --------------------------------------------------------------------------- the loads


def conversation(number: int) -> list[dict[str, str]]:
    """A turn of about 130 tokens; every number has another."""
    cells = [f"{WORDS[(number + 5 * x + 3 * y) % len(WORDS)]}@{x},{y}" for x in range(-4, 5) for y in range(-3, 4)]
    text = f"{' '.join(cells[:CELLS])} health {number % 10}"
    return [
        {"role": "system", "content": "You play Crafter. Answer with one action."},
        {"role": "user", "content": text},
    ]


def call(service: Service, model: str, requests: int) -> Load:
    """So many chat completions by all callers."""
    return asyncio.run(_call(service, model, requests))


async def _call(service: Service, model: str, requests: int) -> Load:
    left, tokens = iter(range(requests)), 0
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(service.url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as client:

        async def caller() -> None:
            nonlocal tokens
            for number in left:
                body = {"model": model, "messages": conversation(number), "max_tokens": ANSWER_TOKENS}
                async with client.post("/v1/chat/completions", json=body) as answer:
                    content = await answer.json()
                    if answer.status != 200:
                        raise RuntimeError(f"{service.name} answered {answer.status}: {content}")
                    tokens += content["usage"]["completion_tokens"]

        before, started = await asyncio.to_thread(cpu_seconds, service), time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        seconds = time.perf_counter() - started
        return Load(requests, tokens, await asyncio.to_thread(cpu_seconds, service) - before, seconds)


def in_process(folder: str, requests: int) -> Load:
    """The same load on an engine in this process."""
    from train_app.workers.inference.requests import ChatRequest
    from train_app.workers.inference.sampling import Sample
    from train_app.workers.inference.worker import load_chat_model

    model = load_chat_model(folder, Path(folder)).model
    asks = (ChatRequest(messages=conversation(i), max_tokens=ANSWER_TOKENS) for i in range(requests))
    choices = [model.ask_chat(ask).choices[0] for ask in asks]
    model.engine.submit(*choices[0]).result()
    before, started = time.process_time(), time.perf_counter()
    asked, tokens = 0, 0
    open_futures: set[Future[Sample]] = set()
    while asked < requests or open_futures:
        while asked < requests and len(open_futures) < CALLERS:
            open_futures.add(model.engine.submit(*choices[asked]))
            asked += 1
        done, open_futures = wait(open_futures, return_when=FIRST_COMPLETED)
        tokens += sum(len(future.result().ids) for future in done)
    load = Load(requests, tokens, time.process_time() - before, time.perf_counter() - started)
    model.engine.close()
    return load


def weight_sync_ms(rounds: int) -> float:
    """Milliseconds until an engine answers with other weights: the median."""
    from train_app.workers.inference.engine import Engine

    model, tokenizer = make_model(LARGER)
    other, _ = make_model(LARGER)
    engine = Engine(model, [tokenizer.eos_token_id], tokenizer.pad_token_id)
    times = []
    for version in range(1, rounds + 1):
        started = time.perf_counter()
        engine.publish(other.state_dict(), version)
        times.append(1000 * (time.perf_counter() - started))
    engine.close()
    return statistics.median(times)


if __name__ == "__main__":
    print(measure("--quick" in sys.argv))
