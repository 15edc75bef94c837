"""What answers at the daemon's address is no daemon, or one that misbehaves: every request ends with a clean error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from asking import PATIENCE, answer_of, asked, backend_at, last_line, line, ndjson, until
from fakes.ollama import Action, Answer, Cut, FakeOllama, Garbage, Insert, Pause, Reframe, Reply
from peer import Caller, counted, listening

from server.backends.ollama.backend import OllamaBackend
from server.core.errors import BackendError, LlmspellError, ModelNotFound
from server.core.model_spec import ModelSpec

CHAT, TAGS = "/api/chat", "/api/tags"
TOKENS = ["Hel", "lo"]
HTML = "<!DOCTYPE html><title>502 Bad Gateway</title>"
DEMO = ModelSpec("demo")


@pytest.fixture
def daemon() -> Iterator[FakeOllama]:
    with FakeOllama(reply=Reply(tokens=TOKENS)) as running:
        yield running


@pytest.fixture
async def backend(daemon: FakeOllama) -> AsyncIterator[OllamaBackend]:
    async with backend_at(daemon.url, silence_timeout_seconds=5.0) as backend:
        yield backend


async def failure_of(backend: OllamaBackend, n: int) -> LlmspellError:
    """How a chat fails, whether it is refused or breaks off."""
    try:
        heard = await answer_of(backend, asked(n=n))
    except LlmspellError as error:
        return error
    assert heard.failure is not None
    return heard.failure


CHAT_FAULTS: dict[str, tuple[Action, str]] = {
    "404 in plain text": (Answer(404, body="404 page not found", content_type="text/plain"), "404"),
    "404 without a body": (Answer(404), "404 and no body"),
    "403 without a body": (Answer(403), "403"),
    "500 in HTML": (Answer(500, body=HTML, content_type="text/html"), "502 Bad Gateway"),
    "500 with an error": (Answer(500, error="something broke"), "something broke"),
    "502 in HTML": (Answer(502, body=HTML, content_type="text/html"), "502"),
    "a redirect": (Answer(302, headers={"Location": "http://elsewhere:1/api/chat"}), "redirects to http://elsewhere:1"),
    "a redirect to nowhere": (Answer(307), "redirects to nowhere"),
    "204": (Answer(204), "204"),
    "200 in HTML": (Answer(200, body=HTML, content_type="text/html"), "Bad Gateway"),
    "200 without a body": (Answer(200), "before it was complete"),
    "200 with an error": (Answer(200, error="it went wrong"), "it went wrong"),
    "200 with other JSON": (Answer(200, body='{"choices": []}'), "choices"),
    "half a line": (Cut(1, "whole", partial=True), "does not behave as Ollama does"),
    "half a line and a broken connection": (Cut(1, "rst", partial=True), "broke off"),
    "no last line": (Cut(1, "whole"), "before it was complete"),
    "a line of garbage": (Insert("\x00garbage", after=1), "garbage"),
    "no HTTP": (Garbage("220 mail.example ESMTP\r\n"), "not HTTP"),
    "no answer": (Garbage(), "broke off"),
    "an error in an error": (Answer(500, body='{"error":{"message":"inner"}}'), "inner"),
    "an error that says nothing": (Answer(500, body='{"error":null}'), "500"),
    "a huge error": (Answer(500, body="x" * 1_000_000), "500"),
    "a huge error in JSON": (Answer(500, error="x" * 10_000), "xxx"),
}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("fault", CHAT_FAULTS)
async def test_chats(daemon: FakeOllama, backend: OllamaBackend, fault: str, n: int) -> None:
    action, words = CHAT_FAULTS[fault]
    rule = daemon.on(action, path=CHAT, times=None)

    error = await failure_of(backend, n)

    assert isinstance(error, BackendError)
    assert words in error.message
    assert len(error.message) < 3000
    assert "\x00" not in error.message
    await until(daemon, lambda: daemon.num_running == 0)
    daemon.remove(rule)
    assert (await answer_of(backend)).text == "Hello"


async def test_an_error_told_by_a_server_that_closes(daemon: FakeOllama) -> None:
    del daemon
    answers = {
        b"GET": counted(b'{"models":[{"name":"demo:latest","model":"demo:latest"}]}'),
        b"POST": b'HTTP/1.0 503 Busy\r\n\r\n{"error":"server busy, please try again"}',
    }

    async def behave(caller: Caller) -> None:
        request = await asyncio.wait_for(caller.reader.readuntil(b"\r\n\r\n"), PATIENCE)
        await caller.send(answers[request.split()[0]])

    async with listening(behave) as peer, backend_at(peer.url) as backend:
        with pytest.raises(LlmspellError, match="server busy"):
            await backend.chat(asked())


async def test_any_framing(daemon: FakeOllama, backend: OllamaBackend) -> None:
    for sizes in ((1,), (), (7, 300)):
        daemon.on(Reframe(sizes), path=CHAT)
        assert (await answer_of(backend)).text == "Hello"


TAGS_FAULTS: dict[str, Action] = {
    "404": Answer(404, body="404 page not found", content_type="text/plain"),
    "500": Answer(500, error="broken"),
    "HTML": Answer(200, body=HTML, content_type="text/html"),
    "a redirect": Answer(301, headers={"Location": "https://elsewhere/"}),
    "an error": Answer(200, error="broken"),
    "nothing": Garbage(),
    "no HTTP": Garbage("220 mail.example ESMTP\r\n"),
    "half an answer": Cut(),
    "no JSON object": Answer(200, body="[]"),
    "null": Answer(200, body="null"),
    "no models": Answer(200, body="{}"),
    "models that are no list": Answer(200, body='{"models": 5}'),
    "models that are no objects": Answer(200, body='{"models": ["demo"]}'),
    "a size that is none": Answer(200, body='{"models": [{"name": "demo", "size": Infinity}]}'),
    "deep JSON": Answer(200, body="[" * 100_000),
    "a wrong encoding": Answer(200, headers={"Content-Encoding": "gzip"}, body="plain"),
}


@pytest.mark.parametrize("fault", TAGS_FAULTS)
async def test_lists(daemon: FakeOllama, backend: OllamaBackend, fault: str) -> None:
    daemon.on(TAGS_FAULTS[fault], path=TAGS, times=None)

    assert await backend.models() == []
    assert await backend.model("demo") is None
    assert not await backend.has_model(DEMO)
    with pytest.raises(BackendError):
        await backend.chat(asked())
    assert daemon.chats == []


@pytest.mark.parametrize("path", ["/api/ps", "/api/show"])
@pytest.mark.parametrize("fault", TAGS_FAULTS)
async def test_what_is_asked_beside_the_list(daemon: FakeOllama, backend: OllamaBackend, fault: str, path: str) -> None:
    daemon.on(TAGS_FAULTS[fault], path=path, times=None)

    assert len(await backend.models()) == 5
    card = await backend.model("demo")
    assert card is not None
    assert "chat" in card.capabilities
    assert (await answer_of(backend)).text == "Hello"


@pytest.mark.parametrize("where", ["request", 0])
async def test_a_daemon_that_says_nothing_for_ever(daemon: FakeOllama, where: str | int) -> None:
    daemon.on(Pause(where), path=TAGS, times=None)  # type: ignore[arg-type]
    async with backend_at(daemon.url, detection_timeout_seconds=0.2) as backend, asyncio.timeout(PATIENCE):
        assert not await backend.has_model(DEMO)
        assert await backend.models() == []
        with pytest.raises(BackendError, match="takes too long"):
            await backend.chat(asked())


async def test_a_daemon_that_says_nothing_about_its_models_in_detail(daemon: FakeOllama) -> None:
    for path in ("/api/show", "/api/ps"):
        daemon.on(Pause(), path=path, times=None)
    async with backend_at(daemon.url, detection_timeout_seconds=0.2) as backend, asyncio.timeout(PATIENCE):
        assert len(await backend.models()) == 5
        assert await backend.model("demo") is not None


async def test_all_models_are_gone(daemon: FakeOllama, backend: OllamaBackend) -> None:
    assert await backend.has_model(DEMO)
    daemon.on(Answer(404, error="model 'demo:latest' not found"), path=CHAT)

    with pytest.raises(ModelNotFound):
        await backend.chat(asked())


async def test_two_thousand_models() -> None:
    with FakeOllama(num_models=2000, reply=Reply(tokens=TOKENS)) as daemon:
        async with backend_at(daemon.url, silence_timeout_seconds=5.0) as backend:
            assert await backend.has_model(ModelSpec("model-01999"))
            assert (await answer_of(backend, asked("model-00000"))).text == "Hello"
            cards = await backend.models()
            assert len({card.model for card in cards}) == 2005


async def test_a_stream_of_blank_lines_and_late_lines(daemon: FakeOllama, backend: OllamaBackend) -> None:
    body = "\n\n" + ndjson(line("a"), line("b")).decode() + "\n" + ndjson(last_line(), line("late")).decode()
    daemon.on(Answer(200, body=body, content_type="application/x-ndjson"), path=CHAT)

    heard = await answer_of(backend)

    assert heard.text == "ab"
    assert heard.failure is None
