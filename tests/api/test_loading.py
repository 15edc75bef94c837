"""Streams that wait for their model to be loaded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import httpx
import pytest
from fastapi import FastAPI

from api.scripted import ScriptedBackend, card
from api.serving import CHAT, HELLO, Served, http_request
from server.api.application import create_api
from server.api.config import ApiConfig
from server.api.event_stream import Comments
from server.core.errors import BackendError, InsufficientMemory, QueueFull
from server.core.events import Event, Started, TextDelta
from server.core.model_spec import BackendName
from server.core.ports import LoadProgress
from server.core.request import ChatRequest
from server.router import ModelRouter, RoutingConfig

STREAM = {**HELLO, "stream": True}
STREAMED = http_request(json.dumps(STREAM).encode())
PATIENT = 3600.0
QUICK = ApiConfig(loading_comment_seconds=0.01, keep_alive_comment_seconds=PATIENT)
QUEUED, HALF, LATE = LoadProgress(0.0, is_queued=True), LoadProgress(0.5), LoadProgress(0.966)


@pytest.fixture
def config() -> ApiConfig:
    return QUICK


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(admission=asyncio.Event())


async def test_a_load_is_reported_on(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.reports = [QUEUED, QUEUED, LoadProgress(0.0), HALF, LATE]

    response = await client.post(CHAT, json={**STREAM, "model": "gpt-4o-mini"})

    comments, _, answer = response.text.partition("data: ")
    assert comments == (
        ": loading 0% (waiting for memory)\n\n: loading 0% (waiting for memory)\n\n"
        ": loading 0%\n\n: loading 50%\n\n: loading 97%\n\n"
    )
    assert answer.endswith("data: [DONE]\n\n")
    assert "loading" not in answer
    assert set(backend.progress_asked) == {"demo"}


async def test_the_head_comes_with_the_first_report(served: Served, backend: ScriptedBackend) -> None:
    assert backend.admission is not None
    backend.reports = [HALF] * 100_000
    async with served.connect() as connection:
        await connection.send(STREAMED)
        status, headers = await connection.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        for _ in range(3):
            assert b": loading 50%\n\n" in await connection.reader.readuntil(b"%\n\n")
        assert backend.held == 1
        backend.admission.set()
        await connection.reader.readuntil(b"data: [DONE]")


async def test_going_away_from_a_load(served: Served, backend: ScriptedBackend) -> None:
    backend.reports = [HALF] * 100_000
    async with served.connect() as connection:
        await connection.send(STREAMED)
        await connection.reader.readuntil(b": loading 50%")
    await backend.until_held(0)


@pytest.mark.parametrize("config", [ApiConfig()])
async def test_a_quick_refusal_keeps_its_status(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.admission, backend.reports = None, [QUEUED]
    backend.rejection = InsufficientMemory("full")

    response = await client.post(CHAT, json=STREAM)

    assert response.status_code == 503
    assert response.json()["error"]["code"] == "insufficient_memory"


async def test_without_a_load_a_late_refusal_keeps_its_status(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.reports = [None] * 5
    backend.rejection = QueueFull("busy")

    response = await client.post(CHAT, json=STREAM)

    assert response.status_code == 429
    assert len(backend.progress_asked) == 5


async def test_a_load_that_begins_late_is_reported_on(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.reports = [None, None, HALF, None]

    response = await client.post(CHAT, json=STREAM)

    assert response.text.startswith(": loading 50%\n\ndata: ")


async def test_a_load_that_fails_is_an_error_event(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    backend.reports = [HALF]
    backend.rejection = InsufficientMemory("full", retry_after=5)

    response = await client.post(CHAT, json=STREAM)

    assert response.status_code == 200
    assert response.text.startswith(": loading 50%\n\ndata: ")
    assert json.loads(response.text.rsplit("data: ", 1)[1])["error"]["code"] == "insufficient_memory"
    assert "[DONE]" not in response.text


@pytest.mark.parametrize("config", [ApiConfig(loading_comment_seconds=0, keep_alive_comment_seconds=0.02)])
async def test_reports_can_be_turned_off(served: Served, backend: ScriptedBackend) -> None:
    assert backend.admission is not None
    backend.reports = [HALF] * 100
    async with served.connect() as connection:
        await connection.send(STREAMED)
        await connection.head()
        for _ in range(3):
            assert b": keep-alive\n\n" in await connection.reader.readuntil(b"e\n\n")
        backend.admission.set()
        await connection.reader.readuntil(b"data: [DONE]")
    assert backend.progress_asked == []


@pytest.mark.parametrize("config", [ApiConfig(loading_comment_seconds=0, keep_alive_comment_seconds=0)])
async def test_all_comments_can_be_turned_off(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    assert backend.admission is not None
    backend.rejection = QueueFull("busy")
    answer = asyncio.create_task(client.post(CHAT, json=STREAM))
    await backend.until_held(1)
    backend.admission.set()

    assert (await answer).status_code == 429


@pytest.mark.parametrize("config", [ApiConfig(loading_comment_seconds=0.01, keep_alive_comment_seconds=0.1)])
async def test_after_the_first_output_nobody_asks_for_progress(served: Served, backend: ScriptedBackend) -> None:
    async def think(_: ChatRequest) -> AsyncIterator[Sequence[Event]]:
        yield [Started(), TextDelta(0, "Hel")]
        await asyncio.Event().wait()

    backend.admission, backend.script = None, think
    backend.reports = [HALF] * 100_000
    async with served.connect() as connection:
        await connection.send(STREAMED)
        await connection.reader.readuntil(b"Hel")
        silence = await connection.reader.readuntil(b": keep-alive\n\n")
    assert b"loading" not in silence
    assert backend.progress_asked == []


async def test_the_backend_that_is_asked_is_the_one_that_reports() -> None:
    first = ScriptedBackend(name=BackendName.OLLAMA, admission=asyncio.Event(), rejection=BackendError("it broke"))
    first.cards = [card(backend=BackendName.OLLAMA)]
    first.reports = [None, None]
    second = ScriptedBackend(admission=asyncio.Event(), reports=[QUEUED, HALF])
    app = create_api(ModelRouter([first, second], {}, RoutingConfig(fallback=True)), QUICK)

    response = await ask(app)

    assert response.text.startswith(": loading 0% (waiting for memory)\n\n: loading 50%\n\ndata: ")
    assert len(first.progress_asked) == 2


async def ask(app: FastAPI) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.post(CHAT, json=STREAM)


@pytest.mark.parametrize(
    ("longest", "interval", "progress", "silence", "comment", "patience"),
    [
        (15, 2, HALF, 0, "", 2),
        (15, 2, HALF, 1.9, "", 2),
        (15, 2, HALF, 2, ": loading 50%\n\n", 2),
        (15, 2, HALF, 15, ": loading 50%\n\n", 2),
        (15, 2, None, 2, "", 2),
        (15, 2, None, 14, "", 1),
        (15, 2, None, 15, ": keep-alive\n\n", 2),
        (15, 2, None, 16, ": keep-alive\n\n", 2),
        (1, 2, HALF, 1, ": keep-alive\n\n", 1),
        (15, None, HALF, 2, "", 13),
        (15, None, HALF, 15, ": keep-alive\n\n", 15),
        (None, 2, HALF, 2, ": loading 50%\n\n", 2),
        (None, 2, None, 99, "", 2),
        (None, None, HALF, 99, "", None),
    ],
)
def test_which_comment_is_due(
    longest: float | None,
    interval: float | None,
    progress: LoadProgress | None,
    silence: float,
    comment: str,
    patience: float | None,
) -> None:
    comments = Comments(longest, interval, lambda: progress)

    assert comments.due(silence).decode() == comment
    assert comments.patience(silence) == patience
