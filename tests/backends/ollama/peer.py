"""A server that sends what a test wants, byte for byte."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from server.backends.ollama.http_stream import HttpStreamClient, StreamedResponse

PATIENCE = 30.0
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def counted(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


@dataclass
class Caller:
    """One connection, as the server sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: list[bytes] = field(default_factory=list)

    async def request(self) -> bytes:
        """The next request; empty when the client has closed the connection."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        self.requests.append(head + await self.reader.readexactly(sum(lengths)))
        return self.requests[-1]

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def closed(self) -> None:
        """Wait until the client has closed the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


Behaviour = Callable[[Caller], Awaitable[None]]


def sending(*pieces: bytes, close: bool = False) -> Behaviour:
    """Answer each request of a connection with these bytes."""

    async def behave(caller: Caller) -> None:
        while await caller.request():
            await caller.send(*pieces)
            if close:
                return

    return behave


@dataclass
class Peer:
    """The server; ``callers`` are all connections so far, and ``gone`` how many of them are over."""

    behaviour: Behaviour
    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int = 0
    callers: list[Caller] = field(default_factory=list)
    gone: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def requests(self) -> list[bytes]:
        return [request for caller in self.callers for request in caller.requests]

    async def until_gone(self, count: int) -> None:
        """Wait until so many connections are over."""
        async with asyncio.timeout(PATIENCE), self.changed:
            await self.changed.wait_for(lambda: self.gone >= count)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        caller = Caller(reader, writer)
        self.callers.append(caller)
        try:
            with suppress(ConnectionError):
                await self.behaviour(caller)
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()
            async with self.changed:
                self.gone += 1
                self.changed.notify_all()


@asynccontextmanager
async def listening(
    behaviour: Behaviour, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Peer]:
    peer = Peer(behaviour, "http" if tls is None else "https", f"[{host}]" if ":" in host else host)
    server = await asyncio.start_server(peer, host, 0, ssl=tls)
    peer.port = server.sockets[0].getsockname()[1]
    try:
        yield peer
        server.close()
        await peer.until_gone(len(peer.callers))
    finally:
        for caller in peer.callers:
            caller.writer.transport.abort()
        server.close()


@asynccontextmanager
async def connecting(url: str, silence: float = PATIENCE, connect: float = PATIENCE) -> AsyncIterator[HttpStreamClient]:
    client = HttpStreamClient(url, connect_timeout=connect, silence_timeout=silence)
    try:
        yield client
    finally:
        client.close()


async def whole(response: StreamedResponse) -> bytes:
    """All of the body."""
    body = b""
    async with asyncio.timeout(PATIENCE):
        while data := await response.read():
            body += data
    return body
