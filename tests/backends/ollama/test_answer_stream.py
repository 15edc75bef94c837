"""Several choices in one answer: requests at the same time, one merged stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from asking import PATIENCE, TIME, WEATHER, Clock, answer_of, asked, backend_at, hear, last_line, line, ndjson, until
from fakes.ollama import Answer, Call, Cut, FakeOllama, Garbage, Pause, Reply, error_line
from peer import CHUNKED, END, Caller, chunk, counted, listening

from server.backends.ollama.backend import OllamaBackend
from server.core.errors import BackendError, QueueFull, TimedOut
from server.core.events import ChoiceFinished, Event, Finished, FinishReason, Started, TextDelta, ToolCallDelta
from server.core.ports import EventStream
from server.core.request import SamplingParameters

CHAT = "/api/chat"
TOKENS = ["Hel", "lo", "!"]
LAST = len(TOKENS) + 1
TAGS = counted(b'{"models":[{"name":"demo:latest","model":"demo:latest"}]}')


@pytest.fixture
def daemon() -> Iterator[FakeOllama]:
    with FakeOllama(reply=Reply(tokens=TOKENS)) as running:
        yield running


@pytest.fixture
async def backend(daemon: FakeOllama) -> AsyncIterator[OllamaBackend]:
    async with backend_at(daemon.url) as backend:
        yield backend


async def next_of(stream: EventStream) -> list[Event]:
    async with asyncio.timeout(PATIENCE):
        return list(await anext(stream))


@pytest.mark.parametrize("n", [2, 5, 16])
async def test_choices_are_merged(daemon: FakeOllama, backend: OllamaBackend, n: int) -> None:
    heard = await answer_of(backend, asked(n=n))

    assert [heard.text_of(index) for index in range(n)] == ["Hello!"] * n
    assert heard.events.count(Started()) == 1
    ends = [event for event in heard.events if isinstance(event, ChoiceFinished)]
    assert sorted(event.index for event in ends) == list(range(n))
    assert heard.finished.usage.completion_tokens == n * LAST
    assert heard.finished.usage.prompt_tokens < 20
    assert len(daemon.chats) == n


async def test_choices_differ_by_their_seeds(daemon: FakeOllama, backend: OllamaBackend) -> None:
    def speak(body: Any) -> Reply:  # noqa: ANN401 - JSON
        return Reply(tokens=[str(body["options"]["seed"])])

    daemon.say(speak)

    heard = await answer_of(backend, asked(n=4, sampling=SamplingParameters(seed=40)))

    assert [heard.text_of(index) for index in range(4)] == ["40", "41", "42", "43"]


async def test_without_a_seed_choices_are_random(daemon: FakeOllama, backend: OllamaBackend) -> None:
    await answer_of(backend, asked(n=2))

    assert all("seed" not in chat.body["options"] for chat in daemon.chats)


async def test_each_choice_ends_for_its_own_reason(daemon: FakeOllama, backend: OllamaBackend) -> None:
    def speak(body: Any) -> Reply:  # noqa: ANN401 - JSON
        return Reply(tokens=["a"] * (100 if body["options"]["seed"] else 1))

    daemon.say(speak)

    heard = await answer_of(backend, asked(n=2, max_tokens=10, sampling=SamplingParameters(seed=0)))

    assert ChoiceFinished(0, FinishReason.STOP) in heard.events
    assert ChoiceFinished(1, FinishReason.LENGTH) in heard.events


async def test_calls_are_numbered_by_choice(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.say(Reply(calls=[Call("time"), Call("weather")]))

    heard = await answer_of(backend, asked("demo-tools", tools=(WEATHER, TIME), n=2))

    calls = [event for event in heard.events if isinstance(event, ToolCallDelta)]
    assert sorted((call.index, call.call, call.name) for call in calls) == [
        (0, 0, "time"),
        (0, 1, "weather"),
        (1, 0, "time"),
        (1, 1, "weather"),
    ]
    assert len({call.id for call in calls}) == 4


async def test_a_daemon_that_serves_one_after_the_other() -> None:
    with FakeOllama(reply=Reply(tokens=TOKENS), parallel=1) as daemon:
        holding = daemon.on(Pause(1), path=CHAT)
        async with backend_at(daemon.url) as backend:
            async with asyncio.timeout(PATIENCE):
                stream = await backend.chat(asked(n=3))  # one head is enough
            assert Started() in await next_of(stream)
            holding.release()
            heard = await hear_rest(stream)
        assert sorted(event.index for event in heard if isinstance(event, ChoiceFinished)) == [0, 1, 2]
        assert isinstance(heard[-1], Finished)


@pytest.mark.parametrize("n", [1, 2])
async def test_the_wait_for_the_first_token_is_measured_here(daemon: FakeOllama, n: int) -> None:
    clock = Clock()
    async with backend_at(daemon.url, clock, detection_cache_seconds=3600) as backend:
        await answer_of(backend)
        holding = daemon.on(Pause(), path=CHAT, times=None)
        asking = asyncio.create_task(backend.chat(asked(n=n)))
        await until(daemon, lambda: len(daemon.chats) == 1 + n)
        clock.advance(7.5)
        holding.release()
        async with asyncio.timeout(PATIENCE):
            stream = await asking
        early = await next_of(stream)
        while not any(isinstance(event, TextDelta) for event in early):
            early += await next_of(stream)
        clock.advance(30)
        *_, last = [*early, *await hear_rest(stream)]

    assert isinstance(last, Finished)
    timings = last.timings
    assert timings.first_token == 7.5
    assert timings.queued == pytest.approx(7.5 - timings.load - timings.prompt)
    assert timings.prompt > 0


async def hear_rest(stream: EventStream) -> list[Event]:
    events: list[Event] = []
    try:
        async with asyncio.timeout(PATIENCE):
            async for batch in stream:
                events += batch
    finally:
        await stream.aclose()
    return events


async def test_events_come_before_all_heads_are_there(daemon: FakeOllama, backend: OllamaBackend) -> None:
    late = daemon.on(Pause(), path=CHAT)
    stream = await backend.chat(asked(n=2))
    events: list[Event] = []
    while not any(isinstance(event, ChoiceFinished) for event in events):
        events += await next_of(stream)

    late.release()

    assert isinstance((await hear_rest(stream))[-1], Finished)


# --- failures ---


@pytest.mark.parametrize(
    "action",
    [
        error_line("an error was encountered while running the model: unexpected EOF", after=2),
        Cut(2, "rst"),
        Cut(2, "whole"),
        Answer(500, error="it broke"),
        Garbage(),
    ],
)
async def test_one_failure_ends_all(daemon: FakeOllama, backend: OllamaBackend, action: Any) -> None:  # noqa: ANN401
    pause = daemon.on(Pause(1), path=CHAT, skip=1, times=None)
    fault = daemon.on(action, path=CHAT, times=1)
    late = daemon.on(Pause(), path=CHAT, times=1)
    stream = await backend.chat(asked(n=3))
    await until(daemon, lambda: len(daemon.chats) == 3)
    late.release()

    heard = await hear(stream)

    assert fault.hits == 1
    assert isinstance(heard.failure, BackendError)
    await until(daemon, lambda: daemon.num_running == 0)
    daemon.remove(pause)
    assert (await answer_of(backend, asked(n=3))).failure is None


async def test_refused_by_all(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.on(Answer(503, error="server busy, please try again"), path=CHAT, times=None)

    with pytest.raises(QueueFull):
        await backend.chat(asked(n=4))

    await until(daemon, lambda: daemon.num_running == 0)


async def test_the_first_refusal_ends_those_that_wait(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.on(Answer(503, error="server busy, please try again"), path=CHAT)
    daemon.on(Pause(), path=CHAT, skip=1, times=None)

    with pytest.raises(QueueFull):
        await backend.chat(asked(n=3))

    await until(daemon, lambda: daemon.num_running == 0)


async def test_a_failure_ends_those_that_wait_for_their_head(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.on(error_line("broken", after=1), path=CHAT)
    late = daemon.on(Pause(), path=CHAT, skip=1)
    daemon.on(Pause(2), path=CHAT, skip=1)
    stream = await backend.chat(asked(n=2))
    events: list[Event] = []
    async with asyncio.timeout(PATIENCE):
        async for batch in stream:
            events += batch
    await until(daemon, lambda: len(daemon.chats) == 2)

    late.release()  # nobody has closed the stream yet

    await until(daemon, lambda: daemon.num_running == 0)
    await stream.aclose()


async def test_silence_of_one(daemon: FakeOllama) -> None:
    daemon.on(Pause(2), path=CHAT)
    async with backend_at(daemon.url, silence_timeout_seconds=0.2) as backend:
        heard = await answer_of(backend, asked(n=2))

        assert isinstance(heard.failure, TimedOut)
        await until(daemon, lambda: daemon.num_running == 0)


# --- closing ---


@pytest.mark.parametrize("where", ["request", 1, 2])
async def test_closing_early_closes_all_requests(daemon: FakeOllama, backend: OllamaBackend, where: Any) -> None:  # noqa: ANN401
    daemon.on(Pause(where), path=CHAT, skip=1, times=None)
    stream = await backend.chat(asked(n=4))
    await until(daemon, lambda: len(daemon.chats) == 4)

    await stream.aclose()
    await stream.aclose()

    await until(daemon, lambda: daemon.num_running == 0)
    assert sum(chat.was_cut_off for chat in daemon.chats) == 3
    with pytest.raises(StopAsyncIteration):
        await next_of(stream)


async def test_closing_wakes_who_waits(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.on(Pause(1), path=CHAT, times=None)
    stream = await backend.chat(asked(n=2))
    hearing = asyncio.create_task(hear(stream))
    await until(daemon, lambda: sum(chat.num_lines for chat in daemon.chats) == 2)

    await stream.aclose()

    async with asyncio.timeout(PATIENCE):
        await hearing
    await until(daemon, lambda: daemon.num_running == 0)


async def test_cancelling_while_waiting_for_the_heads(daemon: FakeOllama, backend: OllamaBackend) -> None:
    daemon.on(Pause("load"), path=CHAT)
    chatting = asyncio.create_task(backend.chat(asked(n=3)))
    await until(daemon, lambda: len(daemon.chats) == 3)

    chatting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await chatting

    await until(daemon, lambda: daemon.num_running == 0)


# --- back-pressure ---


@pytest.mark.parametrize("n", [1, 2])
async def test_a_reader_that_does_not_read_stops_the_daemon(n: int) -> None:
    piece = chunk(ndjson(*[line("a" * 1000)] * 1000))
    most = 100
    sent: list[int] = []
    all_sent = asyncio.Event()

    async def behave(caller: Caller) -> None:
        while (request := await caller.request()).startswith(b"GET"):
            await caller.send(TAGS)
        if not request:
            return
        caller.writer.write(CHUNKED)
        count = 0
        try:
            while count < most:
                caller.writer.write(piece)
                count += 1
                await asyncio.wait_for(caller.writer.drain(), 0.5)
        except TimeoutError:
            pass
        sent.append(count)
        if len(sent) == n:
            all_sent.set()
        await all_sent.wait()
        await caller.send(chunk(ndjson(last_line())), END)
        await caller.closed()

    async with listening(behave) as peer, backend_at(peer.url) as backend:
        stream = await backend.chat(asked(n=n))
        async with asyncio.timeout(PATIENCE):
            await all_sent.wait()
        assert max(sent) < most / 2
        heard = await hear(stream)
        deltas = [event for event in heard.events if isinstance(event, TextDelta)]
        assert len(deltas) == 1000 * sum(sent)
        assert heard.failure is None
