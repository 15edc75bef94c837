"""Server processes, started, watched and stopped as an operator does it, and the clients that talk to them."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import prestarted
import psutil
import pytest
from fakes.ollama import FakeOllama
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

PATIENCE = 120.0
"""Seconds until something that must happen is taken for something that does not: many, for busy machines."""

CHAT = "/v1/chat/completions"
DEMO = "local/demo"

OLLAMA_ENABLED = "LLMSPELL_OLLAMA__ENABLED"
DISCOVER = "LLMSPELL_STORE__DISCOVER"

_NOT_INHERITED = ("LLMSPELL_", "OLLAMA_", "HF_", "HUGGING", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME")
_NOT_OF_OPENAI = (
    "chat_template_kwargs",
    "grammar",
    "guided_choice",
    "guided_regex",
    "ignore_eos",
    "keep_alive",
    "num_ctx",
    "thinking_budget",
    "top_k",
)
_PAUSE = 0.05


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"it never happened: {what}"
        time.sleep(_PAUSE)


def environment(home: Path, **variables: str) -> dict[str, str]:
    """The environment of a user who has configured nothing but ``variables``, on a machine without other programs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
    return kept | {"HOME": str(home), "USERPROFILE": str(home), OLLAMA_ENABLED: "false", DISCOVER: "false"} | variables


def using_ollama(url: str, **variables: str) -> dict[str, str]:
    """Variables for a server that uses the Ollama daemon at this address, and is patient with it: machines are busy."""
    patience = {"LLMSPELL_OLLAMA__DETECTION_TIMEOUT_SECONDS": "30", "LLMSPELL_OLLAMA__CONNECT_TIMEOUT_SECONDS": "30"}
    return {OLLAMA_ENABLED: "true", "LLMSPELL_OLLAMA__URL": url} | patience | variables


def serve_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "server", "serve", "--port", "0", *arguments]


def chat_body(content: str = "Hello", **parameters: object) -> dict[str, Any]:
    """The body of a request with one user message."""
    return {"model": DEMO, "messages": [{"role": "user", "content": content}]} | parameters


class Server:
    """``llmspell serve`` in a process of its own; a context manager that stops it."""

    def __init__(self, *arguments: str, home: Path, variables: Mapping[str, str] | None = None) -> None:
        """Start it; it is ready on return.

        Arguments after ``serve --port 0`` win over it.
        """
        env = environment(home, LLMSPELL_LOGGING__FORMAT="json", **(variables or {}))
        self.process = prestarted.start("serve", "--port", "0", *arguments, env=env, cwd=home)
        self.log: list[dict[str, Any]] = []
        self.base_url = ""
        self._announced = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="log of the server", daemon=True)
        self._listener.start()
        assert self._announced.wait(PATIENCE), "the server does not say where it listens"
        assert self.base_url, f"the server ended: {self.log}"
        self.url = self.base_url.removesuffix("/v1")
        self.port = urlsplit(self.url).port or 0
        eventually(lambda: httpx.get(f"{self.url}/health/ready").status_code == 200, "the server is ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.exit_code()

    def exit_code(self) -> int:
        """Wait for the end of the process."""
        code = self.process.wait(PATIENCE)
        self._listener.join(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask the process to end and return its exit code."""
        self.process.send_signal(number)
        return self.exit_code()

    @property
    def log_text(self) -> str:
        return "\n".join(str(entry.get("message")) for entry in self.log)

    @property
    def failures(self) -> list[dict[str, Any]]:
        """What the server logged as its own failures."""
        return [entry for entry in self.log if entry.get("level") in {"error", "critical"} or "exception" in entry]

    def client(self, **options: object) -> OpenAI:
        """The SDK's client, which does not retry."""
        return OpenAI(**self._client_options(options))

    def async_client(self, **options: object) -> AsyncOpenAI:
        return AsyncOpenAI(**self._client_options(options))

    def ask(self, content: str = "Hello", **parameters: object) -> httpx.Response:
        """One whole answer, by plain HTTP."""
        return httpx.post(self.url + CHAT, json=chat_body(content, **parameters), timeout=PATIENCE)

    def is_free(self, **parameters: object) -> bool:
        """Whether a request is served now; without a queue that means that a sequence is free."""
        response = self.ask("Hi", **({"max_tokens": 1} | parameters))
        assert response.status_code in {200, 429}, response.text
        return response.status_code == 200

    def listens(self) -> bool:
        """Whether new connections are accepted."""
        try:
            httpx.get(f"{self.url}/health/live")
        except httpx.TransportError:
            return False
        return True

    def connect(self, receive_buffer: int | None = None) -> Connection:
        return Connection(self.port, receive_buffer)

    def cpu_seconds(self) -> float:
        """CPU time of the process so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def memory_bytes(self) -> int:
        """Resident memory of the process."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def num_connections(self) -> int:
        """Connections that the process holds open."""
        return sum(1 for found in psutil.Process(self.process.pid).net_connections() if found.raddr)

    def works_no_more(self) -> bool:
        """Whether the process uses next to no CPU time, seen over a short while."""
        before = self.cpu_seconds()
        time.sleep(0.5)
        return self.cpu_seconds() - before < 0.1

    def _client_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"base_url": self.base_url, "api_key": "unused", "max_retries": 0, "timeout": PATIENCE} | options

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"level": "critical", "message": line.rstrip("\n")}
            self.log.append(entry)
            if url := entry.get("url"):
                self.base_url = url
                self._announced.set()
        self._announced.set()


