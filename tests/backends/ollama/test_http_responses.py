"""What servers answer, byte for byte: shapes of responses that are understood, and what is none."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from peer import CHUNKED, END, Caller, chunk, connecting, counted, listening, sending, whole

from server.backends.ollama.http_stream import ConnectionFailed, HttpStreamClient, NotConnected, StreamedResponse

PATH, BODY = "/api/chat", b"{}"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n"


async def post(client: HttpStreamClient) -> StreamedResponse:
    async with asyncio.timeout(10):
        return await client.post(PATH, BODY)


async def all_before_failure(response: StreamedResponse) -> bytes:
    body = b""
    try:
        while piece := await response.read():
            body += piece
    except ConnectionFailed:
        return body
    pytest.fail("the body is whole")


def splits(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    return ((data[:place], data[place:]) for place in range(len(data)))


async def test_a_response_may_come_in_any_pieces() -> None:
    response_bytes = CHUNKED + chunk(b"ab\n") + chunk(b"c") + chunk(b"\n" * 17) + END
    halves = splits(response_bytes)

    async def behave(caller: Caller) -> None:
        while await caller.request():
            await caller.send(*next(halves))

    async with listening(behave) as peer, connecting(peer.url) as client:
        for _ in range(len(response_bytes)):
            response = await post(client)
            assert (response.status, response.headers["content-type"]) == (200, "application/x-ndjson")
            assert await whole(response) == b"ab\nc" + b"\n" * 17
        assert len(peer.callers) == 1


async def test_byte_by_byte() -> None:
    response_bytes = CHUNKED + chunk(b"ab\n") + END
    async with (
        listening(sending(*(bytes([byte]) for byte in response_bytes))) as peer,
        connecting(peer.url) as client,
    ):
        assert await whole(await post(client)) == b"ab\n"


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [
        (counted(b"abc"), 200, b"abc"),
        (counted(b""), 200, b""),
        (counted(b"no", "404 Not Found"), 404, b"no"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + counted(b"abc"), 200, b"abc"),
        (CHUNKED + b"1;name=value\r\na\r\n0\r\nx-trailer: b\r\n\r\n", 200, b"a"),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\na", 200, b"a"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n", 302, b""),
    ],
)
async def test_responses_after_which_the_connection_is_kept(data: bytes, status: int, body: bytes) -> None:
    async with listening(sending(data)) as peer, connecting(peer.url) as client:
        for _ in range(2):
            response = await post(client)
            assert (response.status, await whole(response)) == (status, body)
        assert len(peer.callers) == 1


@pytest.mark.parametrize(
    "data",
    [
        UNTIL_CLOSED + b"abc",
        b"HTTP/1.0 200 OK\r\n\r\nabc",
        b"HTTP/1.0 500 Failed\r\ncontent-type: text/html\r\n\r\nabc",
    ],
)
async def test_a_body_that_ends_with_the_connection(data: bytes) -> None:
    async with listening(sending(data, close=True)) as peer, connecting(peer.url) as client:
        for _ in range(2):
            assert await whole(await post(client)) == b"abc"
        assert len(peer.callers) == 2


async def test_a_server_that_closes_after_each_response() -> None:
    data = counted(b"a", headers="connection: close\r\n")
    async with listening(sending(data)) as peer, connecting(peer.url) as client:
        for count in range(1, 4):
            assert await whole(await post(client)) == b"a"
            await peer.until_gone(count)


@pytest.mark.parametrize(
    "data",
    [
        b"Ollama is running\r\n\r\n",
        b"<html></html>",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"\x00" * 1000,
    ],
)
async def test_what_is_not_http(data: bytes) -> None:
    async with listening(sending(data)) as peer, connecting(peer.url) as client:
        with pytest.raises(ConnectionFailed, match="not HTTP"):
            await whole(await post(client))
        await peer.until_gone(1)


@pytest.mark.parametrize(
    ("data", "before"),
    [
        (CHUNKED + chunk(b"abc") + b"zz\r\n", b"abc"),
        (CHUNKED + chunk(b"abc") + b"5\r\nab", b"abcab"),
        (counted(b"abc")[:-1], b"ab"),
        (CHUNKED + chunk(b"abc"), b"abc"),
        (CHUNKED, b""),
    ],
)
async def test_a_body_that_breaks_off(data: bytes, before: bytes) -> None:
    async with listening(sending(data, close=True)) as peer, connecting(peer.url) as client:
        response = await post(client)
        assert await all_before_failure(response) == before
        response.close()


@pytest.mark.parametrize("piece", [b"x-padding: " + b"a" * 1000 + b"\r\n", b"a" * 1000], ids=["many", "long"])
async def test_a_head_without_end(piece: bytes) -> None:
    num_sent = 0

    async def behave(caller: Caller) -> None:
        nonlocal num_sent
        await caller.request()
        await caller.send(b"HTTP/1.1 200 OK\r\nx-first: ")
        while not caller.writer.is_closing() and num_sent < 10_000:
            await caller.send(piece)
            num_sent += 1

    async with listening(behave) as peer, connecting(peer.url) as client:
        with pytest.raises(ConnectionFailed, match="bytes of headers"):
            await post(client)
        await peer.until_gone(1)
    assert num_sent < 10_000


async def test_a_long_head_is_understood() -> None:
    headers = "".join(f"x-{index}: {'a' * 1000}\r\n" for index in range(50))
    async with listening(sending(counted(b"a", headers=headers))) as peer, connecting(peer.url) as client:
        for _ in range(3):
            response = await post(client)
            assert response.headers["x-49"] == "a" * 1000
            assert await whole(response) == b"a"


# --- addresses ---


async def test_a_path_before_the_paths_of_the_daemon() -> None:
    async with (
        listening(sending(counted(b"a"))) as peer,
        connecting(peer.url + "/behind/a/proxy") as client,
    ):
        assert await whole(await post(client)) == b"a"
        head = peer.requests[0].split(b"\r\n")
        assert head[0] == b"POST /behind/a/proxy/api/chat HTTP/1.1"
        assert f"host: 127.0.0.1:{peer.port}".encode() in head


async def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with listening(sending(counted(b"a")), host="::1") as peer, connecting(peer.url) as client:
        assert await whole(await post(client)) == b"a"
        assert f"host: [::1]:{peer.port}".encode() in peer.requests[0]


async def test_tls_where_there_is_none() -> None:
    async def behave(caller: Caller) -> None:
        await caller.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with listening(behave) as peer, connecting(f"https://127.0.0.1:{peer.port}") as client:
        with pytest.raises(NotConnected):
            await post(client)
