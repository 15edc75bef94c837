"""Reading JSON of which nothing is known: a field is of its type, or the error names it. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

EnumT = TypeVar("EnumT", bound=StrEnum)
T = TypeVar("T")


class Unreadable(ValueError):
    """An answer that is not what a server of ours says; the text says why, as the end of a sentence."""


class Fields:
    """The fields of a JSON object; what is missing is ``None``."""

    def __init__(self, value: object, path: str = "") -> None:
        """Take a JSON value; ``path`` is where it stands, for errors.

        Raises:
            Unreadable: it is not an object.

        """
        if not isinstance(value, dict):
            raise Unreadable(f"{path or 'it'} is no JSON object")
        self.document: dict[str, object] = value
        self._path = path

    def text(self, name: str) -> str:
        """Return a string."""
        return self._required(name, self.text_or_none(name))

    def text_or_none(self, name: str) -> str | None:
        """Return a string, or ``None``."""
        value = self.document.get(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name, "no text")
        return value

    def whole(self, name: str) -> int:
        """Return a whole number."""
        return self._required(name, self.whole_or_none(name))

    def whole_or_none(self, name: str) -> int | None:
        """Return a whole number, or ``None``."""
        value = self.document.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise self._wrong(name, "no whole number")
        return value

    def number_or_none(self, name: str) -> float | None:
        """Return a number, or ``None``."""
        value = self.document.get(name)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise self._wrong(name, "no number")
        return None if value is None else float(value)

    def flag(self, name: str) -> bool:
        """Return a truth value."""
        value = self.document.get(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "neither true nor false")
        return value

    def choice(self, name: str, kind: type[EnumT]) -> EnumT:
        """Return a member of an enumeration."""
        return self._required(name, self.choice_or_none(name, kind))

    def choice_or_none(self, name: str, kind: type[EnumT]) -> EnumT | None:
        """Return a member of an enumeration, or ``None``."""
        value = self.text_or_none(name)
        try:
            return None if value is None else kind(value)
        except ValueError:
            raise self._wrong(name, f"none of {', '.join(kind)}") from None

    def time_or_none(self, name: str) -> datetime | None:
        """Return a time as ISO 8601 writes it, with its zone; or ``None``."""
        text = self.text_or_none(name)
        try:
            time = None if text is None else datetime.fromisoformat(text)
        except ValueError:
            raise self._wrong(name, "no time") from None
        if time is not None and time.tzinfo is None:
            raise self._wrong(name, "a time without a zone")
        return time

    def path_or_none(self, name: str) -> Path | None:
        """Return a path on the server's machine, or ``None``."""
        text = self.text_or_none(name)
        return None if text is None else Path(text)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        values = self._list(name)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(name, "no list of texts")
        return tuple(str(value) for value in values)

    def paths(self, name: str) -> tuple[Path, ...]:
        """Return a list of paths on the server's machine."""
        return tuple(Path(text) for text in self.texts(name))

    def inner(self, name: str) -> Fields:
        """Return the fields of an object; of none if it is missing."""
        value = self.document.get(name)
        return Fields({} if value is None else value, self._name(name))

    def each(self, name: str, read: Callable[[Fields], T]) -> tuple[T, ...]:
        """Read a list of objects."""
        return tuple(read(Fields(value, self._name(name))) for value in self._list(name))

    def _list(self, name: str) -> list[object]:
        value = self.document.get(name)
        if value is not None and not isinstance(value, list):
            raise self._wrong(name, "no list")
        return [] if value is None else list(value)

    def _required(self, name: str, value: T | None) -> T:
        if value is None:
            raise self._wrong(name, "missing")
        return value

    def _wrong(self, name: str, what: str) -> Unreadable:
        return Unreadable(f"its field {self._name(name)} is {what}")

    def _name(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def json_value(text: str | bytes) -> object:
    """Read JSON.

    Raises:
        Unreadable: it is none.

    """
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("it is no JSON") from None
    return value
