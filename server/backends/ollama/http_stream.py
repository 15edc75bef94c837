"""Streamed answers over HTTP/1.1: connections that are kept, parsed in C, and read without a task switch in between.

Every token of every stream passes through here. httpx, which does all else that has to do with the daemon, spends
several times more on a chunk than all other parts of this server together (``docs/decisions/0010``).
"""

from __future__ import annotations

import asyncio
import ssl
import weakref
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from server.backends.ollama.http_connection import HttpConnection, reason_of

_MAX_IDLE_CONNECTIONS = 128
_MAX_IDLE_SECONDS = 60.0


class ConnectionFailed(Exception):
    """The daemon broke the connection, or does not speak HTTP."""


class NotConnected(ConnectionFailed):
    """The daemon cannot be reached."""


class SilenceTooLong(Exception):
    """Nothing came for longer than it may take."""


async def _always() -> bool:
    return True


class HttpStreamClient:
    """Posts to one server and streams what it answers."""

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float,
        silence_timeout: float,
        is_alive: Callable[[], Awaitable[bool]] = _always,
        quiet_seconds: float = 2.0,
    ) -> None:
        """Take the base URL, and limits in seconds; nothing is connected yet.

        ``is_alive`` is asked whenever a response has been silent for ``quiet_seconds``: a server that answers nobody is
        not waited for until ``silence_timeout``. It must not raise.
        """
        self.is_alive = is_alive
        self.quiet_seconds = quiet_seconds
        parts = urlsplit(url)
        self._host, self._is_tls = parts.hostname or "127.0.0.1", parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._connect_timeout = connect_timeout
        self._silence_timeout = silence_timeout
        self._idle: list[HttpConnection] = []
        self._lingering: weakref.WeakSet[HttpConnection] = weakref.WeakSet()
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
                if connection.has_received or connection.is_given_up:
                    raise
        return await self._exchange(await self._connect(), request)

    def close(self) -> None:
        """Close the connections that nobody uses, and keep no others."""
        self._is_closed = True
        for connection in (*self._idle, *self._lingering):
            connection.abort()
        self._idle.clear()

    async def _exchange(self, connection: HttpConnection, request: bytes) -> StreamedResponse:
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

    def _take_idle(self) -> HttpConnection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and now - connection.idle_since < _MAX_IDLE_SECONDS:
                return connection
            connection.abort()
        return None

    def put_back(self, connection: HttpConnection) -> None:
        """Keep a connection whose response is complete."""
        self._lingering.discard(connection)
        if self._is_closed or len(self._idle) >= _MAX_IDLE_CONNECTIONS:
            connection.abort()
            return
        connection.rest()
        self._idle.append(connection)

    def linger(self, connection: HttpConnection) -> None:
        """Keep a connection if its response, of which nothing more is needed, ends soon."""
        self._lingering.add(connection)
        connection.linger(self.put_back)

    async def _connect(self) -> HttpConnection:
        if self._is_tls and self._tls is None:
            self._tls = ssl.create_default_context()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await loop.create_connection(HttpConnection, self._host, self._port, ssl=self._tls)
        except TimeoutError:
            raise NotConnected(f"no connection within {self._connect_timeout:g} s") from None
        except OSError as error:
            raise NotConnected(reason_of(error)) from error
        return connection


class StreamedResponse:
    """One response: its status, and its body as it comes."""

    def __init__(self, client: HttpStreamClient, connection: HttpConnection, silence_timeout: float) -> None:
        self._client = client
        self._connection = connection
        self._silence_timeout = silence_timeout
        self._is_released = False
        self._timer: asyncio.TimerHandle | None = None
        self._has_timed_out = False
        self._asking: asyncio.Task[None] | None = None
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
        if self._asking is not None:
            self._asking.cancel()

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
        loop, connection = asyncio.get_running_loop(), self._connection
        now, ends_at = loop.time(), connection.last_activity + self._silence_timeout
        if connection.is_paused:  # it is our reader who is slow
            self._timer = loop.call_later(self._silence_timeout, self._watch)
            return
        if ends_at <= now:
            self._has_timed_out = True
            connection.wake()
            return
        asks_at = connection.last_activity + self._client.quiet_seconds
        if asks_at <= now and self._asking is None:
            self._asking = loop.create_task(self._ask_whether_alive())
        self._timer = loop.call_at(
            min(ends_at, asks_at if asks_at > now else now + self._client.quiet_seconds), self._watch
        )

    async def _ask_whether_alive(self) -> None:
        """Tell a server that works in silence from one that is frozen: that answers nobody."""
        try:
            if not await self._client.is_alive():
                self._connection.give_up("it does not answer other requests either")
        finally:
            self._asking = None
