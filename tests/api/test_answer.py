from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from api.scripted import ScriptedBackend
from server.api.answer import Answer, run_while_connected
from server.core.model_spec import ModelSpec
from server.core.request import ChatRequest, Role
from server.core.request import Message as ChatMessage
from server.router import Route

REQUEST = ChatRequest(spec=ModelSpec("demo"), messages=(ChatMessage(Role.USER, "Hi"),))


async def test_cancelling_twice_still_closes_the_request(backend: ScriptedBackend) -> None:
    opened = asyncio.Event()

    async def use() -> None:
        async with Answer(Route(ModelSpec("demo"), (backend,), fallback=False), REQUEST, lambda _: True) as answer:
            await answer.opened()
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await opened.wait()
    assert backend.held == 1
    task.cancel()
    await asyncio.sleep(0)  # the block is now being left
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await backend.until_held(0)


async def test_leaving_while_the_backend_still_admits(backend: ScriptedBackend) -> None:
    backend.admission = asyncio.Event()
    async with Answer(Route(ModelSpec("demo"), (backend,), fallback=False), REQUEST, lambda _: True) as answer:
        await answer.opened(timeout=0)
        await backend.until_held(1)
    await backend.until_held(0)


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def at_once() -> Message:
    return {"type": "http.disconnect"}


async def test_work_ends_as_it_would_alone_while_the_client_stays() -> None:
    async def work() -> int:
        return 5

    async def fail() -> None:
        raise KeyError

    assert await run_while_connected(never, work()) == 5
    with pytest.raises(KeyError):
        await run_while_connected(never, fail())


async def test_work_is_cancelled_when_the_client_goes_away() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(ClientDisconnect):
        await run_while_connected(at_once, work())
    assert cancelled.is_set()
