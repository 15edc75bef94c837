"""How families of models call functions and think: one module each, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.chat.answer_format import AnswerFormat
from server.chat.formats.hermes import HermesCalls
from server.chat.formats.qwen_coder import QwenCoderCalls
from server.chat.tagged import CallSyntax, TaggedFormat, ThinkingTags

Recognizer = Callable[[str], AnswerFormat | CallSyntax | None]
"""Looks at the text of a chat template: a whole format, a way to call (thinking is found apart), or neither."""


def _by_signs(calls: CallSyntax, *signs: str) -> Recognizer:
    """Recognize a template that holds all of some texts."""
    return lambda template: calls if all(sign in template for sign in signs) else None


# The first that says yes: from the particular to the general.
_RECOGNIZERS: Sequence[Recognizer] = (
    _by_signs(QwenCoderCalls(), "<tool_call>", "<function=", "<parameter="),
    _by_signs(HermesCalls(), "<tool_call>"),
)

FORMATS: Sequence[AnswerFormat] = tuple(
    TaggedFormat(calls, ThinkingTags("<think>", "</think>")) for calls in (HermesCalls(), QwenCoderCalls())
)
"""One of each kind, for tests and documents."""

_THINKING = (ThinkingTags("<think>", "</think>"),)


def choose_format(template: str) -> AnswerFormat:
    """Return how a model with this chat template answers; Hermes' way, which is widely known, if nothing tells."""
    found = next((found for each in _RECOGNIZERS if (found := each(template)) is not None), HermesCalls())
    if isinstance(found, AnswerFormat):
        return found
    return TaggedFormat(found, thinking_tags(template))


def thinking_tags(template: str) -> ThinkingTags | None:
    """Return the tags around thinking that a template knows of."""
    return next((tags for tags in _THINKING if tags.closing in template or tags.opening in template), None)
