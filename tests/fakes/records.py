"""What the stand-in saw, told to other threads."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 60.0
"""Seconds until something that must happen is taken for something that does not."""

INFERENCE = ("/api/chat", "/api/generate")


@dataclass(eq=False)
class Recorded:
    """A request, and what became of its answer."""

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes
    connection: int
    reused: bool
    started: float = field(default_factory=time.monotonic)
    num_lines: int = 0
    finished: float | None = None
    disconnected: float | None = None

    def __post_init__(self) -> None:
        try:
            self.body: Any = json.loads(self.raw) if self.raw else None
        except ValueError:
            self.body = None

    @property
    def model(self) -> str:
        """The model as the client wrote it."""
        return str(self.body.get("model", "")) if isinstance(self.body, dict) else ""

    @property
    def running(self) -> bool:
        return self.finished is None and self.disconnected is None

    @property
    def was_cut_off(self) -> bool:
        """Whether the client closed the connection before the end of the answer."""
        return self.disconnected is not None

    def as_json(self) -> dict[str, Any]:
        """The record as the control endpoint tells it."""
        told = {name: getattr(self, name) for name in ("method", "path", "body", "connection", "reused", "num_lines")}
        return told | {"headers": dict(self.headers), "running": self.running, "was_cut_off": self.was_cut_off}


class Records:
    """The requests and connections so far. Written by the stand-in's thread, read by any."""

    def __init__(self, limit: int | None = None) -> None:
        self._changed = threading.Condition()
        self._num_waiting = 0
        self._limit = limit
        self._requests: list[Recorded] = []
        self._num_running = 0
        self._peak_running = 0
        self._num_accepted = 0
        self._num_open = 0
        self._num_loads = 0
        self.failures: list[Exception] = []

    @contextmanager
    def change(self) -> Iterator[None]:
        """Change something that a waiting thread may look at."""
        with self._changed:
            yield
            if self._num_waiting:
                self._changed.notify_all()

    def begin(self, request: Recorded) -> None:
        with self.change():
            self._requests.append(request)
            if self._limit is not None and len(self._requests) > self._limit:
                del self._requests[0]
            if request.path in INFERENCE:
                self._num_running += 1
                self._peak_running = max(self._peak_running, self._num_running)

    def end(self, request: Recorded, *, disconnected: bool) -> None:
        with self.change():
            if disconnected:
                request.disconnected = time.monotonic()
            else:
                request.finished = time.monotonic()
            if request.path in INFERENCE:
                self._num_running -= 1

    def line(self, request: Recorded) -> None:
        """A line of the answer was sent."""
        request.num_lines += 1
        if self._num_waiting:
            with self.change():
                pass

    def connected(self) -> int:
        """A connection was accepted; returns its number."""
        with self.change():
            self._num_accepted += 1
            self._num_open += 1
            return self._num_accepted

    def disconnected(self) -> None:
        with self.change():
            self._num_open -= 1

    def failed(self, error: Exception) -> None:
        """The stand-in itself made a mistake."""
        with self.change():
            self.failures.append(error)

    def loaded(self) -> None:
        with self.change():
            self._num_loads += 1

    @property
    def requests(self) -> list[Recorded]:
        with self._changed:
            return list(self._requests)

    @property
    def num_running(self) -> int:
        """Chats and generations that are being answered."""
        return self._num_running

    @property
    def peak_running(self) -> int:
        """The most chats and generations that were answered at once."""
        return self._peak_running

    @property
    def num_accepted(self) -> int:
        """Connections accepted since the start."""
        return self._num_accepted

    @property
    def num_open(self) -> int:
        """Connections open now."""
        return self._num_open

    @property
    def num_loads(self) -> int:
        """How often a model was loaded."""
        return self._num_loads

    def wait_for(self, predicate: Callable[[], object], what: str = "it", timeout: float = PATIENCE) -> None:
        """Wait until the predicate holds; it is asked again whenever something here changes."""
        with self._changed:
            self._num_waiting += 1
            try:
                assert self._changed.wait_for(predicate, timeout), f"it never happened: {what}"
            finally:
                self._num_waiting -= 1
