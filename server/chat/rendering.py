"""A chat template as a program: compiled and run in the sandbox, for the process that nothing else runs in.

The environment is the one that Hugging Face's ``apply_chat_template`` gives to templates:
https://huggingface.co/docs/transformers/chat_templating_writing

The sandbox keeps a template from Python's objects, and neither from time nor from memory: ``render_worker`` runs this,
and ``render_process`` ends that. Imports are few, because a process that starts waits for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MOST_SOURCE_CHARACTERS = 1 << 20
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)
_LIST_CHANGES = frozenset({"append", "extend", "insert", "pop"})


class RenderedTooMuch(Exception):
    """A template wrote more text than it may."""


class Rendering:
    """A compiled template. Renders one conversation at a time."""

    def __init__(self, source: str) -> None:
        """Compile a template; whatever it makes Python raise is raised, ``jinja2.TemplateError`` for the most part.

        Compiling runs parts of the template: constant expressions are computed.
        """
        self._border = ""
        self._now = _ANY_TIME
        environment = _environment()
        environment.filters["tojson"] = self._tojson
        environment.globals["strftime_now"] = self._strftime_now
        self._template = environment.from_string(source)

    def render(
        self, variables: Mapping[str, object], *, now: datetime, border: str = "", most_characters: int = 1 << 24
    ) -> str:
        """Run the template; whatever it raises is raised.

        Args:
            variables: what it is given, besides the functions of its environment.
            now: the local time that ``strftime_now`` formats.
            border: a character that is never written as an escape, so that it can be found in the text.
            most_characters: how long the text may become.

        Raises:
            RenderedTooMuch: it became longer.

        """
        self._now, self._border = now, border
        pieces, length = [], 0
        for piece in self._template.generate(variables):
            length += len(piece)
            if length > most_characters:
                raise RenderedTooMuch(f"the text is longer than {most_characters} characters")
            pieces.append(piece)
        return "".join(pieces)

    def _strftime_now(self, format_string: str) -> str:
        return self._now.strftime(format_string)

    def _tojson(
        self,
        value: Any,  # noqa: ANN401 -- any JSON value
        indent: int | None = None,
        *,
        ensure_ascii: bool = False,
        **options: Any,  # noqa: ANN401 -- of json.dumps
    ) -> str:
        # Jinja's own filter escapes HTML characters, which models have not seen in training.
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
        if self._border and ensure_ascii:
            text = text.replace(json.dumps(self._border)[1:-1], self._border)
        return text


def check_syntax(source: str) -> None:
    """Parse a template without compiling it, which runs nothing of it.

    Raises:
        ValueError: it is not a template, or too long for one.

    """
    if len(source) > _MOST_SOURCE_CHARACTERS:
        raise ValueError(f"it is longer than {_MOST_SOURCE_CHARACTERS} characters")
    try:
        _environment().parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(problem_of(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def problem_of(error: Exception) -> str:
    """Say what is wrong with a template."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    return str(error) or type(error).__name__


class _GenerationTag(Extension):
    """``{% generation %}``, which marks the assistant's words for training: its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 -- the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Lets templates change lists, as some do that are written for llama.cpp: what they are given is theirs alone."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ANN401 -- as in the base class
        return (type(obj) is list and attr in _LIST_CHANGES) or super().is_safe_attribute(obj, attr, value)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
    environment.globals["raise_exception"] = _raise_exception
    # Nothing is escaped here, except, with Jinja's own filter, what is added to a text that is marked as safe.
    environment.filters["safe"] = lambda value: value
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
