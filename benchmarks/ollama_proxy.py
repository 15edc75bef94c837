"""What this server adds to an Ollama daemon: the same requests straight to the daemon and through the server, in turns.

The daemon is the tests' stand-in, which answers at once and streams at a fixed rate, so that all that differs is ours.
The server has one core to itself; the daemon and the clients share the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop
from server_process import ServerProcess, running_server

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fakes.process import OllamaProcess

MODEL = "bench"
END_OF_BODY = b"\r\n0\r\n\r\n"
MAX_IDLE_SECONDS = 2
ROUNDS = 5


@dataclass(frozen=True)
class Answer:
    """Seconds from the request to the first byte of the body, and how many bytes and tokens came."""

    first: float
    num_tokens: int


class Target:
    """Where requests go, with kept connections."""

    def __init__(self, name: str, port: int, path: str, body: dict[str, object], mark: bytes) -> None:
        """Take a body, and the mark that the answer has once for each token."""
        data = json.dumps(body).encode()
        self.name = name
        self._port = port
        self._mark = mark
        self._request = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data
        )
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self) -> Answer:
        """Send a request and read the whole answer."""
        reader, writer = await self._connection()
        started = time.perf_counter()
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"{self.name} answers {head!r}")
        data = await reader.read(1 << 16)
        first = time.perf_counter() - started
        num_tokens, tail = data.count(self._mark), data
        while not tail.endswith(END_OF_BODY):
            data = await reader.read(1 << 16)
            if not data:
                sys.exit(f"{self.name} broke off")
            num_tokens += data.count(self._mark)
            tail = (tail + data)[-len(END_OF_BODY) :]
        self._idle.append((time.perf_counter(), reader, writer))
        return Answer(first, num_tokens)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.perf_counter() - since < MAX_IDLE_SECONDS:
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    def close(self) -> None:
        """Close the connections."""
        for _, _, writer in self._idle:
            writer.close()
        self._idle.clear()


def direct(port: int) -> Target:
    """Ask the daemon."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "truncate": False}
    return Target("the daemon", port, "/api/chat", body, b'"done":false')


def proxied(port: int, model: str = f"local/{MODEL}@ollama", **extra: object) -> Target:
    """Ask the server."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": True, **extra}
    return Target("the server", port, "/v1/chat/completions", body, b'"content":" word"')


async def at_rate(targets: Sequence[Target], per_second: float, seconds: float) -> dict[str, list[float]]:
    """Send requests to the targets in turns at a rate for each, and return seconds to the first token."""
    tasks: list[tuple[str, asyncio.Task[Answer]]] = []
    loop = asyncio.get_running_loop()
    started = loop.time()
    for number in range(int(seconds * per_second)):
        for offset, target in enumerate(targets):
            due = started + (number + offset / len(targets)) / per_second
            await asyncio.sleep(max(0.0, due - loop.time()))
            tasks.append((target.name, asyncio.create_task(target.ask())))
    latencies: dict[str, list[float]] = {target.name: [] for target in targets}
    for name, task in tasks:
        latencies[name].append((await task).first)
    return latencies


async def tokens_per_second(target: Target, num_streams: int) -> tuple[float, int]:
    """Read streams at the same time; return tokens a second, and tokens."""
    started = time.perf_counter()
    answers = await asyncio.gather(*(target.ask() for _ in range(num_streams)))
    num_tokens = sum(answer.num_tokens for answer in answers)
    return num_tokens / (time.perf_counter() - started), num_tokens


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile in milliseconds."""
    return statistics.quantiles(values, n=100)[percent - 1] * 1e3


def cpu_seconds(server: ServerProcess) -> float:
    """Return the CPU time of the whole server so far."""
    times = server.process.cpu_times()
    return float(times.user + times.system)


async def measure_latency(daemon: OllamaProcess, server: ServerProcess, seconds: float) -> None:
    """Print what the server adds to the first token at 200 requests a second."""
    targets = [direct(daemon.port), proxied(server.port)]
    await at_rate(targets, 100, 1)
    print("\n| first token at 200 requests/s | daemon alone | through the server | added |")
    print("| --- | --- | --- | --- |")
    rounds = [await at_rate(targets, 200, seconds) for _ in range(ROUNDS)]
    for percent in (50, 99):
        alone, through = ([percentile(each[target.name], percent) for each in rounds] for target in targets)
        added = [with_us - without for with_us, without in zip(through, alone, strict=True)]
        print(
            f"| p{percent}, median of {ROUNDS} rounds (range) | {statistics.median(alone):.2f} ms | "
            f"{statistics.median(through):.2f} ms | "
            f"{statistics.median(added):.2f} ms ({min(added):.2f} to {max(added):.2f}) |"
        )
    close(targets)


