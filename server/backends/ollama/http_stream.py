"""Streamed answers over HTTP/1.1: connections that are kept, parsed in C, and read without a task switch in between.

Every token of every stream passes through here. httpx, which does all else that has to do with the daemon, spends
several times more on a chunk than all other parts of this server together (``docs/decisions/0010``).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import weakref
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import httptools

_MAX_BUFFERED_BYTES = 512 * 1024
"""A response whose reader falls behind by this much is not read from the socket until it has caught up."""
_MAX_HEAD_BYTES = 256 * 1024
_MAX_IDLE_CONNECTIONS = 128
_MAX_IDLE_SECONDS = 60.0
_LONGEST_LINGER_SECONDS = 1.0
_KEEP_ALIVE_PROBES = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A daemon on a machine that went away without a word is noticed after half a minute, however long answers take."""


class ConnectionFailed(Exception):
    """The daemon broke the connection, or does not speak HTTP."""


class NotConnected(ConnectionFailed):
    """The daemon cannot be reached."""


class SilenceTooLong(Exception):
    """Nothing came for longer than it may take."""


class HttpStreamClient:
    """Posts to one server and streams what it answers."""

    def __init__(self, url: str, *, connect_timeout: float, silence_timeout: float) -> None:
        """Take the base URL, and limits in seconds; nothing is connected yet."""
        parts = urlsplit(url)
        self._host, self._is_tls = parts.hostname or "127.0.0.1", parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._connect_timeout = connect_timeout
        self._silence_timeout = silence_timeout
        self._idle: list[_Connection] = []
        self._lingering: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._is_closed = False
        self._tls: ssl.SSLContext | None = None

    async def post(self, path: str, body: bytes) -> StreamedResponse:
        """Send a request and wait for the head of the response.

        A kept connection that the server closes in this moment is replaced by a new one: no byte of an answer came, so
        the request was not answered.

        Raises:
            NotConnected: the server cannot be reached.
            ConnectionFailed: the connection broke before the head was there.
            SilenceTooLong: the head did not come in time.

        """
        request = self._head(path, len(body)) + body
        while (connection := self._take_idle()) is not None:
            try:
                return await self._exchange(connection, request)
            except ConnectionFailed:
                if connection.has_received:
                    raise
        return await self._exchange(await self._connect(), request)

    def close(self) -> None:
        """Close the connections that nobody uses, and keep no others."""
        self._is_closed = True
        for connection in (*self._idle, *self._lingering):
            connection.abort()
        self._idle.clear()

    async def _exchange(self, connection: _Connection, request: bytes) -> StreamedResponse:
        response = StreamedResponse(self, connection, self._silence_timeout)
        try:
            connection.send(request)
            await response.wait_for_head()
        except BaseException:
            response.close()
            raise
        return response

    def _head(self, path: str, length: int) -> bytes:
        return (
            f"POST {self._prefix}{path} HTTP/1.1\r\nhost: {self._authority}\r\naccept: application/x-ndjson\r\n"
            f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        ).encode()

    def _take_idle(self) -> _Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and now - connection.idle_since < _MAX_IDLE_SECONDS:
                return connection
            connection.abort()
        return None

    def put_back(self, connection: _Connection) -> None:
        """Keep a connection whose response is complete."""
        self._lingering.discard(connection)
        if self._is_closed or len(self._idle) >= _MAX_IDLE_CONNECTIONS:
            connection.abort()
            return
        connection.rest()
        self._idle.append(connection)

    def linger(self, connection: _Connection) -> None:
        """Keep a connection if its response, of which nothing more is needed, ends soon."""
        self._lingering.add(connection)
        connection.linger(self.put_back)

    async def _connect(self) -> _Connection:
        if self._is_tls and self._tls is None:
            self._tls = ssl.create_default_context()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        except TimeoutError:
            raise NotConnected(f"no connection within {self._connect_timeout:g} s") from None
        except OSError as error:
            raise NotConnected(_reason(error)) from error
        return connection


