"""A server that says what a test tells it to, byte by byte, and keeps what it was asked."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

PATIENCE = 60.0


@dataclass(frozen=True)
class Asked:
    """One request; ``target`` is the path as it came."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - any JSON value
        return json.loads(self.body) if self.body else None


Reply = Callable[[socket.socket], None]


def sends(*pieces: bytes) -> Reply:
    """Send these bytes and close the connection."""

    def reply(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)

    return reply


def whole(value: object, status: int = 200, **headers: str) -> Reply:
    """Answer with JSON, or with text as it is; ``_`` stands for ``-`` in the names of headers."""
    body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    return sends(head(status, content_length=str(len(body)), **headers) + body)


def stream(*data: object, comments: Iterable[str] = ()) -> Reply:
    """Answer with server-sent events."""
    frames = [f": {comment}\n\n" for comment in comments] + [f"data: {_text(each)}\n\n" for each in data]
    return sends(stream_head(), *(frame.encode() for frame in frames))


def head(status: int = 200, **headers: str) -> bytes:
    given = (f"{name.replace('_', '-')}: {value}" for name, value in headers.items())
    lines = [f"HTTP/1.1 {status} Status", "connection: close", *given]
    return "\r\n".join([*lines, "", ""]).encode()


def stream_head() -> bytes:
    return head(200, content_type="text/event-stream")


def envelope(message: str, code: str | None, param: str | None = None) -> dict[str, object]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class Answering:
    """Gives each request the next reply; a context manager. ``left`` is set when a client has closed a connection."""

    def __init__(self, *replies: Reply) -> None:
        self.asked: list[Asked] = []
        self.left = threading.Event()
        self._replies = iter(replies)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, name="answering")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server is stuck"

    def _serve(self) -> None:
        for reply in self._replies:
            try:
                connection, asked = self._next()
            except OSError:
                return
            with connection:
                self.asked.append(asked)
                with suppress(OSError):  # the client may be gone, at any moment and in several words of the system's
                    reply(connection)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
                self.left.set()

    def _next(self) -> tuple[socket.socket, Asked]:
        """Wait for a request; who only looks whether somebody listens says nothing."""
        while True:
            connection, _ = self._listener.accept()
            connection.settimeout(PATIENCE)
            if (asked := _read(connection)) is not None:
                return connection, asked
            connection.close()


def _read(connection: socket.socket) -> Asked | None:
    received = connection.recv(65536)
    if not received:
        return None
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    start, _, body = received.partition(b"\r\n\r\n")
    first, *lines = start.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += _some(connection)
    method, target, _ = first.split(" ")
    return Asked(method, target, headers, body)


def _some(connection: socket.socket) -> bytes:
    received = connection.recv(65536)
    assert received, "the client left within its request"
    return received
