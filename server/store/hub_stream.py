"""The body of a response, as fast as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus

import httpcore  # what httpx is built on: errors of its connections, which httpx translates only in its own reading
import httpx

_PIECE_BYTES = 1 << 19
_LOOK_UP_SECONDS = 0.5


class BrokenOff(Exception):
    """A body ended before its end."""


def read_pieces(
    response: httpx.Response, count: int, silence_seconds: float, check: Callable[[], None]
) -> Iterator[bytes]:
    """Return the body in pieces, ``count`` bytes in all.

    httpx hands out 64 KiB at a time, through a parser in Python: half the speed of curl. A body without framing (known
    length, not compressed, HTTP/1.1) is what the connection brings after the head, so that it is read from there.

    Args:
        response: a response of which nothing has been read.
        count: how long the body must be.
        silence_seconds: how long nothing may come.
        check: called at least twice a second while nothing comes; what it raises ends the reading.

    Raises:
        BrokenOff: the connection was lost, or the body is longer or shorter than it must be.

    """
    num_read = 0
    try:
        for piece in _unframed(response, count, silence_seconds, check) if _is_plain(response) else response.iter_raw():
            num_read += len(piece)
            if num_read > count:
                raise BrokenOff(f"more than the {count} bytes that were due came")
            yield piece
    except (httpx.HTTPError, httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
        raise BrokenOff(str(error) or type(error).__name__) from error
    if num_read < count:
        raise BrokenOff(f"the connection was closed {count - num_read} bytes before the end")


def _is_plain(response: httpx.Response) -> bool:
    headers = response.headers
    return (
        response.http_version in {"HTTP/1.1", "HTTP/1.0"}
        and response.status_code in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}
        and headers.get("content-length", "").isdigit()
        and "transfer-encoding" not in headers
        and "network_stream" in response.extensions
    )


def _unframed(
    response: httpx.Response, count: int, silence_seconds: float, check: Callable[[], None]
) -> Iterator[bytes]:
    left = min(count, int(response.headers["content-length"]))
    # the parser hands out at once all of the body that it got with the head, or waits for more and hands that out
    parsed = response.iter_raw()  # kept until the end: an iterator that is forgotten closes the connection
    first = next(parsed, b"")
    left -= len(first)
    yield first
    connection = response.extensions["network_stream"]
    silence = 0.0
    while left > 0:
        try:
            piece = connection.read(min(left, _PIECE_BYTES), timeout=_LOOK_UP_SECONDS)
        except httpcore.ReadTimeout:
            check()
            silence += _LOOK_UP_SECONDS
            if silence >= silence_seconds:
                raise
            continue
        if not piece:
            return
        silence = 0.0
        left -= len(piece)
        yield piece