class StreamedResponse:
    """One response: its status, and its body as it comes."""

    def __init__(self, client: HttpStreamClient, connection: _Connection, silence_timeout: float) -> None:
        self._client = client
        self._connection = connection
        self._silence_timeout = silence_timeout
        self._is_released = False
        self._timer: asyncio.TimerHandle | None = None
        self._has_timed_out = False
        connection.last_activity = asyncio.get_running_loop().time()
        self._watch()

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._connection.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, with names in lower case."""
        return self._connection.headers

    async def wait_for_head(self) -> None:
        """Wait until status and headers are there.

        Raises:
            ConnectionFailed: the connection broke.
            SilenceTooLong: nothing came in time.

        """
        while not self._connection.has_head:
            await self._wait()

    async def read(self) -> bytes:
        """Return all that has come since the last call, after waiting for at least one byte; empty at the end.

        Raises:
            ConnectionFailed: the connection broke before the end.
            SilenceTooLong: nothing came in time.

        """
        connection = self._connection
        while not connection.chunks:
            if self._is_released:
                return b""
            if connection.is_complete:
                self.close()
                return b""
            await self._wait()
        return connection.take_body()

    def finish(self) -> None:
        """Need nothing more of a response that is about to end; its connection is kept if the end comes soon."""
        if not self._is_released and not self._connection.is_complete:
            self._stop_watching()
            self._client.linger(self._connection)
        else:
            self.close()

    def close(self) -> None:
        """End the exchange; a response that is not complete is given up by breaking the connection."""
        if self._is_released:
            return
        self._stop_watching()
        connection = self._connection
        if connection.is_complete and connection.is_usable:
            connection.take_body()
            self._client.put_back(connection)
        else:
            connection.abort()

    def _stop_watching(self) -> None:
        self._is_released = True
        if self._timer is not None:
            self._timer.cancel()

    async def _wait(self) -> None:
        """Wait for news of the connection."""
        connection = self._connection
        if self._has_timed_out:
            raise SilenceTooLong
        if connection.failure is not None:
            raise ConnectionFailed(connection.failure)
        connection.waiter = asyncio.get_running_loop().create_future()
        try:
            await connection.waiter
        finally:
            connection.waiter = None

    def _watch(self) -> None:
        # one timer for the whole stream: it looks whether something came meanwhile, and sleeps again
        loop = asyncio.get_running_loop()
        ends_at = self._connection.last_activity + self._silence_timeout
        if self._connection.is_paused:  # it is our reader who is slow
            self._timer = loop.call_later(self._silence_timeout, self._watch)
        elif ends_at <= loop.time():
            self._has_timed_out = True
            self._connection.wake()
        else:
            self._timer = loop.call_at(ends_at, self._watch)


class _Connection(asyncio.Protocol):
    """One connection; serves one exchange after the other. Also the callbacks of the parser."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self.is_paused = False
        self._num_buffered = 0
        self.idle_since = 0.0
        self.last_activity = 0.0
        self.failure: str | None = None
        self.waiter: asyncio.Future[None] | None = None
        self._keep: Callable[[_Connection], None] | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._start_exchange()

    def _start_exchange(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.has_received = False
        self._head_len = 0
        self.has_head = False
        self.is_complete = False
        self._is_kept_alive = False
        self._is_resting = False

    @property
    def is_usable(self) -> bool:
        """Whether another exchange can start."""
        is_open = self._transport is not None and not self._transport.is_closing() and self.failure is None
        return is_open and (not self.has_received or self._is_kept_alive)

    def linger(self, keep: Callable[[_Connection], None]) -> None:
        """Wait for the end of the response for a moment, and then ``keep`` the connection or break it."""
        self._keep = keep
        self._lingering = self._loop.call_later(_LONGEST_LINGER_SECONDS, self.abort)

    def _end_lingering(self) -> None:
        keep, self._keep = self._keep, None
        if self._lingering is not None:
            self._lingering.cancel()
        self.take_body()
        if keep is not None and self.is_usable:
            keep(self)
        else:
            self.abort()

    def rest(self) -> None:
        """Do nothing until the next exchange."""
        self._is_resting = True
        self.idle_since = self._loop.time()

    def send(self, request: bytes) -> None:
        """Start an exchange."""
        self._start_exchange()
        if self._transport is None or self._transport.is_closing():
            self.failure = self.failure or "the connection was closed"
            return
        self._transport.write(request)

    def take_body(self) -> bytes:
        """Return what has come of the body and forget it."""
        chunks, self.chunks, self._num_buffered = self.chunks, [], 0
        if self.is_paused and self._transport is not None:
            self.is_paused = False
            self.last_activity = self._loop.time()
            self._transport.resume_reading()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def abort(self) -> None:
        """Break the connection at once: the other side notices when it next writes, if not before."""
        if self._transport is not None:
            self._transport.abort()

    def wake(self) -> None:
        """Let the reader look again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = transport  # type: ignore[assignment] # a protocol for streams gets a transport for streams
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEP_ALIVE_PROBES.items():
                if (option := getattr(socket, name, None)) is not None:
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._is_resting:
            self.abort()  # nobody asked for this
            return
        self.has_received = True
        self.last_activity = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._break(f"what it sent is not HTTP ({error})")
        if not self.has_head:
            self._head_len += len(data)
            if self._head_len > _MAX_HEAD_BYTES:
                self._break(f"it sent more than {_MAX_HEAD_BYTES} bytes of headers")
        self.wake()

    def _break(self, why: str) -> None:
        self.failure = self.failure or why
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note why there will be nothing more."""
        if exc is None and self.failure is None and self._ends_with_connection:
            self.is_complete = True
        if not self.is_complete and self.failure is None:
            self.failure = "the connection was closed" if exc is None else _reason(exc)
        self._is_kept_alive = False
        self.wake()

    @property
    def _ends_with_connection(self) -> bool:
        return self.has_head and not {"content-length", "transfer-encoding"} & self.headers.keys()

    def on_message_begin(self) -> None:
        """Forget the headers of an interim response; what follows a complete one is nothing that anybody asked for."""
        if self.is_complete:
            self._break("it sent more than it was asked for")
        else:
            self.headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Take the status."""
        status = self._parser.get_status_code()
        if status >= 200:
            self.status, self.has_head = status, True

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self.chunks.append(body)
        self._num_buffered += len(body)
        if self._num_buffered > _MAX_BUFFERED_BYTES and not self.is_paused and self._transport is not None:
            self.is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """Note that the response is whole."""
        if self.has_head:
            self.is_complete = True
            self._is_kept_alive = self._parser.should_keep_alive()
            if self._keep is not None:
                # not from within the parser, which would be asked for the next response
                self._loop.call_soon(self._end_lingering)


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "the connection is refused"  # asyncio has words of its own
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
