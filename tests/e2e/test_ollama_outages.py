"""A daemon that dies, hangs or talks nonsense: clean errors for its own requests, nothing for all others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from conftest import Start
from fakes.ollama import Action, Answer, Cut, FakeModel, FakeOllama, Garbage, error_line
from fakes.process import OllamaProcess
from openai import AsyncOpenAI
from serving import CHAT, PATIENCE, Server, chat_body, eventually, sse_data, using_ollama

POOL = "local/demo@llamacpp"
SPELL = "local/spell@ollama"
A_FEW_SECONDS = 20.0
"""Until a daemon that is back is used again: one second by design, and what a busy machine adds."""
AT_ONCE = 1.5
"""Longest time of something that waits for nobody, at its best of several attempts."""

SLOWLY = ("--model", "spell", "--tokens-per-second", "100", "--tokens")


def asked(model: str, **parameters: object) -> dict[str, Any]:
    return chat_body("Count from 1 to 10", model=model, temperature=0, **parameters)


async def outcome(client: AsyncOpenAI, model: str, *, stream: bool) -> str:
    """How a request ends: ``done``, or the code of OpenAI's error object."""
    reasons: list[str | None] = []
    try:
        if stream:
            async with await client.chat.completions.create(**asked(model), stream=True) as chunks:
                reasons += [choice.finish_reason async for chunk in chunks for choice in chunk.choices]
        else:
            answer = await client.chat.completions.create(**asked(model))
            reasons = [choice.finish_reason for choice in answer.choices]
    except openai.APIError as error:
        return str(error.code)
    assert reasons[-1] == "stop"
    return "done"


def outcomes(server: Server, model: str) -> set[str]:
    """How a stream and a whole answer end."""

    async def ask() -> set[str]:
        async with server.async_client() as client:
            return {await outcome(client, model, stream=stream) for stream in (False, True)}

    return asyncio.run(ask())


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(eventually, condition, what)


def backends_listed(server: Server) -> set[str]:
    models = httpx.get(f"{server.base_url}/models", timeout=PATIENCE).json()["data"]
    return {model["backend"] for model in models}


