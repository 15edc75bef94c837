"""Chat templates: messages to prompt text, in a sandbox, because templates come from untrusted files.

The environment is the one that Hugging Face's ``apply_chat_template`` gives to templates:
https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.core.errors import InvalidRequest, ModelLoadingFailed
from server.core.request import Message, Role

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""The format of models that bring no template of their own; llama.cpp falls back to the same."""

_UNTRUSTED_ROLES = frozenset({Role.USER, Role.TOOL})
_PRIVATE_USE = range(0xF0000, 0x10FFFE)


class ChatTemplate:
    """A compiled chat template with the special texts of its model.

    Rendering is pure Python and may take long for a hostile template: call it in a worker thread.
    """

    def __init__(
        self, source: str, *, bos_text: str, eos_text: str, control_texts: Sequence[str], now: Callable[[], datetime]
    ) -> None:
        """Compile a template.

        Args:
            source: Jinja text.
            bos_text: what ``bos_token`` stands for.
            eos_text: what ``eos_token`` stands for.
            control_texts: texts that the tokenizer takes for control tokens, longest first.
            now: the local time that ``strftime_now`` formats.

        Raises:
            ModelLoadingFailed: the text is not a Jinja template.

        """
        environment = _environment(now)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelLoadingFailed(f"The chat template is not valid Jinja (line {error.lineno}: {error}).") from error
        self._variables = {"bos_token": bos_text, "eos_token": eos_text}
        self._knows_developer = Role.DEVELOPER in source
        self._control = re.compile("|".join(map(re.escape, control_texts))) if control_texts else None

    def render(self, messages: Sequence[Message]) -> list[str]:
        """Render a conversation, ready for the assistant's next words.

        Control tokens in what users and tools say are data, not control: the prompt comes in segments, cut inside each
        such text, and a tokenizer that never looks across the border of two segments reads plain text there.

        Raises:
            InvalidRequest: the template refuses these messages.

        """
        border = _unused_character(messages)
        try:
            text = self._template.render(
                messages=[self._as_dict(message, border) for message in messages],
                add_generation_prompt=True,
                tools=None,
                **self._variables,
            )
        except Exception as error:  # a template is a program of somebody else's: it may raise anything
            raise InvalidRequest(
                f"The model's chat template does not accept these messages: {error}", param="messages"
            ) from error
        return text.split(border)

    def _as_dict(self, message: Message, border: str) -> dict[str, Any]:
        role = message.role
        if role is Role.DEVELOPER and not self._knows_developer:
            role = Role.SYSTEM
        control = self._control if role in _UNTRUSTED_ROLES else None

        def as_data(text: str) -> str:
            return control.sub(lambda match: match[0][0] + border + match[0][1:], text) if control else text

        entry: dict[str, Any] = {"role": role.value, "content": as_data(message.content)}
        if message.name is not None:
            entry["name"] = as_data(message.name)
        if message.tool_call_id is not None:
            entry["tool_call_id"] = as_data(message.tool_call_id)
        if message.reasoning:
            entry["reasoning_content"] = as_data(message.reasoning)
        if message.tool_calls:
            entry["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": _decoded(call.arguments)},
                }
                for call in message.tool_calls
            ]
        return entry


class _GenerationTag(Extension):
    """``{% generation %}``, which marks the assistant's words for training: its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 -- the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format_string: now().strftime(format_string)
    return environment


def _tojson(value: Any, indent: int | None = None, *, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: ANN401
    # Jinja's own filter escapes HTML characters, which models have not seen in training.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _decoded(arguments: str) -> Any:  # noqa: ANN401 -- any JSON value
    """Return arguments as the object that templates iterate over, or as the text it was if it is not JSON."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _unused_character(messages: Sequence[Message]) -> str:
    def texts() -> Iterator[str]:
        for message in messages:
            yield message.content
            yield message.reasoning
            yield message.name or ""
            yield message.tool_call_id or ""
            yield from (call.arguments + call.name + call.id for call in message.tool_calls)

    used = {character for text in texts() if not text.isascii() for character in text}
    character = next((character for character in map(chr, _PRIVATE_USE) if character not in used), None)
    if character is None:
        raise InvalidRequest("The messages use every private-use character of Unicode.", param="messages")
    return character
