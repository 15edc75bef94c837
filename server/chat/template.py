"""Chat templates: conversations to prompt text. What a template is made to show is decided here; it runs elsewhere.

Templates come from untrusted files: ``render_process`` runs them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from server.chat.capabilities import TemplateCapabilities
from server.chat.conversation import Adapter, Conversation
from server.chat.family_tools import tool_texts
from server.chat.generic_tools import ToolTexts
from server.core.errors import BackendError, InvalidRequest

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""The format of models that bring no template of their own; llama.cpp falls back to the same."""

# Rare ideographs come first: Python writes them as they are in any representation of a text, unlike private ones.
_BORDERS = (*range(0x2A700, 0x2A800), *range(0xF0000, 0xF1000))
_NO_BORDER = ""


class Renderer(Protocol):
    """Runs a template."""

    def render(self, variables: Mapping[str, object], *, border: str, now: datetime) -> str:
        """Return the text; ``border`` is a character that is kept as it is; none if it is empty.

        Raises:
            InvalidRequest: the template refuses the variables.
            LlmspellError: it failed otherwise.

        """
        ...


class ChatTemplate:
    """A chat template with the special texts of its model.

    Attributes:
        source: its text.
        capabilities: what it can take.
        has_own_calls: whether calls are written in the way of its family, and not in the generic one.

    """

    def __init__(  # noqa: PLR0913 -- what a model's file says
        self,
        source: str,
        renderer: Renderer,
        *,
        capabilities: TemplateCapabilities | None = None,
        bos_text: str,
        eos_text: str,
        control_texts: Sequence[str],
        now: Callable[[], datetime],
        texts: ToolTexts | None = None,
    ) -> None:
        """Use a template.

        Args:
            source: Jinja text.
            renderer: runs it.
            capabilities: what it can take; by default, everything.
            bos_text: what ``bos_token`` stands for.
            eos_text: what ``eos_token`` stands for.
            control_texts: texts that the tokenizer takes for control tokens, longest first.
            now: the local time that ``strftime_now`` formats.
            texts: how tools are put into words where the template does not; by default, in its family's words.

        """
        self.source = source
        self.capabilities = capabilities or TemplateCapabilities()
        self._renderer = renderer
        texts = texts or tool_texts(source)
        self.has_own_calls = self.capabilities.tools or texts.is_native
        self._adapter = Adapter(self.capabilities, texts)
        self._special = {"bos_token": bos_text, "eos_token": eos_text}
        self._control = re.compile("|".join(map(re.escape, control_texts))) if control_texts else None
        self._now = now

    def render(self, conversation: Conversation) -> list[str]:
        """Render a conversation, ready for the assistant's next words; blocking, for a worker thread.

        Control tokens in what users and tools say, and in all else that is the client's, are data, not control: the
        prompt comes in segments, cut inside each such text, and a tokenizer that never looks across the border of two
        segments reads plain text there. What system and assistant say is left as it is.

        Raises:
            InvalidRequest: the template refuses the conversation, or no template can take it.
            BackendError: what the template writes is no text.
            LlmspellError: the template failed otherwise.

        """
        try:
            variables, border = self._variables(conversation)
            text = self._renderer.render({**variables, **self._special}, border=border, now=self._now())
            text.encode()
        except RecursionError as error:
            raise InvalidRequest("The request is nested too deeply for a chat template.", param="messages") from error
        except UnicodeEncodeError as error:
            raise BackendError("The model's chat template writes half of a character, which is no text.") from error
        return text.split(border) if border else [text]

    def _variables(self, conversation: Conversation) -> tuple[dict[str, object], str]:
        """Return the template's variables, and the character that control tokens are cut with in them."""
        said: list[str] = []

        def noted(text: str) -> str:
            said.append(text)
            return text

        variables = self._adapter.variables(conversation, noted)
        control = self._control
        if control is None or control.search("\n".join(said)) is None:
            return variables, _NO_BORDER
        border = _unused_character(variables, self.source)

        def cut(text: str) -> str:
            return control.sub(lambda match: match[0][0] + border + match[0][1:], text)

        return self._adapter.variables(conversation, cut), border


def _unused_character(variables: Mapping[str, object], source: str) -> str:
    used = {character for text in (source, *_texts(variables)) if not text.isascii() for character in text}
    character = next((character for character in map(chr, _BORDERS) if character not in used), None)
    if character is None:
        raise InvalidRequest(
            f"The messages use all of the {len(_BORDERS)} characters that could mark control tokens in them.",
            param="messages",
        )
    return character


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            yield str(name)
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
