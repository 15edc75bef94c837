"""The process that runs one chat template: reads requests from its standard input, a socket, and answers there.

It ends when nobody holds the other side any more, and when a request takes longer than it may. A frame is four bytes
of length, most significant first, and the payload: a pickled ``dict`` on the way in, one byte of ``Reply`` and UTF-8
on the way out. What comes out of this process is not to be trusted, because a template may have broken out of its
sandbox; what comes in is the server's own.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import TypedDict

from server.chat.capabilities import probed
from server.chat.rendering import RenderedTooMuch, Rendering, check_syntax, problem_of

if sys.platform != "win32":
    import resource

_SOCKET = 0
_LENGTH_BYTES = 4
_MOST_PROBLEM_CHARACTERS = 500
_SPARE_SECONDS = 0.5
_MOST_GROWTH = 4  # templates repeat what they are given a few times, or write it with escapes


class Reply:
    """What an answer is, as its first byte."""

    TEXT = b"T"
    """The rendered text."""
    CAPABILITIES = b"C"
    """What the template can do, as JSON: it is compiled."""
    REFUSED = b"R"
    """The template raised an exception, because of what it was given."""
    FAILED = b"F"
    """The template used more than it may. The process may be in any state."""


class StartOrder(TypedDict):
    """The first request: compile a template."""

    source: str
    probes: bool
    memory_bytes: int
    seconds: float


class RenderOrder(TypedDict):
    """Every further request."""

    variables: Mapping[str, object]
    border: str
    now: datetime
    spare_characters: int
    seconds: float


def most_characters(order_len: int, spare_characters: int) -> int:
    """Return how long the text for an order of so many bytes may become."""
    return spare_characters + _MOST_GROWTH * order_len


def main() -> None:
    """Serve until the other side closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    payload = _read()
    if payload is None:
        return
    start: StartOrder = pickle.loads(payload)  # noqa: S301 -- made by the server
    _limit_memory(start["memory_bytes"])
    _limit_time(start["seconds"])
    rendering = _started(start)
    _limit_time(0)
    while rendering is not None and (payload := _read()) is not None:
        order: RenderOrder = pickle.loads(payload)  # noqa: S301 -- as above
        _limit_time(order["seconds"])
        _write(*_rendered(rendering, order, most_characters(len(payload), order["spare_characters"])))
        _limit_time(0)


def _started(order: StartOrder) -> Rendering | None:
    source = order["source"]
    try:
        check_syntax(source)
        rendering = Rendering(source)
        found = asdict(probed(partial(rendering.render, now=datetime.now()), source)) if order["probes"] else {}  # noqa: DTZ005 -- any time will do
        capabilities = json.dumps(found)
    except Exception as error:  # noqa: BLE001 -- a template is a program of somebody else's: it may raise anything
        _write(*_problem(error))
        return None
    _write(Reply.CAPABILITIES, capabilities)
    return rendering


def _rendered(rendering: Rendering, order: RenderOrder, most: int) -> tuple[bytes, str]:
    try:
        text = rendering.render(order["variables"], now=order["now"], border=order["border"], most_characters=most)
    except Exception as error:  # noqa: BLE001 -- as above
        return _problem(error)
    return Reply.TEXT, text


def _problem(error: Exception) -> tuple[bytes, str]:
    if isinstance(error, MemoryError):
        return Reply.FAILED, "it needs too much memory"
    kind = Reply.FAILED if isinstance(error, RenderedTooMuch) else Reply.REFUSED
    return kind, problem_of(error)[:_MOST_PROBLEM_CHARACTERS]


def _limit_memory(most_bytes: int) -> None:
    if sys.platform != "win32":
        # where the platform refuses a limit, the one of time holds
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: float) -> None:
    """End this process when the time is over; 0 lifts the limit.

    The server ends it, too, a little earlier; this is for when there is no server any more. The signal's default action
    works in the middle of any computation.
    """
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds and seconds + _SPARE_SECONDS)


def _read() -> bytearray | None:
    """Return the next frame; nothing at the end."""
    header = _read_exactly(_LENGTH_BYTES)
    return None if header is None else _read_exactly(int.from_bytes(header, "big"))


def _read_exactly(num_bytes: int) -> bytearray | None:
    buffer = bytearray(num_bytes)
    view, filled = memoryview(buffer), 0
    while filled < num_bytes:
        num_read = os.readv(_SOCKET, [view[filled:]])
        if not num_read:
            return None
        filled += num_read
    return buffer


def _write(kind: bytes, text: str) -> None:
    body = text.encode("utf-8", "surrogatepass")
    rest = memoryview(b"".join(((len(body) + 1).to_bytes(_LENGTH_BYTES, "big"), kind, body)))
    while rest:
        rest = rest[os.write(_SOCKET, rest) :]
