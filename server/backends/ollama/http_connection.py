"""One connection over HTTP/1.1, parsed in C: what is sent, what has come, and why nothing more will."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import httptools

_MAX_BUFFERED_BYTES = 512 * 1024
"""A response whose reader falls behind by this much is not read from the socket until it has caught up."""
_MAX_HEAD_BYTES = 256 * 1024
_LONGEST_LINGER_SECONDS = 1.0
_KEEP_ALIVE_PROBES = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A daemon on a machine that went away without a word is noticed after half a minute, however long answers take."""


class HttpConnection(asyncio.Protocol):
    """One connection; serves one exchange after the other. Also the callbacks of the parser."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self.is_paused = False
        self.is_given_up = False
        self._num_buffered = 0
        self.idle_since = 0.0
        self.last_activity = 0.0
        self.failure: str | None = None
        self.waiter: asyncio.Future[None] | None = None
        self._keep: Callable[[HttpConnection], None] | None = None
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

    def linger(self, keep: Callable[[HttpConnection], None]) -> None:
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

    def give_up(self, why: str) -> None:
        """Break the connection, for a reason of ours."""
        self.is_given_up = True
        self._break(why)
        self.wake()

    def _break(self, why: str) -> None:
        self.failure = self.failure or why
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note why there will be nothing more."""
        if exc is None and self.failure is None and self._ends_with_connection:
            self.is_complete = True
        if not self.is_complete and self.failure is None:
            self.failure = "the connection was closed" if exc is None else reason_of(exc)
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


def reason_of(error: Exception) -> str:
    """Say in a few words why a connection failed."""
    if isinstance(error, ConnectionRefusedError):
        return "the connection is refused"  # asyncio has words of its own
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
