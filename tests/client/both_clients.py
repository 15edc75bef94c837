"""Both clients, asked in the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, closing
from typing import Any, Protocol

from server.client import AsyncLocalLLM, LocalLLM
from server.core.pulling import PullEvent


class Ask(Protocol):
    """Calls the method of a client that is made for it, and closes the client."""

    def __call__(self, url: str | None, method: str, *arguments: object, **options: object) -> Any:  # noqa: ANN401
        ...


def ask_sync(url: str | None, method: str, *arguments: object, **options: object) -> Any:  # noqa: ANN401
    with LocalLLM(url, timeout=30) as llm:
        return getattr(llm, method)(*arguments, **options)


def ask_async(url: str | None, method: str, *arguments: object, **options: object) -> Any:  # noqa: ANN401
    async def ask() -> object:
        async with AsyncLocalLLM(url, timeout=30) as llm:
            return await getattr(llm, method)(*arguments, **options)

    return asyncio.run(ask())


class Pull(Protocol):
    """Pulls with a client that is made for it; ``enough`` says after which event it is left, if ever."""

    def __call__(
        self,
        url: str,
        spec: str,
        quantization: str | None = None,
        *,
        enough: Callable[[PullEvent], bool] = ...,
        timeout: float = ...,
    ) -> list[PullEvent]: ...


def _never(_: PullEvent) -> bool:
    return False


def pull_sync(
    url: str,
    spec: str,
    quantization: str | None = None,
    *,
    enough: Callable[[PullEvent], bool] = _never,
    timeout: float = 30,
) -> list[PullEvent]:
    events = []
    with LocalLLM(url, timeout=timeout) as llm, closing(llm.pull(spec, quantization)) as pull:
        for event in pull:
            events.append(event)
            if enough(event):
                break
    return events


def pull_async(
    url: str,
    spec: str,
    quantization: str | None = None,
    *,
    enough: Callable[[PullEvent], bool] = _never,
    timeout: float = 30,
) -> list[PullEvent]:
    async def ask() -> list[PullEvent]:
        events = []
        async with AsyncLocalLLM(url, timeout=timeout) as llm, aclosing(llm.pull(spec, quantization)) as pull:
            async for event in pull:
                events.append(event)
                if enough(event):
                    break
        return events

    return asyncio.run(ask())
