"""The backend's own life: models in memory, preloading, and closing at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from asking import PATIENCE, answer_of, backend_at, paths_of, until
from fakes.ollama import Answer, FakeOllama, Pause, Reply

from server.backends.ollama.backend import OllamaBackend
from server.backends.ollama.config import OllamaConfig
from server.core.errors import ModelNotFound
from server.core.model_spec import BackendName, ModelSpec
from server.core.ports import ModelState

TOKENS = ["Hel", "lo"]


@pytest.fixture
def daemon() -> Iterator[FakeOllama]:
    with FakeOllama(reply=Reply(tokens=TOKENS)) as running:
        yield running


@pytest.fixture
async def backend(daemon: FakeOllama) -> AsyncIterator[OllamaBackend]:
    async with backend_at(daemon.url) as backend:
        yield backend


# --- models in memory ---


async def test_models_are_loaded_and_unloaded(daemon: FakeOllama, backend: OllamaBackend) -> None:
    await backend.load("demo-tools", "10m")
    assert daemon.loaded == ["demo-tools:latest"]
    card = await backend.model("demo-tools")
    assert card is not None
    assert (card.state, card.backend) == (ModelState.WARM, BackendName.OLLAMA)

    await backend.unload("demo-tools")
    assert daemon.loaded == []

    for act in (backend.load, backend.unload):
        with pytest.raises(ModelNotFound):
            await act("missing")


async def test_preload(daemon: FakeOllama, caplog: pytest.LogCaptureFixture) -> None:
    daemon.on(Answer(500, error="model requires more system memory (9 GiB) than is available"), model="demo-think")
    async with backend_at(daemon.url, preload="demo , missing,,demo-think,demo-tools", keep_alive="1h") as backend:
        backend.start()
        await until(daemon, lambda: "demo-tools:latest" in daemon.loaded)

    assert daemon.loaded == ["demo:latest", "demo-tools:latest"]
    messages = [record.getMessage() for record in caplog.records]
    assert any("missing" in message for message in messages)
    assert any("no memory" in message for message in messages)


async def test_closing_while_a_model_is_preloaded(daemon: FakeOllama) -> None:
    daemon.on(Pause("load"))
    async with backend_at(daemon.url, preload="demo") as backend:
        backend.start()
        await until(daemon, lambda: "/api/generate" in paths_of(daemon))
    await until(daemon, lambda: daemon.num_running == 0)


# --- closing ---


@pytest.mark.parametrize("num_turns", range(12))
async def test_closing_at_any_time(daemon: FakeOllama, num_turns: int) -> None:
    async with backend_at(daemon.url, preload="demo") as backend:
        backend.start()
        tasks = [asyncio.create_task(each) for each in (backend.models(), backend.model("demo"), answer_of(backend))]
        for _ in range(num_turns):
            await asyncio.sleep(0.001)
        await backend.aclose()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await until(daemon, lambda: daemon.records.num_open == 0)


async def test_closing_does_not_cancel_who_waits(daemon: FakeOllama) -> None:
    daemon.on(Pause(), path="/api/tags", times=None)
    async with backend_at(daemon.url) as backend:
        waiting = [asyncio.create_task(each) for each in (backend.has_model(ModelSpec("demo")), backend.models())]
        await until(daemon, lambda: "/api/tags" in paths_of(daemon))

        await backend.aclose()

        async with asyncio.timeout(PATIENCE):
            assert await waiting[0] is False
            assert await waiting[1] == []


async def test_nothing_is_sent_before_it_is_needed(daemon: FakeOllama) -> None:
    backend = OllamaBackend(OllamaConfig(url=daemon.url), {})
    await backend.aclose()

    assert daemon.requests == []
