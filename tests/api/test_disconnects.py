"""A client that goes away, or stops reading, gives back what its request held."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from api.scripted import ScriptedBackend, say_hello
from api.serving import HELLO, Served, http_request
from server.api.config import ApiConfig
from server.core.events import Event, Started, TextDelta
from server.core.request import ChatRequest

WHOLE = http_request(json.dumps(HELLO).encode())
STREAMED = http_request(json.dumps({**HELLO, "stream": True}).encode())


UVICORN_CLOSED_IT = "ASGI callable returned without completing response."
"""What uvicorn says when a client that does not read is given up: there is no way to complete that response."""


async def think_for_ever(_: ChatRequest) -> AsyncIterator[Sequence[Event]]:
    yield [Started()]
    await asyncio.Event().wait()


async def talk_then_think_for_ever(_: ChatRequest) -> AsyncIterator[Sequence[Event]]:
    yield [Started(), TextDelta(0, "Hel")]
    await asyncio.Event().wait()


async def talk_for_ever(_: ChatRequest) -> AsyncIterator[Sequence[Event]]:
    while True:
        yield [TextDelta(0, "x" * 10_000)]
        await asyncio.sleep(0)


async def serves_on(served: Served, backend: ScriptedBackend) -> bool:
    backend.script, backend.admission = say_hello, None
    async with served.connect() as connection:
        return (await connection.ask(json.dumps(HELLO).encode())).status == 200


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(caplog: pytest.LogCaptureFixture, served: Served) -> Iterator[None]:
    """A client that goes away is no failure of the server; ``served`` is still up when this is checked."""
    assert served.port
    yield
    errors = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert set(errors) <= {UVICORN_CLOSED_IT}


@pytest.mark.parametrize("request_bytes", [WHOLE, STREAMED], ids=["whole", "streamed"])
async def test_going_away_while_waiting_for_admission(
    served: Served, backend: ScriptedBackend, request_bytes: bytes
) -> None:
    backend.admission = asyncio.Event()
    async with served.connect() as connection:
        await connection.send(request_bytes)
        await backend.until_held(1)
    await backend.until_held(0)
    assert await serves_on(served, backend)


@pytest.mark.parametrize("request_bytes", [WHOLE, STREAMED], ids=["whole", "streamed"])
async def test_going_away_before_the_first_token(
    served: Served, backend: ScriptedBackend, request_bytes: bytes
) -> None:
    backend.script = think_for_ever
    async with served.connect() as connection:
        await connection.send(request_bytes)
        await backend.until_held(1)
    await backend.until_held(0)
    assert await serves_on(served, backend)


async def test_going_away_in_mid_stream(served: Served, backend: ScriptedBackend) -> None:
    backend.script = talk_then_think_for_ever
    async with served.connect() as connection:
        await connection.send(STREAMED)
        await connection.reader.readuntil(b"Hel")
        assert backend.held == 1
    await backend.until_held(0)
    assert await serves_on(served, backend)


async def test_going_away_from_a_whole_answer(served: Served, backend: ScriptedBackend) -> None:
    backend.script = talk_then_think_for_ever
    async with served.connect() as connection:
        await connection.send(WHOLE)
        await backend.until_held(1)
    await backend.until_held(0)
    assert await serves_on(served, backend)


async def test_going_away_before_the_body_is_sent(served: Served, backend: ScriptedBackend) -> None:
    async with served.connect() as connection:
        await connection.send(WHOLE[:-5])
    assert await serves_on(served, backend)
    assert len(backend.requests) == 1


@pytest.mark.parametrize("config", [ApiConfig(send_timeout_seconds=0.1)])
async def test_a_client_that_stops_reading_is_given_up(served: Served, backend: ScriptedBackend) -> None:
    backend.script = talk_for_ever
    async with served.connect() as connection:
        await connection.send(STREAMED)
        await backend.until_held(1)
        await backend.until_held(0)
        assert await serves_on(served, backend)


async def test_a_slow_reader_gets_everything(served: Served, backend: ScriptedBackend) -> None:
    async def script(_: ChatRequest) -> AsyncIterator[Sequence[Event]]:
        for _index in range(200):
            yield [TextDelta(0, "x" * 10_000)]
        async for batch in say_hello(backend.requests[0]):
            yield batch

    backend.script = script
    async with served.connect() as connection:
        await connection.send(STREAMED)
        async with served.connect() as other:  # the loop is free while the first client reads nothing
            assert (await other.ask(b"{")).status == 400
        text = b""
        while b"[DONE]" not in text[-200:]:
            text += await connection.reader.read(1000)
    assert text.count(b"x" * 10_000) == 200
    await backend.until_held(0)
