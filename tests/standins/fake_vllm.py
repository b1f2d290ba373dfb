"""vLLM without a GPU: `fake_vllm.py serve MODEL --port N …`. Its routes, their keys and their refusals; no model.

It "samples" ids from the prompt's sum, the weights' version and the seed, so that a test can tell what reached it:
`GET /seen` lists the requests, `GET /adapters` the adapters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

import uvicorn
from safetensors import safe_open
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

END = 2


def weight_sum(folder: str, name: str) -> int:
    """Of the first tensor: other weights, another sum."""
    file = Path(folder) / name
    if not file.is_file():
        return 0
    with safe_open(file, "np") as weights:
        return int(sum(float(weights.get_tensor(key).sum()) for key in weights.keys()))


def make_app(options):
    base = weight_sum(options.model, "model.safetensors")
    adapters = {}
    for item in options.lora_modules:
        name, _, path = item.partition("=")
        adapters[name] = weight_sum(path, "adapter_model.safetensors")
    seen, aborted = [], []

    def refusal(status, message):
        return JSONResponse({"error": {"message": message, "type": "BadRequestError", "code": status}}, status)

    def no_key(request):
        return request.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}"

    def tokens(body):
        offset = adapters.get(body["model"], base) + sum(body["prompt"]) + (body.get("seed") or 0)
        ids = [100 + (offset + i) % 50 for i in range(body["max_tokens"])]
        ends = offset % 3 == 0 and END in body["stop_token_ids"]
        if ends:
            ids[-1] = END
        return ids, "stop" if ends else "length"

    def choice(body, ids, first, finish):
        count = body["logprobs"]
        told = [
            {f"token_id:{i}": -0.5 - first, **{f"token_id:{i + k}": -1.0 - k for k in range(1, count)}} for i in ids
        ]
        logprobs = {
            "tokens": [f"token_id:{i}" for i in ids],
            "token_logprobs": [-0.5 - first] * len(ids),
            "top_logprobs": told if count else [None] * len(ids),
            "text_offset": [0] * len(ids),
        }
        return {"index": 0, "text": "", "finish_reason": finish, "logprobs": logprobs, "token_ids": ids}

    async def completions(request):
        if no_key(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        body = await request.json()
        seen.append(body)
        if body["model"] not in ({"base"} | adapters.keys()):
            return refusal(404, f"The model `{body['model']}` does not exist.")
        if len(body["prompt"]) + body["max_tokens"] > options.max_model_len:
            return refusal(400, f"This model's maximum context length is {options.max_model_len} tokens.")
        if body["max_tokens"] < 1:
            return refusal(400, "max_tokens must be at least 1")
        ids, finish = tokens(body)
        if body["prompt"][0] == 7:  # a slow one
            await asyncio.sleep(0.5)
        if not body["stream"]:
            answer = choice(body, ids, 0, finish)
            answer["prompt_token_ids"] = body["prompt"]
            if body.get("prompt_logprobs") is not None:
                entries = [{str(i): {"logprob": -0.1 * i, "rank": 1, "decoded_token": "x"}} for i in body["prompt"][1:]]
                answer["prompt_logprobs"] = [None, *entries]
            return JSONResponse({"choices": [answer], "usage": {}})

        async def events():
            done = False
            try:
                for at, token in enumerate(ids):
                    part = choice(body, [token], at, finish if at == len(ids) - 1 else None)
                    yield b"data: " + json.dumps({"choices": [part]}).encode() + b"\n\n"
                    await asyncio.sleep(0.01)
                yield b"data: [DONE]\n\n"
                done = True
            finally:
                if not done:
                    aborted.append(body["prompt"])

        return StreamingResponse(events(), media_type="text/event-stream")

    async def load(request):
        if no_key(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") != "True" or not options.enable_lora:
            return refusal(404, "Not Found")
        body = await request.json()
        if body["lora_name"] in adapters:
            return refusal(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        config = Path(body["lora_path"]) / "adapter_config.json"
        if not config.is_file() or json.loads(config.read_text())["r"] > options.max_lora_rank:
            return refusal(400, "LoRA rank is greater than max_lora_rank")
        adapters[body["lora_name"]] = weight_sum(body["lora_path"], "adapter_model.safetensors")
        return JSONResponse(f"Success: LoRA adapter '{body['lora_name']}' added successfully.")

    async def unload(request):
        body = await request.json()
        if adapters.pop(body["lora_name"], None) is None:
            return refusal(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        return JSONResponse("Success")

    async def health(_):
        return JSONResponse(None)

    async def tell(_):
        facts = {"seen": seen, "aborted": aborted, "adapters": sorted(adapters), "model": options.model}
        return JSONResponse(facts)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/facts", tell),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/load_lora_adapter", load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
        ]
    )


def parser():
    """The flags that vLLM has; others end it, as they end vLLM."""
    p = argparse.ArgumentParser()
    p.add_argument("serve", choices=["serve"])
    p.add_argument("model")
    for name in ("host", "port", "served-model-name", "dtype", "seed", "gpu-memory-utilization", "logprobs-mode"):
        p.add_argument(f"--{name}", required=True)
    for name in ("max-model-len", "max-logprobs"):
        p.add_argument(f"--{name}", type=int, required=True)
    p.add_argument("--generation-config")
    p.add_argument("--enable-lora", action="store_true")
    for name in ("max-lora-rank", "max-loras", "max-cpu-loras"):
        p.add_argument(f"--{name}", type=int)
    p.add_argument("--lora-modules", nargs="*", default=[])
    return p


if __name__ == "__main__":
    given = parser().parse_args()
    if given.max_lora_rank not in (None, 8, 16, 32, 64, 128, 256, 320, 512):
        sys.exit("max_lora_rank must be one of 8, 16, …")
    uvicorn.run(make_app(given), host=given.host, port=int(given.port), log_level="warning")
