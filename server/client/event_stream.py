"""Server-sent events, read as they come: https://html.spec.whatwg.org/multipage/server-sent-events.html. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from server.client.fields import Unreadable

DONE = "[DONE]"
"""The data of the last event of a stream that went well."""

_MAX_PENDING_BYTES = 8 * 2**20
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # a carriage return at the end may be half of a line end


@dataclass(frozen=True, slots=True)
class Data:
    """What one event says."""

    text: str


@dataclass(frozen=True, slots=True)
class Comment:
    """What is no event: a sign of life, or how far a load is."""

    text: str


class EventStreamReader:
    """Makes events of bytes, however they were cut."""

    def __init__(self) -> None:
        self._pending = b""
        self._data: list[str] = []

    def feed(self, received: bytes) -> Iterator[Data | Comment]:
        """Take bytes and return what they complete.

        Raises:
            Unreadable: while iterating; a line does not end, or is not UTF-8.

        """
        *lines, self._pending = _LINE_END.split(self._pending + received)
        if len(self._pending) > _MAX_PENDING_BYTES:
            raise Unreadable("it does not end a line")
        for line in lines:
            yield from self._line(_decoded(line))

    def _line(self, line: str) -> Iterator[Data | Comment]:
        if not line:
            if self._data:
                yield Data("\n".join(self._data))
            self._data = []
        elif line.startswith(":"):
            yield Comment(line[1:].strip())
        else:
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise Unreadable("it is not UTF-8") from None
