"""Requests to the backend, and what to make of its answers."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fakes.ollama import FakeOllama

from server.backends.ollama.backend import OllamaBackend
from server.backends.ollama.config import OllamaConfig
from server.core.errors import LlmspellError
from server.core.events import Event, Failed, Finished, ReasoningDelta, Started, TextDelta
from server.core.model_spec import ModelSpec
from server.core.ports import EventStream
from server.core.request import ChatRequest, Message, ReasoningOutput, Role, Tool

PATIENCE = 60.0
HELLO = (Message(Role.USER, "Hi"),)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("weather", "How it is outside", CITY)
TIME = Tool("time", None, {"type": "object", "properties": {}})


def asked(model: str = "demo", **more: Any) -> ChatRequest:  # noqa: ANN401 - the fields of a request
    """A request that says nothing but "Hi", and ``more``."""
    return ChatRequest(**{"spec": ModelSpec(model), "messages": HELLO, **more})


def line(content: str | None = None, *, done: bool = False, **more: object) -> dict[str, Any]:
    """A line of the daemon's stream; what is not about the message goes beside it."""
    of_message: dict[str, object] = {name: more.pop(name) for name in ("thinking", "tool_calls") if name in more}
    message: dict[str, object] = {"role": "assistant", "content": content or "", **of_message}
    return {"model": "demo", "created_at": "2026-11-22T15:41:13.022653319Z", "message": message, "done": done, **more}


def last_line(done_reason: str = "stop", **more: object) -> dict[str, Any]:
    counts = {"load_duration": 2_000_000_000, "prompt_eval_count": 17, "prompt_eval_duration": 500_000_000}
    counts |= {"eval_count": 5, "eval_duration": 1_500_000_000}
    return line(done=True) | {"done_reason": done_reason, **counts, **more}


def ndjson(*lines: object) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Heard:
    """All that came of a stream."""

    events: list[Event] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.text_of(0)

    def text_of(self, index: int) -> str:
        return "".join(each.text for each in self.events if isinstance(each, TextDelta) and each.index == index)

    @property
    def reasoning(self) -> str:
        return "".join(each.text for each in self.events if isinstance(each, ReasoningDelta))

    @property
    def failure(self) -> LlmspellError | None:
        """Why the answer ended, if it did before its end; an answer has one end."""
        assert isinstance(self.events[0], Started)
        assert not any(isinstance(each, Finished | Failed) for each in self.events[:-1])
        last = self.events[-1]
        return last.error if isinstance(last, Failed) else None

    @property
    def finished(self) -> Finished:
        assert self.failure is None
        assert isinstance(self.events[-1], Finished)
        return self.events[-1]


async def hear(stream: EventStream) -> Heard:
    """Take all events, and close the stream."""
    heard = Heard()
    try:
        async with asyncio.timeout(PATIENCE):
            async for batch in stream:
                assert batch
                heard.events += batch
    finally:
        await stream.aclose()
    return heard


async def answer_of(backend: OllamaBackend, request: ChatRequest | None = None) -> Heard:
    async with asyncio.timeout(PATIENCE):
        stream = await backend.chat(asked() if request is None else request)
    return await hear(stream)


async def until(daemon: FakeOllama, predicate: Callable[[], object], what: str = "it") -> None:
    """Wait until something holds at the stand-in, which lives on another thread."""
    await asyncio.to_thread(daemon.wait_for, predicate, what, PATIENCE)


@asynccontextmanager
async def backend_at(
    url: str,
    clock: Callable[[], float] = time.monotonic,
    reasoning: Callable[[str], ReasoningOutput] = lambda _: ReasoningOutput.SPLIT,
    **config: Any,  # noqa: ANN401
) -> AsyncIterator[OllamaBackend]:
    """A backend that is not started, and leaves no task behind."""
    settings = OllamaConfig(**{"url": url, "detection_timeout_seconds": 5.0, **config})
    backend = OllamaBackend(settings, {}, clock, reasoning)
    try:
        yield backend
    finally:
        await backend.aclose()
        await backend.aclose()
        left = [task for task in asyncio.all_tasks() if _is_ours(task)]
        assert not left, f"left behind: {left}"


def _is_ours(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and f"{os.sep}server{os.sep}backends{os.sep}" in code.co_filename


def paths_of(daemon: FakeOllama) -> Sequence[str]:
    return [request.path for request in daemon.requests]
