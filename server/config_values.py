"""What a value of the configuration may be: read from TOML or from the text of a variable, and said in words.

Without pydantic: whoever only asks what is configured does not wait for its import.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from server.core.duration import Duration, duration_seconds
from server.core.errors import ConfigurationError
from server.pool.config import AutoInt, MemoryBudget, MemorySize
from server.pool.ledger import parse_memory_size

_LONGEST_SECONDS = 2**31
_LARGEST_SHARE = 1e6
_BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0"), False),
}
_SIZE = (
    '"auto", a size such as "12GiB" or "500 MB" (B, kB, MB, GB, TB, KiB, MiB, GiB or TiB), or a whole number of bytes'
)
_NOUNS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    AutoInt: '"auto", or a whole number',
    Duration: 'a duration such as "90s" or "5m", or a number of seconds (negative: for ever)',
    MemorySize: _SIZE,
    MemoryBudget: f"{_SIZE}, or a table of these by device",
    tuple[float, ...]: "a list of numbers that are not negative, and not all of them 0",
    tuple[str, ...]: "a list of texts",
}


class NotAllowed(ValueError):
    """A value is not what it must be; ``part`` leads to it inside of a table, as ``.name``."""

    def __init__(self, value: object, allowed: str, part: str = "") -> None:
        super().__init__(allowed)
        self.value = value
        self.allowed = allowed
        self.part = part


def in_words(kind: Any) -> str:  # noqa: ANN401 - a type
    """Say what values a type has: any in ``_NOUNS``, a ``Literal`` or a ``StrEnum``."""
    if choices := _choices(kind):
        return "one of " + ", ".join(f'"{choice}"' for choice in choices)
    return _NOUNS[kind]


def read_value(kind: Any, value: object) -> Any:  # noqa: ANN401 - typed by ``kind``
    """Return what TOML or JSON gave in the type that it must have.

    Raises:
        ValueError: it is of another type, or outside of what the type can hold; ``NotAllowed`` if only a part is.

    """
    if choices := _choices(kind):
        return choices[_text(value)]
    return _READERS[kind](value)


def read_text(kind: Any, text: str) -> Any:  # noqa: ANN401 - typed by ``kind``
    """Return what a text stands for; that is JSON where a type has values which are neither text nor one number.

    Raises:
        ValueError: as ``read_value``.

    """
    reader = _TEXT_READERS.get(kind)
    return reader(text) if reader else read_value(kind, text if kind is str or _choices(kind) else _from_text(text))


def read_json(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return what a text is as JSON.

    Raises:
        ValueError: it is no JSON, or nested too deeply.

    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _from_text(text: str) -> object:
    """Return the number, list or table that the text is as JSON, else the text."""
    try:
        value = read_json(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | list | dict) else text


class _Choices(dict[str, object]):
    """What may be chosen, by its text."""

    def __missing__(self, text: str) -> object:
        raise ValueError(text)


def _choices(kind: Any) -> _Choices:  # noqa: ANN401 - a type, or a Literal
    """Return the choices that a ``Literal`` or a ``StrEnum`` gives; none for other types."""
    if get_origin(kind) is Literal:
        return _Choices({each: each for each in get_args(kind)})
    is_enum = isinstance(kind, type) and issubclass(kind, StrEnum)
    return _Choices({each.value: each for each in kind} if is_enum else {})


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)  # noqa: TRY004 - it is a value that is wrong
    return value


def _truth_of_text(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError(text)
    return _BOOLEANS[text.lower()]


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(value)  # noqa: TRY004
    return value


def _whole_of_text(text: str) -> int:
    if not text.isascii():
        raise ValueError(text)
    return int(text)


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(value)  # noqa: TRY004
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(value) from error


def _number_of_text(text: str) -> float:
    if not text.isascii():
        raise ValueError(text)
    return float(text)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(value)  # noqa: TRY004
    value.encode()  # a variable may hold bytes that are no text
    return value


def _auto_or_whole(value: object) -> AutoInt:
    return "auto" if value == "auto" else _whole(value)


def _auto_or_whole_of_text(text: str) -> AutoInt:
    return "auto" if text == "auto" else _whole_of_text(text)


def _duration(value: object) -> Duration:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{_not_too_long(value):.9f}".rstrip("0").rstrip(".") + "s"
    text = _text(value)
    _not_too_long(duration_seconds(text))
    return Duration(text)


def _not_too_long(seconds: float) -> float:
    if not abs(seconds) <= _LONGEST_SECONDS:  # so that nan is refused
        raise ValueError(seconds)
    return seconds


def _memory_budget(value: object) -> MemoryBudget:
    if not isinstance(value, Mapping):
        return _memory_size(value, _NOUNS[MemoryBudget])
    if not value:
        raise NotAllowed(value, _NOUNS[MemoryBudget])
    sizes = {device: _memory_size(size, _SIZE, f".{device}") for device, size in value.items()}
    return MappingProxyType(sizes)


def _memory_size(value: object, allowed: str, part: str = "") -> str | int:
    if not isinstance(value, str | int):
        raise NotAllowed(value, allowed, part)
    try:
        parse_memory_size(value)
    except ConfigurationError as error:
        raise NotAllowed(value, allowed, part) from error
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(value)  # noqa: TRY004
    return value


def _shares(value: object) -> tuple[float, ...]:
    shares = tuple(_number(each) for each in _list(value))
    if not all(0 <= share <= _LARGEST_SHARE for share in shares) or (shares and not any(shares)):
        raise ValueError(value)
    return shares


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_text(each) for each in _list(value))


_READERS: dict[Any, Callable[[object], object]] = {
    bool: _truth,
    int: _whole,
    float: _number,
    str: _text,
    AutoInt: _auto_or_whole,
    Duration: _duration,
    MemorySize: lambda value: _memory_size(value, _SIZE),
    MemoryBudget: _memory_budget,
    tuple[float, ...]: _shares,
    tuple[str, ...]: _texts,
}
_TEXT_READERS: dict[Any, Callable[[str], object]] = {
    bool: _truth_of_text,
    int: _whole_of_text,
    float: _number_of_text,
    AutoInt: _auto_or_whole_of_text,
}
