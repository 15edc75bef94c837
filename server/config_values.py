"""What a value of the configuration may be: read from TOML or from the text of a variable, and said in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter
from pydantic_core import from_json

from server.core.duration import Duration, duration_seconds
from server.core.errors import ConfigurationError
from server.pool.config import AutoInt, MemoryBudget, MemorySize
from server.pool.ledger import parse_memory_size

_LONGEST_SECONDS = 2**31
_LARGEST_SHARE = 1e6
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
    if reader := _READERS.get(kind):
        return reader(value)
    return TypeAdapter(kind).validate_python(value, strict=not _is_enum(kind))


def read_text(kind: Any, text: str) -> Any:  # noqa: ANN401 - typed by ``kind``
    """Return what a text stands for; that is JSON where a type has values which are not text.

    Raises:
        ValueError: as ``read_value``.

    """
    if kind in _READERS:
        return read_value(kind, _from_text(text))
    return TypeAdapter(kind).validate_strings(text)


def _choices(kind: Any) -> tuple[str, ...]:  # noqa: ANN401 - a type, or a Literal
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(kind) if _is_enum(kind) else ()


def _is_enum(kind: Any) -> bool:  # noqa: ANN401 - a type
    return isinstance(kind, type) and issubclass(kind, StrEnum)


def _from_text(text: str) -> object:
    """Return the number, list or table that the text is as JSON, else the text."""
    try:
        value = from_json(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | list | dict) else text


def _duration(value: object) -> Duration:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{_not_too_long(value):.9f}".rstrip("0").rstrip(".") + "s"
    text = TypeAdapter(str).validate_python(value, strict=True)
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
    return MappingProxyType(sizes)  # no dict: those of two sources would be merged


def _memory_size(value: object, allowed: str, part: str = "") -> str | int:
    if not isinstance(value, str | int):
        raise NotAllowed(value, allowed, part)
    try:
        parse_memory_size(value)
    except ConfigurationError as error:
        raise NotAllowed(value, allowed, part) from error
    return value


def _shares(value: object) -> tuple[float, ...]:
    shares = TypeAdapter(list[float]).validate_python(value, strict=True)
    if not all(0 <= share <= _LARGEST_SHARE for share in shares) or (shares and not any(shares)):
        raise ValueError(value)
    return tuple(shares)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(TypeAdapter(list[str]).validate_python(value, strict=True))


_READERS: dict[Any, Callable[[object], object]] = {
    Duration: _duration,
    MemorySize: lambda value: _memory_size(value, _SIZE),
    MemoryBudget: _memory_budget,
    tuple[float, ...]: _shares,
    tuple[str, ...]: _texts,
}
