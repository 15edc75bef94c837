"""A real ``llmspell serve`` process for the benchmarks, and plain-socket clients that cost little themselves."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class ServerProcess:
    """A running server; ``ready_seconds`` is the time from starting the process until ``/health/ready`` said yes."""

    process: psutil.Process
    port: int
    ready_seconds: float


@contextmanager
def running_server(*arguments: str) -> Iterator[ServerProcess]:
    """Run ``llmspell serve`` with the arguments on a free port until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "server", "serve", "--port", str(port), "--log-level", "warning", *arguments]
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT) as popen:
        try:
            _wait_until_ready(port, started)
            yield ServerProcess(psutil.Process(popen.pid), port, time.perf_counter() - started)
        finally:
            popen.terminate()


def _wait_until_ready(port: int, started: float) -> None:
    while time.perf_counter() < started + START_TIMEOUT_SECONDS:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready") as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.01)
    sys.exit("the server did not become ready")


def chat_body(model: str, text: str, max_tokens: int, **extra: object) -> dict[str, object]:
    """Build a streamed request."""
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "stream": True, **extra}


def stream(port: int, body: dict[str, object]) -> Iterator[tuple[float, bytes]]:
    """Send a streamed request and yield what arrives with the time of arrival."""
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + data)
        while received := connection.recv(1 << 16):
            yield time.perf_counter(), received
