"""Open-loop load: requests start when they are due, whether or not earlier ones were answered."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence

import httpx

from loadtest.summary import Timing


async def run(
    url: str,
    bodies: Sequence[dict[str, object]],
    rate: float,
    seed: int,
    progress: Callable[[int], None],
    timeout_s: float = 600,
) -> list[Timing]:
    """Send all bodies at ``rate`` a second with Poisson gaps. ``progress`` hears how many have ended."""
    gaps = random.Random(seed)
    due, done = time.monotonic(), 0
    async with httpx.AsyncClient(timeout=timeout_s, limits=httpx.Limits(max_connections=None)) as client:

        async def one(body: dict[str, object], start: float) -> Timing:
            nonlocal done
            await asyncio.sleep(max(0.0, start - time.monotonic()))
            timing = await _request(client, f"{url}/v1/completions", body, start)
            done += 1
            progress(done)
            return timing

        tasks = []
        for body in bodies:
            tasks.append(asyncio.create_task(one(body, due)))
            due += gaps.expovariate(rate)
        return await asyncio.gather(*tasks)


async def _request(client: httpx.AsyncClient, url: str, body: dict[str, object], start: float) -> Timing:
    sparsity = float(str(body.get("sparsity", 0.0)))
    token_s = []
    try:
        async with client.stream("POST", url, json={**body, "stream": True}) as response:
            if response.status_code != 200:
                return Timing(sparsity, error=f"HTTP {response.status_code}")
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return Timing(sparsity, error="error in stream")
                if event["choices"]:
                    token_s.append(time.monotonic() - start)
    except httpx.HTTPError as error:
        return Timing(sparsity, error=type(error).__name__)
    return Timing(sparsity, tuple(token_s), time.monotonic() - start)
