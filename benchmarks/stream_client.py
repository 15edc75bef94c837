"""CPU time per token of reading a daemon's streams: this project's client beside httpx, in turns, in one process."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import orjson
import uvloop

from server.backends.ollama.http_stream import HttpStreamClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fakes.process import OllamaProcess

ROUNDS = 5
STREAMS = 64
BODY = orjson.dumps({"model": "bench", "messages": [{"role": "user", "content": "Hi"}]})


async def cost(read: Callable[[], Awaitable[int]]) -> float:
    """Return CPU microseconds per token of reading streams at the same time."""
    before = time.process_time()
    num_tokens = sum(await asyncio.gather(*(read() for _ in range(STREAMS))))
    return (time.process_time() - before) / num_tokens * 1e6


async def measure(url: str) -> None:
    """Print the costs."""
    own = HttpStreamClient(url, connect_timeout=5, silence_timeout=60)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=STREAMS)

    async def read_with_own() -> int:
        response = await own.post("/api/chat", BODY)
        num_lines = 0
        while data := await response.read():
            num_lines += data.count(b"\n")
        return num_lines

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:

        async def read_with_httpx() -> int:
            num_lines = 0
            async with client.stream("POST", "/api/chat", content=BODY) as response:
                async for data in response.aiter_raw():
                    num_lines += data.count(b"\n")
            return num_lines

        await cost(read_with_own)
        await cost(read_with_httpx)
        rounds = [(await cost(read_with_own), await cost(read_with_httpx)) for _ in range(ROUNDS)]
    own.close()
    print("| client | CPU per token, median (range) |\n| --- | --- |")
    for name, costs in zip(("server.backends.ollama.http_stream", "httpx"), zip(*rounds, strict=True), strict=True):
        print(f"| {name} | {statistics.median(costs):.0f} µs ({min(costs):.0f} to {max(costs):.0f}) |")


if __name__ == "__main__":
    with OllamaProcess("--model", "bench", "--tokens", "100", "--tokens-per-second", "50") as daemon:
        uvloop.run(measure(daemon.url))
