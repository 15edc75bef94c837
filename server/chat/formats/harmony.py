"""gpt-oss: messages in channels, of which ``analysis`` is thinking, ``final`` content, and ``commentary`` mostly calls.

https://cookbook.openai.com/articles/openai-harmony
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, sequence
from server.chat.scanner import Reading, Scanner
from server.chat.whole_format import MessagesFormat
from server.core.request import Tool

_START, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_END, _RETURN, _CALL = "<|end|>", "<|return|>", "<|call|>"
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL_NAME = re.compile(re.escape(_CHANNEL) + r"\s*([a-z]+)")
_FUNCTIONS = "functions."


class HarmonyFormat(MessagesFormat):
    """``<|channel|>analysis<|message|>…<|end|>`` and more such messages; the prompt ends with ``<|start|>assistant``.

    A call ends the turn, so that there is one at most. Its recipient stands before the channel or behind it.
    """

    name = "Harmony"
    markers = frozenset({_START, _CHANNEL, _MESSAGE, _CONSTRAIN, _END, _RETURN, _CALL})
    message_opening = _START
    speech_opening = f"{_CHANNEL}final{_MESSAGE}"
    call_opening = f" to={_FUNCTIONS}"
    endings = (_END, _RETURN, _CALL, _START)
    thinking_end = _END
    thinking_opening = f"{_CHANNEL}analysis{_MESSAGE}"
    families: tuple[str, ...] = ("gpt-oss",)
    example = (
        "<|channel|>analysis<|message|>I have to look.<|end|><|start|>assistant to=functions.get_weather"
        '<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>'
    )

    def read_message(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[str | None]:
        """Read a message from where its header begins; text without a header is content."""
        scanner.mark()
        yield from scanner.skip_space()
        begins = yield from scanner.take_any((_CHANNEL, "to=", _MESSAGE))
        if begins is None:
            writer.content(*scanner.lift())
            return (yield from scanner.until(self.endings, writer.content))
        marker = begins if begins == _MESSAGE else (yield from scanner.until((_MESSAGE, _END, _START), _passed_over))
        header, begin = scanner.lift()
        if marker != _MESSAGE:
            if begins == "to=":
                writer.content(header.removesuffix(marker or ""), begin)
            return marker
        recipient, channel = _RECIPIENT.search(header), _CHANNEL_NAME.search(header)
        name = recipient[1] if recipient else ""
        if plan.tools and (name.startswith(_FUNCTIONS) or any(name == tool.name for tool in plan.tools)):
            return (yield from self._read_call(scanner, writer, name.removeprefix(_FUNCTIONS)))
        if channel is not None and channel[1] == "analysis":
            if plan.is_reasoning_raw:
                writer.content(header, begin)
            return (yield from self.read_thought(scanner, writer, plan))
        return (yield from scanner.until(self.endings, writer.content))

    def _read_call(self, scanner: Scanner, writer: AnswerWriter, name: str) -> Reading[str | None]:
        yield from scanner.skip_space()
        first = yield from scanner.next_character()
        if first not in ("{", "<", ""):
            return (yield from scanner.until(self.endings, writer.content))
        writer.begin_call(name)
        if first == "{" and not (yield from scanner.json_value(writer.arguments)):
            return None
        if first == "<":  # the message is empty: the function takes nothing
            writer.arguments("{}")
        if first:
            writer.end_call()
        return (yield from scanner.until(self.endings, _passed_over))

    def expression(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for thoughts, then the call or what is said."""
        thought = self.thoughts(grammar, plan, _END)
        content = grammar.any_text() if plan.response_format is None else grammar.content(plan.response_format)
        final = sequence([grammar.literal(f"{_CHANNEL}final{_MESSAGE}"), content])
        if not plan.tools:
            return sequence([thought, final])
        calls = _calls(grammar, plan.tools)
        if plan.must_call:
            return sequence([thought, calls])
        if plan.response_format is not None:  # what is said before a call would not have the form
            return sequence([thought, f"({calls} | {final})"])
        preamble = sequence(
            [
                grammar.literal(f"{_CHANNEL}commentary{_MESSAGE}"),
                grammar.through(_END),
                grammar.literal(f"{_START}assistant"),
            ]
        )
        return sequence([thought, f"({preamble} {thought})*", f"({calls} | {final})"])


def _calls(grammar: LarkGrammar, tools: Sequence[Tool]) -> str:
    """Return an expression for a call, its head as the template writes it, or as the model does by itself."""
    kinds = [f" {constrain}json{_MESSAGE}" for constrain in ("", _CONSTRAIN)]
    kind = grammar.choice(kinds)
    calls = []
    for tool in tools:
        recipient = f" to={_FUNCTIONS}{tool.name}"
        head = grammar.choice([f"{recipient}{_CHANNEL}commentary", f"{_CHANNEL}commentary{recipient}"])
        calls.append(f"{head} {kind} {grammar.json(tool.parameters)}")
    return grammar.rule(" | ".join(calls))


def _passed_over(_text: str, _begin: int) -> None:
    """Take text that means nothing."""
