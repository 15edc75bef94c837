"""Parsers of text that is still being written: generators that read from left to right and wait where it ends.

A parser says ``yield from scanner.until(...)`` as if all the text were there; when it is not, the generator rests until
``feed`` or ``end`` is called. So a format is read by code that looks like the format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Sequence
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""A part of a parser: rests whenever it needs more text, and returns what it read."""

Emit = Callable[[str, int], object]
"""Takes a piece of text, with its offset in the whole text."""

_SPACE = " \t\r\n"
_SPACES = re.compile(r"[ \t\r\n]*")
_OUTSIDE_STRINGS = re.compile(r'["{}\[\]]')
_INSIDE_STRINGS = re.compile(r'["\\]')


class Malformed(Exception):
    """The text is not what the format says; what was read of it is to be taken as it is."""


class Scanner:
    """The text of one answer as far as it has come, and how far it has been read."""

    def __init__(self) -> None:
        self._text = ""
        self._read = 0
        self._begin = 0
        self._mark: int | None = None
        self.is_over = False

    @property
    def offset(self) -> int:
        """Characters that have been read."""
        return self._begin + self._read

    def feed(self, text: str) -> None:
        """Add text to the end."""
        kept = self._read if self._mark is None else min(self._mark - self._begin, self._read)
        self._text = self._text[kept:] + text
        self._begin += kept
        self._read -= kept

    def end(self) -> None:
        """Say that no text will follow."""
        self.is_over = True

    def mark(self) -> None:
        """Remember this place; everything from here on is kept until the mark is lifted."""
        self._mark = self.offset

    def lift(self) -> tuple[str, int]:
        """Forget the mark; return what was read since, with its offset."""
        begin = self.offset if self._mark is None else self._mark
        self._mark = None
        return self._text[begin - self._begin : self._read], begin

    def until(self, markers: Sequence[str], emit: Emit) -> Reading[str | None]:
        """Read up to the first of some markers and through it; emit what comes before, as it gets certain.

        Returns:
            The marker; ``None`` if the text ends without one.

        """
        pattern = _any_of(tuple(markers))
        while True:
            found = pattern.search(self._text, self._read)
            end = found.start() if found else len(self._text) - (0 if self.is_over else self._num_held(markers))
            if end > self._read:
                begin, self._read = self._read, end
                emit(self._text[begin:end], self._begin + begin)
            if found:
                self._read = found.end()
                return found[0]
            if self.is_over:
                return None
            yield

    def collect(self, markers: Sequence[str], most: int | None = None) -> Reading[tuple[str, str | None]]:
        """Read up to the first of some markers and through it; return what comes before, and the marker.

        Raises:
            Malformed: more than ``most`` characters come before.

        """
        pieces: list[str] = []
        num_left = most

        def keep(text: str, _begin: int) -> None:
            nonlocal num_left
            pieces.append(text)
            if num_left is not None:
                num_left -= len(text)
                if num_left < 0:
                    self.step_back(-num_left)  # as many are read, however the text was cut
                    raise Malformed

        marker = yield from self.until(markers, keep)
        return "".join(pieces), marker

    def step_back(self, count: int) -> None:
        """Take back the last characters that were read, before any more is."""
        self._read -= count

    def take(self, literal: str) -> Reading[bool]:
        """Read a text if it is what comes next; return whether it is."""
        while not self._text.startswith(literal, self._read):
            left = self._text[self._read : self._read + len(literal)]
            if self.is_over or not literal.startswith(left):
                return False
            yield
        self._read += len(literal)
        return True

    def take_any(self, literals: Collection[str]) -> Reading[str | None]:
        """Read whichever of some texts comes next, none of which begins with another; return it."""
        while True:
            found = next((each for each in literals if self._text.startswith(each, self._read)), None)
            if found is not None:
                self._read += len(found)
                return found
            left = self._text[self._read :]
            if self.is_over or not any(each.startswith(left) for each in literals):
                return None
            yield

    def expect(self, literal: str) -> Reading[None]:
        """Read a text that has to come next.

        Raises:
            Malformed: something else does.

        """
        if not (yield from self.take(literal)):
            raise Malformed

    def skip_space(self) -> Reading[None]:
        """Read white space up to the next character."""
        while True:
            found = _SPACES.match(self._text, self._read)
            self._read = found.end() if found else self._read
            if self._read < len(self._text) or self.is_over:
                return
            yield

    def next_character(self) -> Reading[str]:
        """Return the next character without reading it; empty at the end of the text."""
        while self._read == len(self._text) and not self.is_over:
            yield
        return self._text[self._read : self._read + 1]

    def json_value(self, emit: Emit) -> Reading[bool]:
        """Read one JSON value by its brackets and quotes alone, and emit its text as it comes.

        Returns:
            Whether it was complete. A number or word without quotes ends before the next comma, bracket or space.

        """
        yield from self.skip_space()
        first = yield from self.next_character()
        if first not in {'"', "{", "["}:
            return (yield from self._json_scalar(emit))
        depth, in_string, position = 0, False, self._read
        while True:
            position, depth, in_string = _scan(self._text, position, depth, in_string=in_string)
            end = min(position, len(self._text))
            if end > self._read:
                begin, self._read = self._read, end
                emit(self._text[begin:end], self._begin + begin)
            if depth == 0 and not in_string and position <= len(self._text):
                return True
            if self.is_over:
                return False
            yield
            # what was emitted may be gone from the text; an escape may reach one character beyond it
            position = self._read + (position - end)

    def _json_scalar(self, emit: Emit) -> Reading[bool]:
        while True:
            end = self._read
            while end < len(self._text) and self._text[end] not in ",]})" + _SPACE:
                end += 1
            if end > self._read:
                begin, self._read = self._read, end
                emit(self._text[begin:end], self._begin + begin)
            if end < len(self._text) or self.is_over:
                return end < len(self._text)
            yield

    def _num_held(self, markers: Sequence[str]) -> int:
        """Return how many of the last characters may be the beginning of a marker."""
        unread = len(self._text) - self._read
        longest = min(max(map(len, markers), default=1) - 1, unread)
        tail = self._text[len(self._text) - longest :] if longest else ""
        firsts = {marker[0] for marker in markers}
        for begin, character in enumerate(tail):
            if character in firsts and any(marker.startswith(tail[begin:]) for marker in markers):
                return longest - begin
        return 0


@lru_cache(maxsize=256)
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    if not markers:
        return re.compile(r"(?!)")  # matches nowhere
    return re.compile("|".join(re.escape(marker) for marker in sorted(markers, key=len, reverse=True)))


def _scan(text: str, position: int, depth: int, *, in_string: bool) -> tuple[int, int, bool]:
    """Go on through a JSON value; return the place after it, or beyond what is there, with the state reached."""
    while True:
        if in_string:
            found = _INSIDE_STRINGS.search(text, position)
            if found is None:
                return max(position, len(text)), depth, True
            if found[0] == "\\":
                position = found.end() + 1  # may be beyond the text: the escaped character is still to come
                if position > len(text):
                    return position, depth, True
                continue
            position, in_string = found.end(), False
        else:
            found = _OUTSIDE_STRINGS.search(text, position)
            if found is None:
                return max(position, len(text)), depth, False
            position = found.end()
            if found[0] == '"':
                in_string = True
                continue
            depth += 1 if found[0] in "{[" else -1
        if depth == 0:
            return position, 0, False