@dataclass(frozen=True)
class Site:
    """A model on one of the backends, and the server through which clients ask it.

    ``endless`` is what makes a stream that goes on until it is given up, and ``stuck`` one that does not come to its
    first token for long; ``None`` where the models at hand have no such thing. ``fake`` is the daemon, if it is one.
    """

    backend: str
    server: Server
    model: str
    with_tools: str | None = None
    thinking: str | None = None
    endless: Mapping[str, Any] | None = None
    stuck: Mapping[str, Any] | None = None
    fake: FakeOllama | None = None

    def body(self, content: str = "Hello", **parameters: object) -> dict[str, Any]:
        """The body of a request to the model, whose answer is always the same one."""
        return chat_body(content, **({"model": self.model, "temperature": 0} | parameters))

    def for_sdk(self, content: str, **parameters: object) -> dict[str, Any]:
        """The same for the SDK, which takes the parameters that OpenAI does not know from a separate one."""
        body = self.body(content, **parameters)
        extra = {name: body.pop(name) for name in _NOT_OF_OPENAI if name in body}
        return body | {"extra_body": extra}

    def ask(self, content: str, **parameters: object) -> ChatCompletion:
        """One whole answer, by the SDK."""
        with self.server.client() as client:
            answer: ChatCompletion = client.chat.completions.create(**self.for_sdk(content, **parameters))
            return answer

    def stream(self, content: str, **parameters: object) -> list[ChatCompletionChunk]:
        """All chunks of a stream, by the SDK."""
        body = self.for_sdk(content, stream=True, **parameters)
        with self.server.client() as client, client.chat.completions.create(**body) as stream:
            return list(stream)

    def post(self, content: str, **parameters: object) -> httpx.Response:
        """What comes for a request by plain HTTP."""
        return httpx.post(self.server.url + CHAT, json=self.body(content, **parameters), timeout=PATIENCE)

    def is_idle(self) -> bool:
        """Whether nothing is being computed for anybody."""
        if self.fake is not None:
            return self.fake.num_running == 0
        if self.backend == "llamacpp":
            return self.server.works_no_more()
        try:  # a real daemon answers one request after the other, and does not say how many wait
            body = self.body("Hi", **dict(self.endless or {}) | {"max_tokens": 1})
            return httpx.post(self.server.url + CHAT, json=body, timeout=10).status_code == 200
        except httpx.ReadTimeout:
            return False

    @contextmanager
    def begins(self) -> Iterator[None]:
        """Wait at the end of the block until the request sent in it is being computed."""
        before = self.server.cpu_seconds()
        yield
        if self.backend == "llamacpp":
            eventually(lambda: self.server.cpu_seconds() > before + 0.1, "the prompt is being computed")
        else:
            eventually(lambda: not self.is_idle(), "the daemon answers")


class Connection:
    """A connection, byte by byte."""

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        self._pending = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def post(self, body: bytes | Mapping[str, Any], version: str = "1.1", headers: str = "") -> None:
        """Send a chat request."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/{version}\r\nhost: test\r\ncontent-length: {len(data)}\r\n{headers}\r\n"
        self.socket.sendall(head.encode() + data)

    def send_head(self, headers: str) -> None:
        """Send the head of a chat request, without a body."""
        self.socket.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: test\r\n{headers}\r\n\r\n".encode())

    def end(self) -> None:
        """Say that nothing more will be sent."""
        with suppress(OSError):  # the server may have closed the connection already
            self.socket.shutdown(socket.SHUT_WR)

    def read_until(self, end: bytes) -> bytes:
        """Receive up to and with ``end``."""
        while end not in self._pending:
            received = self.socket.recv(65536)
            assert received, f"the connection ended after {self._pending!r}"
            self._pending += received
        found, _, self._pending = self._pending.partition(end)
        return found + end

    def received_so_far(self) -> bytes:
        """What has come and has not been read, without waiting for more."""
        self.socket.settimeout(0)
        try:
            self._pending += self.socket.recv(65536)
        except BlockingIOError:
            pass
        finally:
            self.socket.settimeout(PATIENCE)
        return self._pending

    def reset(self) -> None:
        """Close the connection in the way of a machine that crashed."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def read_to_end(self) -> bytes:
        """Receive until the server closes the connection."""
        pieces = [self._pending]
        with suppress(ConnectionResetError):  # what a server does to a client that goes on sending
            while received := self.socket.recv(65536):
                pieces.append(received)
        return b"".join(pieces)

    def read_answer(self) -> tuple[int, dict[str, str], bytes]:
        """Receive an answer with a content length."""
        lines = self.read_until(b"\r\n\r\n").decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        length = int(headers["content-length"])
        while len(self._pending) < length:
            received = self.socket.recv(65536)
            assert received, "the connection ended within a body"
            self._pending += received
        body, self._pending = self._pending[:length], self._pending[length:]
        return int(lines[0].split()[1]), headers, body


def sse_data(lines: Iterable[str]) -> list[str]:
    """The data of a stream of server-sent events, each of which is one line."""
    found = []
    for line in lines:
        if line.startswith("data: "):
            found.append(line.removeprefix("data: "))
        else:
            assert line == "" or line.startswith(":"), f"neither data nor a comment: {line!r}"
    return found


def text_of(answer: ChatCompletion) -> str:
    """The text of the first choice."""
    return answer.choices[0].message.content or ""


def streamed_text(chunks: Iterable[ChatCompletionChunk], index: int = 0) -> str:
    """The text of a choice of a stream."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def curl(*arguments: str) -> str:
    """What curl prints."""
    if which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--show-error", "--max-time", str(PATIENCE), *arguments]
    return subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout


def stream_text(chunks: Iterable[str]) -> str:
    """The text of the first choice in the data of a whole stream."""
    *parsed, end = chunks
    assert end == "[DONE]"
    choices = [choice for chunk in parsed for choice in json.loads(chunk)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices if choice["index"] == 0)
