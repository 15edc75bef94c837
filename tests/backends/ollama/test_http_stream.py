"""Connections to the daemon: kept, replaced, given up; on each kind of event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Literal

import pytest
from asking import PATIENCE, until
from fakes.ollama import CloseIdle, FakeOllama, Garbage, Pause, Reply
from peer import CHUNKED, END, Caller, chunk, connecting, counted, listening, sending, whole

from server.backends.ollama.http_stream import (
    ConnectionFailed,
    HttpStreamClient,
    NotConnected,
    SilenceTooLong,
    StreamedResponse,
)

CHAT = "/api/chat"
BODY = b'{"model":"demo","messages":[{"role":"user","content":"Hi"}]}'
TOKENS = ["a", "b", "c"]
LAST = len(TOKENS) + 1
SHORT = 0.15


@pytest.fixture
def daemon() -> Iterator[FakeOllama]:
    with FakeOllama(reply=Reply(tokens=TOKENS)) as running:
        yield running


@pytest.fixture
async def client(daemon: FakeOllama) -> AsyncIterator[HttpStreamClient]:
    async with connecting(daemon.url) as client:
        yield client


async def ask(client: HttpStreamClient) -> bytes:
    return await whole(await client.post(CHAT, BODY))


async def first_of(client: HttpStreamClient) -> StreamedResponse:
    """A response of which something has come."""
    response = await client.post(CHAT, BODY)
    assert await response.read()
    return response


# --- a server that answers nobody ---


@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("where", ["request", 0, 1])
async def test_a_frozen_server_is_not_waited_for(
    daemon: FakeOllama, where: Literal["request"] | int, *, is_kept: bool
) -> None:
    async def is_alive() -> bool:
        return False

    client = HttpStreamClient(daemon.url, connect_timeout=5, silence_timeout=60, is_alive=is_alive, quiet_seconds=SHORT)
    if is_kept:
        await ask(client)
    daemon.on(Pause(where), path=CHAT)

    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ConnectionFailed, match="does not answer other requests either"):
            await whole(await client.post(CHAT, BODY))

    assert len(daemon.chats) == 1 + is_kept  # nothing was sent a second time
    client.close()


async def test_a_server_that_works_in_silence_is_waited_for(daemon: FakeOllama) -> None:
    asked = asyncio.Semaphore(0)

    async def is_alive() -> bool:
        asked.release()
        return True

    client = HttpStreamClient(daemon.url, connect_timeout=5, silence_timeout=60, is_alive=is_alive, quiet_seconds=0.01)
    rule = daemon.on(Pause(), path=CHAT)
    waiting = asyncio.create_task(ask(client))
    for _ in range(3):
        await asyncio.wait_for(asked.acquire(), PATIENCE)
    rule.release()

    assert (await asyncio.wait_for(waiting, PATIENCE)).count(b"\n") == LAST
    client.close()


# --- kept connections ---


async def test_a_connection_serves_one_request_after_the_other(daemon: FakeOllama, client: HttpStreamClient) -> None:
    answers = [await ask(client) for _ in range(5)]

    assert all(answer.count(b"\n") == LAST for answer in answers)
    assert daemon.records.num_accepted == 1
    assert [chat.reused for chat in daemon.chats] == [False, True, True, True, True]
    assert daemon.chats[0].raw == BODY
    assert daemon.chats[0].headers["content-type"] == "application/json"


async def test_requests_at_the_same_time_have_connections_of_their_own(
    daemon: FakeOllama, client: HttpStreamClient
) -> None:
    responses = [await client.post(CHAT, BODY) for _ in range(4)]
    for response in responses:
        await whole(response)
    await ask(client)

    assert daemon.records.num_accepted == 4


async def test_a_connection_closed_meanwhile_is_replaced(daemon: FakeOllama, client: HttpStreamClient) -> None:
    daemon.on(CloseIdle(), path=CHAT)

    assert await ask(client) != b""
    assert await ask(client) != b""

    assert daemon.records.num_accepted == 2


@pytest.mark.parametrize("ending", ["fin", "rst"])
async def test_kept_connections_that_break_unused_are_replaced(
    daemon: FakeOllama, client: HttpStreamClient, ending: str
) -> None:
    for response in [await client.post(CHAT, BODY) for _ in range(3)]:
        await whole(response)
    daemon.on(Garbage("", ending), path=CHAT, reused=True, times=None)  # type: ignore[arg-type]

    assert (await ask(client)).count(b"\n") == LAST

    assert daemon.records.num_accepted == 4
    assert [chat.reused for chat in daemon.chats[3:]] == [True, True, True, False]


@pytest.mark.parametrize("data", ["H", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_request_is_not_repeated_once_bytes_came(
    daemon: FakeOllama, client: HttpStreamClient, data: str
) -> None:
    await ask(client)
    daemon.on(Garbage(data), path=CHAT)

    with pytest.raises(ConnectionFailed):
        await client.post(CHAT, BODY)

    assert len(daemon.chats) == 2


@pytest.mark.parametrize("ending", ["fin", "rst"])
async def test_a_new_connection_that_breaks_is_a_failure(
    daemon: FakeOllama, client: HttpStreamClient, ending: str
) -> None:
    daemon.on(Garbage("", ending), path=CHAT)  # type: ignore[arg-type]

    with pytest.raises(ConnectionFailed) as caught:
        await client.post(CHAT, BODY)

    assert not isinstance(caught.value, NotConnected)
    assert len(daemon.chats) == 1


async def test_nobody_asked_for_bytes_on_an_idle_connection() -> None:
    async with listening(sending(counted(b"a") + b"HTTP/1.1 200 OK\r\n")) as peer, connecting(peer.url) as client:
        assert await ask(client) == b"a"
        assert await ask(client) == b"a"
        await peer.until_gone(1)


async def test_connections_of_a_restarted_daemon_are_replaced(daemon: FakeOllama, client: HttpStreamClient) -> None:
    await ask(client)
    await asyncio.to_thread(daemon.stop)
    with pytest.raises(NotConnected):
        await client.post(CHAT, BODY)
    await asyncio.to_thread(daemon.start)

    assert (await ask(client)).count(b"\n") == LAST


async def test_closing_the_client_closes_idle_connections(daemon: FakeOllama, client: HttpStreamClient) -> None:
    await ask(client)

    client.close()

    await until(daemon, lambda: daemon.records.num_open == 0)


# --- no connection ---


async def test_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with connecting(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(NotConnected, match="the connection is refused"):
            await client.post(CHAT, BODY)


async def test_connecting_has_a_limit() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # what the kernel accepts by itself, and more
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex(listener.getsockname())
        async with connecting(f"http://127.0.0.1:{listener.getsockname()[1]}", connect=SHORT) as client:
            with pytest.raises(NotConnected, match=r"0\.15 s"):
                await client.post(CHAT, BODY)


# --- silence ---


async def test_silence_before_the_head(daemon: FakeOllama) -> None:
    daemon.on(Pause(), path=CHAT)
    async with connecting(daemon.url, silence=SHORT) as client:
        with pytest.raises(SilenceTooLong):
            await client.post(CHAT, BODY)
        await until(daemon, lambda: daemon.chats[0].was_cut_off)


@pytest.mark.parametrize("num_lines", [0, 1, LAST])
async def test_silence_after_the_head(daemon: FakeOllama, num_lines: int) -> None:
    daemon.on(Pause(num_lines), path=CHAT)
    async with connecting(daemon.url, silence=SHORT) as client:
        response = await client.post(CHAT, BODY)
        with pytest.raises(SilenceTooLong):
            await whole(response)
        response.close()
        await until(daemon, lambda: daemon.chats[0].was_cut_off)


async def test_a_slow_answer_is_no_silence() -> None:
    with FakeOllama(reply=Reply(tokens=["a"] * 30), tokens_per_second=50.0) as daemon:
        async with connecting(daemon.url, silence=0.4) as client:
            assert (await ask(client)).count(b"\n") == 31


async def test_a_slow_reader_is_no_silence() -> None:
    async with listening(sending(counted(b"abc"))) as peer, connecting(peer.url, silence=SHORT) as client:
        response = await client.post(CHAT, BODY)
        await asyncio.sleep(2 * SHORT)  # the answer is there, and nobody reads it
        assert await whole(response) == b"abc"


# --- back-pressure ---


async def blocked(caller: Caller, data: bytes, most: int) -> int:
    """Send until the client takes no more; return how many times."""
    for count in range(most):
        caller.writer.write(data)
        try:
            await asyncio.wait_for(caller.writer.drain(), 0.5)
        except TimeoutError:
            return count + 1
    return most


@pytest.mark.parametrize("silence", [10.0, 0.2], ids=["patient", "impatient"])
async def test_a_reader_that_does_not_read_stops_the_daemon(silence: float) -> None:
    piece = b"x" * 1024 * 1024
    most = 64
    sent: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def behave(caller: Caller) -> None:
        await caller.request()
        await caller.send(CHUNKED)
        sent.set_result(await blocked(caller, chunk(piece), most))
        await caller.send(END)
        await caller.closed()

    async with listening(behave) as peer, connecting(peer.url, silence=silence) as client:
        response = await client.post(CHAT, BODY)
        count = await sent
        assert count < most / 2
        assert len(await whole(response)) == count * len(piece)


# --- giving up ---


@pytest.mark.parametrize("where", [0, 1])
async def test_closing_in_mid_stream_breaks_the_connection(
    daemon: FakeOllama, client: HttpStreamClient, where: int
) -> None:
    daemon.on(Pause(where), path=CHAT)
    response = await client.post(CHAT, BODY)
    if where:
        assert await response.read()

    response.close()
    response.close()

    await until(daemon, lambda: daemon.chats[0].was_cut_off)
    assert await response.read() == b""
    assert (await ask(client)).count(b"\n") == LAST
    assert daemon.records.num_accepted == 2


async def test_cancelling_while_waiting_for_the_head_breaks_the_connection(
    daemon: FakeOllama, client: HttpStreamClient
) -> None:
    daemon.on(Pause(), path=CHAT)
    asking = asyncio.create_task(client.post(CHAT, BODY))
    await until(daemon, lambda: daemon.chats)

    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    await until(daemon, lambda: daemon.chats[0].was_cut_off)


async def test_closing_wakes_who_reads(daemon: FakeOllama, client: HttpStreamClient) -> None:
    daemon.on(Pause(1), path=CHAT)
    response = await first_of(client)
    reading = asyncio.create_task(response.read())
    await asyncio.sleep(0)

    response.close()

    async with asyncio.timeout(10):
        assert await reading == b""


async def test_a_response_that_is_complete_can_be_closed_unread() -> None:
    async with listening(sending(counted(b"abc"))) as peer, connecting(peer.url) as client:
        for _ in range(3):
            response = await client.post(CHAT, BODY)
            response.close()
            assert await response.read() == b""
        assert len(peer.callers) == 1


# --- a response of which nothing more is needed ---


async def test_the_connection_is_kept_when_the_end_comes_soon() -> None:
    async def behave(caller: Caller) -> None:
        await caller.request()
        await caller.send(CHUNKED, chunk(b"a\n"))
        await finished.wait()
        await caller.send(END)
        await sending(counted(b"b"))(caller)

    finished = asyncio.Event()
    async with listening(behave) as peer, connecting(peer.url) as client:
        response = await first_of(client)
        response.finish()
        response.close()
        assert await response.read() == b""
        finished.set()
        others = []
        while len(peer.callers[0].requests) < 2:  # connections are new until the end has come
            others.append(await client.post(CHAT, BODY))
            assert len(others) < 100
        for other in others:
            other.close()


async def test_the_connection_is_broken_when_the_end_does_not_come(
    daemon: FakeOllama, client: HttpStreamClient
) -> None:
    daemon.on(Pause(LAST), path=CHAT)
    response = await first_of(client)

    response.finish()

    await until(daemon, lambda: daemon.chats[0].was_cut_off)


async def test_closing_the_client_does_not_wait_for_the_end(daemon: FakeOllama, client: HttpStreamClient) -> None:
    daemon.on(Pause(LAST), path=CHAT)
    response = await first_of(client)
    response.finish()

    client.close()

    await until(daemon, lambda: daemon.records.num_open == 0)


async def test_a_connection_that_ends_after_the_client_is_not_kept() -> None:
    ending = asyncio.Event()

    async def behave(caller: Caller) -> None:
        await caller.request()
        await caller.send(CHUNKED, chunk(b"a"))
        await ending.wait()
        await caller.send(END)
        await caller.closed()

    async with listening(behave) as peer, connecting(peer.url) as client:
        response = await first_of(client)
        client.close()
        ending.set()
        assert await whole(response) == b""
        await peer.until_gone(1)
