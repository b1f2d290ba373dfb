"""How fast a service answers while it is busy: `python -m benchmarks.probe URL`, until its stdin is closed.

Asks fifty times a second, as a process of its own, so that no other load in it counts. Prints the milliseconds of each
answer as a JSON list.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import httpx


async def main(url: str) -> None:
    """Ask until stdin ends."""
    done = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    times: list[float] = []
    async with httpx.AsyncClient(timeout=60.0, trust_env=False) as client:
        await client.get(url)
        while not done.done():
            started = time.perf_counter()
            (await client.get(url)).raise_for_status()
            times.append(1000.0 * (time.perf_counter() - started))
            await asyncio.sleep(max(0.0, 0.02 - times[-1] / 1000.0))
    print(json.dumps(times))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
