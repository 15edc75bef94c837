"""One request at its backend: from admission to its last event, or to the moment its client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Self, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from server.core.errors import LlmspellError
from server.core.events import Event, Failed
from server.core.model_spec import BackendName
from server.core.ports import Backend, LoadProgress
from server.core.request import ChatRequest
from server.router import Accepts, OpenedAnswer, Route

BACKEND_HEADER = "x-llmspell-backend"
"""Response header: the backend that answers."""
FALLBACK_HEADER = "x-llmspell-fallback"
"""Response header: the backend that failed before the one that answers took over."""

T = TypeVar("T")


class Answer:
    """An async context manager that asks a backend for an answer.

    Whatever ends the block (the last event, an error, a client that went away, cancellation) ends the request at the
    backend, too: ``__aexit__`` is the only place where requests are given up.
    """

    def __init__(self, route: Route, request: ChatRequest, accepts: Accepts) -> None:
        self._route = route
        self._request = request
        self._accepts = accepts
        self._asked = route.backend
        self._opened: OpenedAnswer | None = None

    @property
    def backend(self) -> BackendName:
        """The backend that has the request now: the one that answers, once its first output is there."""
        return self._asked.name

    @property
    def headers(self) -> dict[str, str]:
        """Say who answers; until the first output is there, that is the backend of choice."""
        if self._opened is None:
            return {BACKEND_HEADER: self._route.backend.name.value}
        headers = {BACKEND_HEADER: self._opened.backend.name.value}
        return headers if self._opened.failed is None else headers | {FALLBACK_HEADER: self._opened.failed.value}

    async def __aenter__(self) -> Self:
        self._opening = asyncio.create_task(self._open())
        return self

    async def __aexit__(self, *_: object) -> None:
        # a task of its own: whoever cancels this one (again) cannot keep the backend from hearing of it
        self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def opened(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 (running out of time is no error)
        """Wait until the answer's first output is there, or for ``timeout`` seconds; say whether it is there.

        Raises:
            LlmspellError: the backend refuses the request, or failed before any output.

        """
        await asyncio.wait({self._opening}, timeout=timeout)
        if not self._opening.done():
            return False
        self._opening.result()
        return True

    def progress(self) -> LoadProgress | None:
        """Return how far the download or load is that the first output waits for; ``None`` if it waits for neither."""
        if self._opening.done():
            return None
        fetch = self._route.fetch
        return (fetch and fetch.progress) or self._asked.progress(self._route.spec.model)

    async def batches(self) -> AsyncIterator[Sequence[Event]]:
        """Yield the events; a refusal or an early failure is an event here, like any other failure."""
        try:
            yield await self._opening
        except LlmspellError as error:
            yield (Failed(error),)
            return
        if self._opened is not None:
            async for batch in self._opened.stream:
                yield batch

    async def _close(self) -> None:
        await end_task(self._opening)
        if self._opened is not None:
            await self._opened.stream.aclose()

    async def _open(self) -> Sequence[Event]:
        self._opened = await self._route.open(self._request, self._accepts, self._ask)
        return self._opened.early

    def _ask(self, backend: Backend) -> None:
        self._asked = backend


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work``, whose request body has been read, unless the client goes away first.

    Raises:
        ClientDisconnect: the client went away; ``work`` was cancelled and has ended.

    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            return worker.result()
        raise ClientDisconnect
    finally:
        await end_task(watcher)
        await end_task(worker)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task that may be over already, and wait for its end; its outcome is nobody's any more."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # mark it as seen: whoever waited for the result has had it
