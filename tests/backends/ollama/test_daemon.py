"""Short questions to the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from asking import PATIENCE, until
from fakes.ollama import DEFAULT_MODELS, Answer, Cut, FakeModel, FakeOllama, Pause
from peer import counted, listening, sending

from server.backends.ollama.daemon import Daemon, ModelDetails
from server.core.errors import BackendError, InsufficientMemory, LlmspellError, ModelNotFound

CLOUD = FakeModel("big", remote_model="big:671b", remote_host="https://ollama.com:443")


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    with FakeOllama(FakeModel("demo", ("completion", "tools"), digest="abc"), CLOUD) as running:
        yield running


@pytest.fixture
async def daemon(fake: FakeOllama) -> AsyncIterator[Daemon]:
    daemon = Daemon(fake.url, connect_timeout=2.0, answer_timeout=5.0)
    yield daemon
    await daemon.close()


async def test_version(daemon: Daemon) -> None:
    assert await daemon.version() == "0.30.0"


async def test_models(daemon: Daemon) -> None:
    big, demo = await daemon.models()

    assert (demo.name, demo.digest, demo.size_bytes, demo.remote_host) == ("demo:latest", "abc", 5_524_501, None)
    assert demo.details == ModelDetails(8192, ("completion", "tools"), "2.74M", "F16")
    assert demo.modified_at > 1_700_000_000
    assert (big.name, big.remote_host) == ("big:latest", "https://ollama.com:443")


@pytest.mark.parametrize(
    ("row", "modified_at"),
    [
        ('"modified_at":"2026-11-22T15:41:13.022653319Z"', 1795362073),
        ('"modified_at":"2026-11-22T16:41:13+01:00"', 1795362073),
        ('"modified_at":"0001-01-01T00:00:00Z"', -62135596800),
        ('"modified_at":"0001-01-01T00:00:00"', 0),
        ('"modified_at":"9999-12-31T23:59:59"', None),
        ('"modified_at":"yesterday"', 0),
        ('"modified_at":null', 0),
        ('"modified_at":17', 0),
    ],
)
async def test_dates(row: str, modified_at: int | None) -> None:
    body = f'{{"models":[{{"name":"a","size":null,"details":[],{row}}}]}}'.encode()
    async with listening(sending(counted(body))) as peer:
        daemon = Daemon(peer.url, connect_timeout=2.0, answer_timeout=5.0)
        (model,) = await daemon.models()
        await daemon.close()
    assert modified_at is None or model.modified_at == modified_at
    assert (model.size_bytes, model.details, model.digest) == (0, ModelDetails(), "a")


async def test_running(daemon: Daemon) -> None:
    assert await daemon.running() == {}
    await daemon.load("Demo", "5m")
    running = await daemon.running()
    assert running.keys() == {"demo:latest"}
    assert running["demo:latest"] is not None
    assert running["demo:latest"] > DEFAULT_MODELS[0].size
    await daemon.unload("demo")
    await daemon.unload("demo")
    assert await daemon.running() == {}


async def test_details(daemon: Daemon) -> None:
    assert await daemon.details("demo") == ModelDetails(8192, ("completion", "tools"))
    with pytest.raises(ModelNotFound):
        await daemon.details("missing")


@pytest.mark.parametrize(
    "answer",
    ["{}", '{"model_info":null,"capabilities":null}', '{"model_info":[],"capabilities":[]}', '{"model_info":{"a":1}}'],
)
async def test_details_that_say_nothing(fake: FakeOllama, daemon: Daemon, answer: str) -> None:
    fake.on(Answer(200, body=answer), path="/api/show")

    assert await daemon.details("demo") == ModelDetails()


@pytest.mark.parametrize("length", ["true", '"many"', "-1", "0", "1.5"])
async def test_lengths_that_are_none(fake: FakeOllama, daemon: Daemon, length: str) -> None:
    information = f'{{"general.architecture":"llama","llama.context_length":{length}}}'
    fake.on(Answer(200, body=f'{{"model_info":{information}}}'), path="/api/show")

    assert (await daemon.details("demo")).context_length is None


async def test_loading_may_take_long(fake: FakeOllama) -> None:
    pause = fake.on(Pause("load"))
    daemon = Daemon(fake.url, connect_timeout=2.0, answer_timeout=0.1)
    loading = asyncio.create_task(daemon.load("demo"))
    await until(fake, lambda: fake.requests)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(loading), 0.3)

    pause.release()

    async with asyncio.timeout(PATIENCE):
        await loading
    await daemon.close()


async def test_loading_may_fail(fake: FakeOllama, daemon: Daemon) -> None:
    fake.on(Answer(500, error="model requires more system memory (9 GiB) than is available (3 GiB)"))

    with pytest.raises(InsufficientMemory):
        await daemon.load("demo")
    with pytest.raises(ModelNotFound):
        await daemon.load("missing")


@pytest.mark.parametrize(
    ("where", "limit"), [(Pause(), 0.2), (Pause(0), 0.2), (Cut(), 5.0), (Answer(302, headers={"Location": "/"}), 5.0)]
)
async def test_failures(fake: FakeOllama, where: Pause | Cut | Answer, limit: float) -> None:
    fake.on(where)
    daemon = Daemon(fake.url, connect_timeout=2.0, answer_timeout=limit)

    with pytest.raises(LlmspellError) as caught:
        await daemon.version()

    reason = daemon.reason_of(caught.value)
    assert 0 < len(reason) < 300
    assert isinstance(caught.value, BackendError)
    await daemon.close()


async def test_why_a_daemon_is_away(fake: FakeOllama, daemon: Daemon) -> None:
    await asyncio.to_thread(fake.stop)

    with pytest.raises(BackendError, match="does not answer") as caught:
        await daemon.models()

    assert daemon.reason_of(caught.value) == "the connection is refused"


async def test_after_closing(daemon: Daemon) -> None:
    await daemon.close()
    await daemon.close()

    with pytest.raises(BackendError):
        await daemon.version()


async def test_proxies_of_the_environment_are_not_used(fake: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    daemon = Daemon(fake.url, connect_timeout=2.0, answer_timeout=5.0)

    assert await daemon.version() == "0.30.0"
    await daemon.close()
