"""What chat calls cost without a task app around them: `python -m benchmarks.bare_loop URL CALLS CONCURRENT`.

An asyncio loop sends the last bodies that the stand-in at URL was sent, with httpx over its aiohttp transport, and
reads the answers. Prints {"cpu_s"}: CPU seconds of this process, set-up left out.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import httpx
import orjson
from httpx_aiohttp import AiohttpTransport


async def main(url: str, calls: int, concurrent: int) -> None:
    """Make the calls."""
    async with httpx.AsyncClient(transport=AiohttpTransport(), timeout=600.0, trust_env=False) as client:
        payloads = (await client.get(f"{url}/bodies")).json()

        async def caller(count: int) -> None:
            for i in range(count):
                body = orjson.dumps(payloads[i % len(payloads)])
                response = await client.post(
                    f"{url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}
                )
                assert orjson.loads(response.content)["choices"]

        await asyncio.gather(*(caller(2) for _ in range(concurrent)))  # connections are open, code is warm
        started = time.process_time()
        await asyncio.gather(*(caller(calls // concurrent) for _ in range(concurrent)))
        print(json.dumps({"cpu_s": time.process_time() - started}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
