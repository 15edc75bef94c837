"""What a server said: a result, an error of ours, or nothing that this client understands. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from server.client.fields import Fields, Unreadable, json_value
from server.core.errors import LlmspellError, ServerUnreachable

T = TypeVar("T")

OK = 200
"""The status of everything that went well."""
_MAX_SHOWN = 200
_MAX_LOOKED_AT = 4096
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)


def read_answer(url: str, status: int, headers: Mapping[str, str], body: bytes, read: Callable[[Fields], T]) -> T:
    """Return the result that an answer carries.

    Raises:
        LlmspellError: the error that it carries instead.
        ServerUnreachable: it carries neither: something else answers at this address.

    """
    if status != OK:
        raise read_error(url, status, headers, body)
    with understanding(url, body):
        return read(Fields(json_value(body)))


def read_error(url: str, status: int, headers: Mapping[str, str], body: bytes) -> LlmspellError:
    """Return the error that an answer with a status other than 200 carries."""
    try:
        return error_of(Fields(json_value(body)), headers)
    except Unreadable:
        moved = f" and sends on to {headers['location'][:_MAX_SHOWN]}" if "location" in headers else ""
        return _foreign(url, f"it answers {status}{moved}{_glimpse(body)}")


def error_of(fields: Fields, headers: Mapping[str, str] | None = None) -> LlmspellError:
    """Build the error that an error object describes, in the class that has its code.

    Raises:
        Unreadable: this is no error object of ours.

    """
    if "error" not in fields.document:
        raise Unreadable("it has no error")
    error = fields.inner("error")
    code, message = error.text_or_none("code"), error.text("message")
    kind = _CLASSES.get(code or "", LlmspellError)
    built = kind.__new__(kind)  # some classes fill in fields, which are read here
    LlmspellError.__init__(built, message, param=error.text_or_none("param"), retry_after=_retry_after(headers or {}))
    if code is not None:
        built.code = code  # of a newer server, it may be one that is not known here
    return built


@contextmanager
def understanding(url: str, body: bytes = b"") -> Iterator[None]:
    """Translate what cannot be read.

    Raises:
        ServerUnreachable: in place of ``Unreadable``.

    """
    try:
        yield
    except Unreadable as error:
        raise _foreign(url, f"it gave an answer of which {error}{_glimpse(body)}") from error


def broken_off(url: str) -> ServerUnreachable:
    """Build the error for a stream without an end."""
    return ServerUnreachable(
        f"The server at {url} broke off within its answer. See its log, and try again; a pull goes on from where it "
        "was."
    )


def _foreign(url: str, what: str) -> ServerUnreachable:
    return ServerUnreachable(
        f"What is at {url} does not speak as a llmspell server of this version: {what}. Check the address "
        "(LLMSPELL_SERVER), or start one there with `llmspell serve`."
    )


def _glimpse(body: bytes) -> str:
    """Show what a person would recognize of an answer that a program does not."""
    text = body[:_MAX_LOOKED_AT].decode(errors="replace")
    title = _TITLE.search(text)
    words = " ".join((title[1] if title else text).split())
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in words)
    return f" ({shown[:_MAX_SHOWN]})" if shown else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        if (value := headers.get(name, "")).isascii() and value.isdigit():
            return int(value) / unit
    return None


def _classes(base: type[LlmspellError]) -> Iterator[tuple[str, type[LlmspellError]]]:
    """List all classes that have a code of their own."""
    if "code" in vars(base):
        yield base.code, base
    for each in base.__subclasses__():
        yield from _classes(each)


_CLASSES = dict(_classes(LlmspellError))