def least_time(server: Server, model: str = "") -> float:
    """Seconds that a request, or without a model their list, takes at its best."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        if model:
            server.ask(model=model, max_tokens=1)
        else:
            backends_listed(server)
        times.append(time.monotonic() - began)
    return min(times)


def assert_is_used_again(server: Server, model: str = SPELL) -> None:
    began = time.monotonic()
    eventually(lambda: server.ask(model=model, max_tokens=1).status_code == 200, "the daemon is used again")
    assert time.monotonic() - began < A_FEW_SECONDS
    assert backends_listed(server) == {"llamacpp", "ollama"}


@pytest.fixture
def daemon() -> Iterator[OllamaProcess]:
    """A daemon whose answers take half a minute."""
    with OllamaProcess(*SLOWLY, "3000") as process:
        yield process


@pytest.fixture
def brisk_daemon() -> Iterator[OllamaProcess]:
    """A daemon whose answers take a second."""
    with OllamaProcess(*SLOWLY, "100") as process:
        yield process


async def test_a_daemon_that_is_killed_during_traffic(start: Start, brisk_daemon: OllamaProcess) -> None:
    daemon = brisk_daemon
    server = await asyncio.to_thread(start, "--demo", variables=using_ollama(daemon.url))
    is_over = asyncio.Event()
    async with server.async_client() as client:

        async def keep_asking(model: str, *, stream: bool) -> Counter[str]:
            ends = Counter[str]()
            while not is_over.is_set():
                ends[await outcome(client, model, stream=stream)] += 1
            return ends

        async with asyncio.TaskGroup() as group:
            theirs = [group.create_task(keep_asking(SPELL, stream=stream)) for stream in (True, False) * 4]
            ours = [group.create_task(keep_asking(POOL, stream=stream)) for stream in (True, False)]
            await until(lambda: daemon.ask("state")["num_running"] == 8, "all requests are being answered")
            for _ in range(2):
                await asyncio.to_thread(daemon.kill)
                await until(lambda: backends_listed(server) == {"llamacpp"}, "its models are off the list")
                assert await asyncio.to_thread(least_time, server) < AT_ONCE
                await asyncio.to_thread(daemon.start)
                began = time.monotonic()
                await until(lambda: daemon.ask("state")["num_running"] > 0, "the daemon is used again")
                assert time.monotonic() - began < A_FEW_SECONDS
            await asyncio.to_thread(assert_is_used_again, server)
            is_over.set()
    ends = sum((task.result() for task in theirs), Counter[str]())
    assert ends.keys() == {"done", "backend_error"}
    assert ends["backend_error"] >= 16  # all that ran, twice
    assert all(task.result().keys() == {"done"} for task in ours)
    assert server.failures == []


def test_a_stream_whose_daemon_is_killed_ends_with_an_error_event(start: Start, daemon: OllamaProcess) -> None:
    server = start("--demo", variables=using_ollama(daemon.url))
    for n in (1, 2):
        body = asked(SPELL, stream=True, n=n)
        with httpx.stream("POST", server.url + CHAT, json=body, timeout=PATIENCE) as response:
            lines = response.iter_lines()
            received = [next(lines) for _ in range(10)]
            daemon.kill()
            received += lines
        *chunks, last = [json.loads(data) for data in sse_data(received)]  # each is whole, and none is [DONE]
        assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
        assert last["error"]["code"] == "backend_error"
        assert {*last["error"]} == {"message", "type", "param", "code"}
        daemon.start()
        assert_is_used_again(server)


@pytest.mark.parametrize("fallback", [True, False])
def test_fallback(start: Start, *, fallback: bool) -> None:
    """What waits for its first token when the daemon dies moves over; what comes later goes to the pool at once."""
    with OllamaProcess("--model", "demo") as daemon:
        config = f"[routing]\nfallback = {str(fallback).lower()}\n"
        server = start("--demo", config=config, variables=using_ollama(daemon.url))

        def backend(model: str = "local/demo") -> str | None:
            name: str | None = server.ask(model=model, max_tokens=1).headers.get("x-llmspell-backend")
            return name

        eventually(lambda: backend() == "ollama", "the daemon is preferred")
        daemon.tell("rules", do="pause", where="request", path="/api/chat", times=None)
        with (
            server.connect() as whole,
            server.connect() as stream,
            server.connect() as forced,
        ):
            whole.post(asked("local/demo"))
            stream.post(asked("local/demo", stream=True), headers="connection: close\r\n")
            forced.post(asked("local/demo@ollama"))
            eventually(lambda: daemon.ask("state")["num_running"] == 3, "all wait for their first token")
            daemon.kill()
            status, headers, answer = whole.read_answer()
            assert status == (200 if fallback else 502)
            if fallback:
                assert (headers["x-llmspell-backend"], headers["x-llmspell-fallback"]) == ("llamacpp", "ollama")
                assert "1, 2, 3" in json.loads(answer)["choices"][0]["message"]["content"]
                streamed = stream.read_to_end().decode().lower()
                assert "x-llmspell-backend: llamacpp\r\nx-llmspell-fallback: ollama\r\n" in streamed
                assert "data: [done]" in streamed
            assert forced.read_answer()[0] == 502
        eventually(lambda: backend() == "llamacpp", "the pool has the model as well")
        assert backend("local/demo@ollama") is None
        daemon.start()
        eventually(lambda: backend() == "ollama", "the daemon is used again")


def test_a_daemon_that_hangs_costs_its_time_limit_once(start: Start, daemon: OllamaProcess) -> None:
    """Answers may be silent for ten minutes, but not while the daemon answers nobody."""
    limits = {"LLMSPELL_OLLAMA__DETECTION_TIMEOUT_SECONDS": "2"}
    server = start("--demo", variables=using_ollama(daemon.url, **limits))
    assert_is_used_again(server)
    body = asked(SPELL, stream=True)
    with server.connect() as whole, httpx.stream("POST", server.url + CHAT, json=body, timeout=PATIENCE) as response:
        lines = response.iter_lines()
        received = [next(lines) for _ in range(10)]
        whole.post(asked(SPELL))
        eventually(lambda: daemon.ask("state")["num_running"] == 2, "both are being answered")
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            eventually(lambda: backends_listed(server) == {"llamacpp"}, "the daemon counts as down")
            assert least_time(server) < AT_ONCE
            assert least_time(server, model="local/demo") < AT_ONCE
            assert least_time(server, model="local/nothing") < AT_ONCE
            assert server.ask(model=SPELL).status_code == 502
            received += lines
            assert json.loads(sse_data(received)[-1])["error"]["code"] == "backend_error"
            status, _, answer = whole.read_answer()
            assert (status, json.loads(answer)["error"]["code"]) == (502, "backend_error")
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
    assert_is_used_again(server)
    assert server.failures == []


def test_an_address_that_swallows_everything(start: Start) -> None:
    """A connection is made, and nothing ever comes."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as hole:
        url = f"http://127.0.0.1:{hole.getsockname()[1]}"
        limits = {"LLMSPELL_OLLAMA__DETECTION_TIMEOUT_SECONDS": "2", "LLMSPELL_OLLAMA__CONNECT_TIMEOUT_SECONDS": "2"}
        server = start("--demo", variables=using_ollama(url, **limits))
        assert backends_listed(server) == {"llamacpp"}
        assert least_time(server) < AT_ONCE
        assert least_time(server, model=POOL) < AT_ONCE
        assert outcomes(server, POOL) == {"done"}
        assert outcomes(server, SPELL) == {"backend_error"}
        assert server.stop() == 0


