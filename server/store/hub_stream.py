"""The body of a response, as fast as it comes."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from http import HTTPStatus

import httpx

_LOOK_UP_SECONDS = 0.2


class BrokenOff(Exception):
    """A body ended before its end."""


class Body:
    """The body of a response, read into memory of the reader.

    httpx hands out 64 KiB at a time, through a parser in Python: half the speed of curl. A body without framing (known
    length, not compressed, HTTP/1.1) is what the connection brings after the head, so that it is received from there.
    """

    def __init__(
        self, response: httpx.Response, num_bytes: int, silence_seconds: float, check: Callable[[], None]
    ) -> None:
        """Take a response of which nothing has been read.

        Args:
            response: the response; it stays open as long as this is used.
            num_bytes: how long the body must be; what comes beyond it is not read.
            silence_seconds: how long nothing may come.
            check: called several times a second while nothing comes; what it raises ends the reading.

        """
        self._num_left = num_bytes
        self._silence_seconds = silence_seconds
        self._check = check
        self._connection = _connection_of(response)
        self._pieces = response.iter_raw()  # kept until the end: an iterator that is forgotten closes the connection
        self._piece = memoryview(b"")
        self._is_begun = False
        self._failure: BrokenOff | None = None

    def read_into(self, buffer: memoryview) -> int:
        """Fill the beginning of ``buffer`` with what comes next, and return how much that is.

        It is less than would fit where that does not come within a fraction of a second, and where the body or the
        connection ends; it is nothing only if all has been read before.

        Raises:
            BrokenOff: the connection was lost, or has been silent for too long; what came before has been returned.

        """
        wanted, num_read, start = buffer[: self._num_left], 0, time.monotonic()
        while num_read < len(wanted) and self._failure is None:
            num_new = self._try_receive(wanted[num_read:])
            num_read += num_new
            seconds = time.monotonic() - start
            if num_read and (not num_new or seconds > _LOOK_UP_SECONDS):
                break
            if not num_new:
                self._check()
                if seconds > self._silence_seconds:
                    self._fail(f"nothing came for {self._silence_seconds:g} s")
        if self._failure is not None and not num_read:
            raise self._failure
        self._num_left -= num_read
        return num_read

    def _try_receive(self, buffer: memoryview) -> int:
        """Receive something; return 0 if nothing came for a moment, or if the connection is lost."""
        try:
            num_new = self._receive(buffer)
        except TimeoutError:
            return 0
        except (httpx.HTTPError, OSError) as error:
            self._fail(str(error) or type(error).__name__, error)
            return 0
        if not num_new:
            self._fail("the connection was closed before the end")
        return num_new

    def _receive(self, buffer: memoryview) -> int:
        """Receive something, or nothing at the end of the connection."""
        if not self._piece and (self._connection is None or not self._is_begun):
            # the parser hands out at once all of the body that it got with the head, or waits for more
            self._piece = memoryview(next(self._pieces, b""))
            self._is_begun = True
            if self._connection is not None:
                self._connection.settimeout(_LOOK_UP_SECONDS)
        if self._connection is not None and not self._piece:
            return self._connection.recv_into(buffer)
        num_new = min(len(self._piece), len(buffer))
        buffer[:num_new] = self._piece[:num_new]
        self._piece = self._piece[num_new:]
        return num_new

    def _fail(self, reason: str, cause: Exception | None = None) -> None:
        self._failure = BrokenOff(reason)
        self._failure.__cause__ = cause


def _connection_of(response: httpx.Response) -> socket.socket | None:
    """Return what to receive the body from as it is, if there is such a thing."""
    headers = response.headers
    stream = response.extensions.get("network_stream")
    is_plain = (
        response.http_version in {"HTTP/1.1", "HTTP/1.0"}
        and response.status_code in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}
        and headers.get("content-length", "").isdigit()
        and "transfer-encoding" not in headers
    )
    # through a proxy that is spoken to with TLS itself, the socket brings something that is still encrypted
    if not is_plain or stream is None or isinstance(stream.get_extra_info("ssl_object"), ssl.SSLObject):
        return None
    connection = stream.get_extra_info("socket")
    return connection if isinstance(connection, socket.socket) else None
