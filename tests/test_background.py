"""Blocking work in threads of its own."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from server.core.background import in_thread

NAME: ContextVar[str] = ContextVar("NAME")


async def test_results_and_exceptions_come_back() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)


async def test_the_context_of_the_caller_is_that_of_the_work() -> None:
    NAME.set("here")
    assert await in_thread(NAME.get) == "here"


async def test_work_that_hangs_keeps_nobody_else_waiting() -> None:
    gate = threading.Event()
    hanging = [asyncio.create_task(in_thread(gate.wait)) for _ in range(100)]
    assert await asyncio.wait_for(in_thread(lambda: "done"), 30) == "done"
    gate.set()
    assert await asyncio.gather(*hanging) == [True] * 100


async def test_who_stops_waiting_does_not_hear_of_the_end() -> None:
    gate, over = threading.Event(), threading.Event()

    def work() -> None:
        gate.wait()
        over.set()

    waiting = asyncio.create_task(in_thread(work))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    gate.set()
    assert await asyncio.to_thread(over.wait, 30)
    await asyncio.sleep(0)
    assert waiting.cancelled()