async def measure_streams(daemon: OllamaProcess, server: ServerProcess, counts: Sequence[int]) -> None:
    """Print throughput beside the daemon's own, and the server's CPU time for a token."""
    targets = [direct(daemon.port), proxied(server.port)]
    print("\n| streams | daemon alone, tokens/s | through the server | ratio | CPU of the server per token |")
    print("| --- | --- | --- | --- | --- |")
    for count in counts:
        alone, through, costs = [], [], []
        for _ in range(ROUNDS):
            alone.append((await tokens_per_second(targets[0], count))[0])
            before = cpu_seconds(server)
            speed, num_tokens = await tokens_per_second(targets[1], count)
            costs.append((cpu_seconds(server) - before) / num_tokens * 1e6)
            through.append(speed)
        ratios = [with_us / without for with_us, without in zip(through, alone, strict=True)]
        print(
            f"| {count} | {statistics.median(alone):.0f} | {statistics.median(through):.0f} | "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | "
            f"{statistics.median(costs):.0f} µs ({min(costs):.0f} to {max(costs):.0f}) |"
        )
    close(targets)


async def measure_memory(server: ServerProcess, num_requests: int) -> None:
    """Print the server's memory before and after many requests."""
    target = proxied(server.port)

    async def worker(count: int) -> None:
        for _ in range(count):
            await target.ask()

    async def ask(count: int) -> float:
        await asyncio.gather(*(worker(count // 16) for _ in range(16)))
        return float(server.process.memory_info().rss) / 2**20

    sizes = [await ask(num_requests // 10), await ask(num_requests), await ask(num_requests)]
    print("\n| requests | resident memory of the server |\n| --- | --- |")
    for size, count in zip(sizes, (num_requests // 10, num_requests, num_requests), strict=True):
        print(f"| {count} more | {size:.1f} MiB |")
    target.close()


async def measure_dead_daemon(with_dead: ServerProcess, without: ServerProcess, num_requests: int) -> None:
    """Print what a daemon that does not answer costs a request for the pool."""
    targets = [
        proxied(without.port, "local/demo", max_tokens=1, temperature=0),
        proxied(with_dead.port, "local/demo", max_tokens=1, temperature=0),
    ]
    latencies: list[list[float]] = [[], []]
    for number in range(num_requests + 20):
        for target, values in zip(targets, latencies, strict=True):
            answer = await target.ask()
            if number >= 20:
                values.append(answer.first)
    print("\n| first token from the pool | no daemon configured | a dead daemon configured | added |")
    print("| --- | --- | --- | --- |")
    for percent in (50, 99):
        alone, through = (percentile(values, percent) for values in latencies)
        print(f"| p{percent} | {alone:.2f} ms | {through:.2f} ms | {through - alone:.2f} ms |")
    close(targets)


def close(targets: Sequence[Target]) -> None:
    """Close the connections to the targets."""
    for target in targets:
        target.close()


@contextmanager
def serving(daemon_url: str, *arguments: str, enabled: bool = True) -> Iterator[ServerProcess]:
    """Run the server on a core of its own."""
    os.environ |= {"LLMSPELL_OLLAMA__URL": daemon_url, "LLMSPELL_OLLAMA__ENABLED": str(enabled).lower()}
    with running_server(*arguments) as server:
        server.process.cpu_affinity([0])
        yield server


def run(measure: Callable[[], Awaitable[None]]) -> None:
    """Run one measurement."""

    async def main() -> None:
        await measure()

    uvloop.run(main())


def main() -> None:
    """Measure everything that the target table names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="length of a round of requests")
    parser.add_argument("--requests", type=int, default=10_000, help="requests between two looks at memory")
    parser.add_argument("--only", choices=["latency", "streams", "memory", "dead"])
    only = parser.parse_args()

    def wanted(name: str) -> bool:
        return only.only in (None, name)

    psutil.Process().cpu_affinity([core for core in psutil.Process().cpu_affinity() or [0] if core] or [0])
    if wanted("latency") or wanted("memory"):
        with OllamaProcess("--model", MODEL, "--tokens", "8") as daemon, serving(daemon.url) as server:
            if wanted("latency"):
                run(lambda: measure_latency(daemon, server, only.seconds))
            if wanted("memory"):
                run(lambda: measure_memory(server, only.requests))
    if wanted("streams"):
        paced = ("--model", MODEL, "--tokens", "150", "--tokens-per-second", "50")
        with OllamaProcess(*paced) as daemon, serving(daemon.url) as server:
            run(lambda: measure_streams(daemon, server, (1, 8, 64)))
    if wanted("dead"):
        dead = "http://127.0.0.1:9"
        with serving(dead, "--demo") as with_dead, serving(dead, "--demo", enabled=False) as without:
            run(lambda: measure_dead_daemon(with_dead, without, 500))


if __name__ == "__main__":
    main()
