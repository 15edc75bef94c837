"""Values that are almost JSON, and how they become JSON while they are read: Python's literals, names without quotes.

Models write them in the arguments of calls, some because that is their format, some because they forget. Strings stand
between double or single quotes, or between a family's own, in which nothing is escaped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from string import hexdigits

from server.chat.scanner import Malformed, Reading, Scanner

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_ENDS_OF_WORDS = ",)]}"
_AFTER_STRINGS = frozenset(",)]}:= \t\r\n")
_ESCAPES = {each: "\\" + each for each in 'bfnrt"\\'} | {"'": "'", "/": "/", "\n": ""}
_MOST_NESTED = 64

Write = Callable[[str], object]
"""Takes a piece of JSON."""


class LooseJson:
    """Reads values; without state."""

    def __init__(self, raw_quote: str = "") -> None:
        """Know a family's own quote, between two of which a string stands as it is."""
        self._raw_quote = raw_quote

    def read(self, scanner: Scanner, write: Write, depth: int = 0) -> Reading[None]:
        """Read one value and write it as JSON, strings and all that is nested piece by piece.

        A word or number ends before a comma or a closing bracket.

        Raises:
            Malformed: it is no value, is nested too deeply, or ends with the text.

        """
        yield from scanner.skip_space()
        if depth > _MOST_NESTED:
            raise Malformed
        if self._raw_quote and (yield from scanner.take(self._raw_quote)):
            yield from self._raw_string(scanner, write)
            return
        match (yield from scanner.next_character()):
            case '"' | "'":
                yield from self._string(scanner, write)
            case "{":
                yield from self._object(scanner, write, depth)
            case "[" | "(":
                yield from self._array(scanner, write, depth)
            case _:
                write(_as_word((yield from _word(scanner, _ENDS_OF_WORDS))))

    def _raw_string(self, scanner: Scanner, write: Write) -> Reading[None]:
        write('"')
        if (yield from scanner.until([self._raw_quote], lambda text, _: write(_inside_string(text)))) is None:
            raise Malformed
        write('"')

    def _string(self, scanner: Scanner, write: Write) -> Reading[None]:
        quote = yield from _character(scanner)
        write('"')
        while True:
            marker = yield from scanner.until(["\\", quote], lambda text, _: write(_inside_string(text)))
            if marker is None:
                raise Malformed
            if marker == "\\":
                write((yield from _escape(scanner)))
                continue
            following = yield from scanner.next_character()
            if not following or following in _AFTER_STRINGS:
                break
            write(_inside_string(quote))  # a quote that somebody forgot to escape
        write('"')

    def _object(self, scanner: Scanner, write: Write, depth: int) -> Reading[None]:
        yield from scanner.expect("{")
        yield from self.read_members(scanner, write, depth)

    def read_members(self, scanner: Scanner, write: Write, depth: int = 0) -> Reading[None]:
        """Read an object whose opening brace has been read, and write it as JSON.

        Raises:
            Malformed: it is none, is nested too deeply, or ends with the text.

        """
        write("{")
        num_read = 0
        yield from scanner.skip_space()
        while not (yield from scanner.take("}")):
            write(", " if num_read else "")
            num_read += 1
            yield from self._key(scanner, write)
            write(": ")
            yield from self.read(scanner, write, depth + 1)
            yield from _separate(scanner, "}")
        write("}")

    def _key(self, scanner: Scanner, write: Write) -> Reading[None]:
        if self._raw_quote and (yield from scanner.take(self._raw_quote)):
            yield from self._raw_string(scanner, write)
        elif (yield from scanner.next_character()) in {'"', "'"}:
            yield from self._string(scanner, write)
        else:
            write(json.dumps((yield from _word(scanner, ":" + _ENDS_OF_WORDS)), ensure_ascii=False))
        yield from scanner.skip_space()
        yield from scanner.expect(":")

    def _array(self, scanner: Scanner, write: Write, depth: int) -> Reading[None]:
        closing = "]" if (yield from _character(scanner)) == "[" else ")"
        write("[")
        num_read = 0
        yield from scanner.skip_space()
        while not (yield from scanner.take(closing)):
            write(", " if num_read else "")
            num_read += 1
            yield from self.read(scanner, write, depth + 1)
            yield from _separate(scanner, closing)
        write("]")


def as_json(text: str) -> tuple[str, object]:
    """Return a value that is almost JSON as JSON, and what it is.

    Raises:
        ValueError: it is no list, object, string, number or word of a language.

    """
    pieces: list[str] = []
    scanner = Scanner()
    scanner.feed(text)
    scanner.end()
    try:
        for _ in LooseJson().read(scanner, pieces.append):
            raise AssertionError("text that has ended is read without a pause")
    except Malformed as error:
        raise ValueError("not a value") from error
    found = "".join(pieces)
    value: object = json.loads(found)
    if scanner.offset < len(text) or (isinstance(value, str) and text[:1] not in {'"', "'"}):
        raise ValueError("not a value")
    return found, value


def _separate(scanner: Scanner, closing: str) -> Reading[None]:
    """Read what stands between two elements; leave what closes them."""
    yield from scanner.skip_space()
    if (yield from scanner.take(",")):
        yield from scanner.skip_space()
    elif (yield from scanner.next_character()) != closing:
        raise Malformed


def _character(scanner: Scanner) -> Reading[str]:
    """Read one character.

    Raises:
        Malformed: the text is over.

    """
    character = yield from scanner.next_character()
    if not character:
        raise Malformed
    yield from scanner.take(character)
    return character


def _word(scanner: Scanner, ends: str) -> Reading[str]:
    """Read up to a character that ends words, without the space around.

    Raises:
        Malformed: there is nothing, or the text is over.

    """
    characters: list[str] = []
    while (character := (yield from scanner.next_character())) and character not in ends:
        characters.append((yield from _character(scanner)))
    word = "".join(characters).strip()
    if not word:
        raise Malformed
    return word


def _escape(scanner: Scanner) -> Reading[str]:
    """Read what follows a backslash; return what it stands for within a string of JSON."""
    escaped = yield from _character(scanner)
    num_digits = {"u": 4, "x": 2}.get(escaped, 0)
    digits = ""
    while len(digits) < num_digits and (character := (yield from scanner.next_character())) and character in hexdigits:
        digits += yield from _character(scanner)
    if num_digits and len(digits) == num_digits:
        return f"\\u{digits:0>4}"
    return _ESCAPES.get(escaped, "\\\\" + _inside_string(escaped)) + digits


def _as_word(word: str) -> str:
    if word in _WORDS:
        return _WORDS[word]
    if _NUMBER.fullmatch(word):
        return word
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    return json.dumps(number if math.isfinite(number) else word, ensure_ascii=False)


def _inside_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