def test_no_daemon_at_all_and_then_one(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = start("--demo", variables=using_ollama(f"127.0.0.1:{port}"))
    assert backends_listed(server) == {"llamacpp"}
    assert outcomes(server, "local/demo") == {"done"}
    assert outcomes(server, "local/spell") == {"model_not_found"}
    refused = server.ask(model=SPELL)
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "backend_error")
    assert "ollama serve" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    with FakeOllama(FakeModel("spell"), port=port):
        assert_is_used_again(server, "local/spell")
    assert server.failures == []


NONSENSE: dict[str, Action] = {
    "html": Answer(body="<html>Welcome to nginx!</html>", content_type="text/html"),
    "an error page": Answer(status=500, body="<html>Oops</html>", content_type="text/html"),
    "an error": Answer(status=500, error="something went wrong"),
    "an error with 200": Answer(error="something went wrong"),
    "a redirect": Answer(status=307, headers={"location": "https://example.com/"}),
    "not found": Answer(status=404, body="404 page not found", content_type="text/plain"),
    "half of it": Answer(body='{"models": [{"na'),
    "other JSON": Answer(body='{"models": 5, "message": 5}'),
    "a list": Answer(body="[]"),
    "no HTTP": Garbage("SSH-2.0-OpenSSH_9.6\r\n"),
    "the end": Garbage(),
    "a reset": Garbage(ending="rst"),
}


@pytest.fixture(scope="module")
def spell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeOllama, Server]]:
    """A daemon to spoil, and its server."""
    # the list is asked for each time, so that it is spoilt as soon as the daemon is
    variables = {"LLMSPELL_OLLAMA__DETECTION_CACHE_SECONDS": "0"}
    with FakeOllama(FakeModel("spell")) as fake:
        home = tmp_path_factory.mktemp("spell")
        with Server("--demo", home=home, variables=using_ollama(fake.url, **variables)) as server:
            yield fake, server
            assert server.failures == []


@pytest.mark.parametrize("nonsense", ["html", "a redirect", "other JSON", "no HTTP"])
def test_nonsense_everywhere(spell: tuple[FakeOllama, Server], nonsense: str) -> None:
    fake, server = spell
    assert_is_used_again(server)
    fake.on(NONSENSE[nonsense], times=None)
    eventually(lambda: backends_listed(server) == {"llamacpp"}, "the daemon counts as down")
    assert outcomes(server, SPELL) == {"backend_error"}
    assert outcomes(server, "local/spell") == {"backend_error"}
    assert outcomes(server, "local/demo") == {"done"}
    fake.clear_rules()
    assert_is_used_again(server)


SPOILT_ANSWERS = NONSENSE | {
    "cut": Cut(after=2),
    "cut in a line": Cut(after=2, partial=True),
    "reset": Cut(after=2, ending="rst"),
    "no last line": Cut(after=2, ending="whole"),
    "an error line": error_line("an error was encountered while running the model: unexpected EOF", after=2),
    "an error line first": error_line("an error was encountered while running the model: unexpected EOF", after=0),
}


@pytest.mark.parametrize("nonsense", SPOILT_ANSWERS)
def test_nonsense_in_answers(spell: tuple[FakeOllama, Server], nonsense: str) -> None:
    fake, server = spell
    assert_is_used_again(server)
    fake.on(SPOILT_ANSWERS[nonsense], path="/api/chat", times=None)
    assert outcomes(server, SPELL) == {"backend_error"}
    assert backends_listed(server) == {"llamacpp", "ollama"}
    fake.clear_rules()
    assert outcomes(server, SPELL) == {"done"}
