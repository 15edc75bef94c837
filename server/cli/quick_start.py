"""Commands that start at once: typer reads arguments with pydantic, whose import takes longer than most commands."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from typer.core import TyperOption


class QuickGroup(TyperGroup):
    """A group of commands; its own options must be flags."""

    def get_help_option(self, ctx: Any) -> TyperOption | None:  # noqa: ANN401 - a private type of typer's
        """Return the option ``--help``."""
        return _not_asked(super().get_help_option(ctx))


class QuickCommand(TyperCommand):
    """A command whose texts, paths and choices are read without pydantic; the rest is left to typer."""

    def get_help_option(self, ctx: Any) -> TyperOption | None:  # noqa: ANN401 - a private type of typer's
        """Return the option ``--help``."""
        return _not_asked(super().get_help_option(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - a private type of typer's
        """Read the command line."""
        parameters: list[Any] = list(self.params)
        for parameter in parameters:
            if (read := _reader(parameter.type_descriptor.annotation)) is not None:
                # where typer keeps what it makes of pydantic; if it no longer does, this has no effect
                parameter._runtime_param = _PlainParameter(read)  # noqa: SLF001
        return super().parse_args(ctx, args)


class _PlainParameter:
    """Stands in for what typer makes of pydantic."""

    def __init__(self, read: Callable[[str], object]) -> None:
        self._read = read

    def coerce(self, value: object, param: Any, ctx: Any) -> object:  # noqa: ANN401 - private types of typer's
        """Return the value of a parameter, ``None`` for one that is missing."""
        try:
            return None if value is None else self._read(str(value))
        except ValueError as error:
            raise typer.BadParameter(str(error), ctx=ctx, param=param) from None


def _not_asked(option: TyperOption | None) -> TyperOption | None:
    """Give ``--help`` the default that typer would ask pydantic for."""
    if option is not None:
        option.default = False
    return option


def _reader(kind: object) -> Callable[[str], object] | None:
    if kind is str:
        return str
    if kind is Path:
        return Path
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return lambda text: _choice(kind, text)
    return None


def _choice(kind: type[StrEnum], text: str) -> StrEnum:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not one of {', '.join(repr(each.value) for each in kind)}.") from None
