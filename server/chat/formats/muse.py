"""Muse Glimmer: messages to recipients, of which ``self`` is thinking, ``user`` content, and any other a function.

Its protocol is called ATEM; calls are written in tags, with a tag for each parameter.
"""

from __future__ import annotations

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.tagged import read_or_say
from server.chat.typed_arguments import TypedArguments, parameters_expression
from server.chat.whole_format import MessagesFormat
from server.core.request import Tool

_START, _MESSAGE, _NEXT, _END = "<|start|>", "<|message|>", "<|eom|>", "<|eot|>"
_CALLS, _CALLS_END = "<atem:function_calls>", "</atem:function_calls>"
_INVOKE, _INVOKE_END = '<atem:invoke name="', "</atem:invoke>"
_PARAMETER, _PARAMETER_END = '<atem:parameter name="', "</atem:parameter>"
_TAG_END = '">'
_LONGEST_NAME = 256


class MuseFormat(MessagesFormat):
    """`` to=self<|message|>…<|eom|>`` and more such messages; the prompt ends with ``<|start|>assistant``."""

    name = "Muse ATEM"
    markers = frozenset({_START, _MESSAGE, _NEXT, _END})
    message_opening = _START
    speech_opening = f" to=user{_MESSAGE}"
    endings = (_NEXT, _END, _START)
    thinking_end = _NEXT
    thinking_opening = f" to=self{_MESSAGE}"
    families: tuple[str, ...] = ("Muse Glimmer",)
    example = (
        " to=self<|message|>I have to look.<|eom|><|start|>assistant to=get_weather<|message|><atem:function_calls>\n"
        '<atem:invoke name="get_weather">\n<atem:parameter name="city">Paris</atem:parameter>\n</atem:invoke>\n'
        "</atem:function_calls>"
    )

    def read_message(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[str | None]:
        """Read a message to somebody; text without a recipient is content."""
        scanner.mark()
        recipient = yield from scanner.take_any((f" to=self{_MESSAGE}", f" to=user{_MESSAGE}"))
        if recipient is None and plan.tools:
            recipient = yield from scanner.take_any([_recipient(tool) for tool in plan.tools])
        header, begin = scanner.lift()
        if recipient is None:
            yield from scanner.take(_MESSAGE)
        elif recipient == self.thinking_opening:
            if plan.is_reasoning_raw:
                writer.content(header, begin)
            return (yield from self.read_thought(scanner, writer, plan))
        markers = (*self.endings, _CALLS, _INVOKE) if plan.tools else self.endings
        while (marker := (yield from scanner.until(markers, writer.content))) in {_CALLS, _INVOKE}:
            yield from read_or_say(scanner, writer, marker, _read_calls(scanner, writer, plan, marker))
        return marker

    def expression(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for thoughts, then calls or what is said."""
        thought = self.thoughts(grammar, plan, _NEXT)
        to_user = grammar.literal(f" to=user{_MESSAGE}")
        content = grammar.any_text() if plan.response_format is None else grammar.content(plan.response_format)
        said = sequence([to_user, content])
        if not plan.tools:
            return sequence([thought, said])
        next_message = grammar.literal(f"{_START}assistant")
        call = grammar.rule(" | ".join(_call(grammar, tool) for tool in plan.tools))
        more = f"({grammar.literal(_NEXT)} {next_message} {call})*" if plan.is_parallel else ""
        calls = sequence([call, more])
        if plan.must_call:
            return sequence([thought, calls])
        if plan.response_format is not None:  # what is said before a call would not have the form
            return sequence([thought, f"({calls} | {said})"])
        before = sequence([to_user, grammar.through(_NEXT), next_message])
        return sequence([thought, f"({before} {thought})*", f"({calls} | {said})"])


def _recipient(tool: Tool) -> str:
    return f" to={tool.name}{_MESSAGE}"


def _call(grammar: LarkGrammar, tool: Tool) -> str:
    parameters = parameters_expression(
        grammar,
        tool,
        opening=lambda name, _: f"{_PARAMETER}{name}{_TAG_END}",
        closing=_PARAMETER_END,
        between="\n",
    )
    return sequence(
        [
            grammar.literal(f"{_recipient(tool)}{_CALLS}\n{_INVOKE}{tool.name}{_TAG_END}\n"),
            parameters,
            grammar.literal(f"{_INVOKE_END}\n{_CALLS_END}"),
        ]
    )


def _read_calls(scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan, opening: str) -> Reading[None]:
    """Read calls behind the tag of all of them, or one behind its own."""
    if opening == _INVOKE:
        yield from _read_call(scanner, writer, plan)
        return
    yield from scanner.skip_space()
    yield from scanner.expect(_INVOKE)
    follows = True
    while follows and (yield from _read_call(scanner, writer, plan)):
        yield from scanner.skip_space()
        follows = yield from scanner.take(_INVOKE)
    yield from scanner.take(_CALLS_END)


def _read_call(scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[bool]:
    """Read a call behind the beginning of its tag; return whether it was complete."""
    name, bracket = yield from scanner.collect((_TAG_END,), _LONGEST_NAME)
    if bracket is None or not name:
        raise Malformed
    writer.begin_call(name)
    arguments = TypedArguments(writer, plan.tools, name)
    yield from scanner.skip_space()
    while (yield from scanner.take(_PARAMETER)):
        parameter, bracket = yield from scanner.collect((_TAG_END,), _LONGEST_NAME)
        if bracket is None or (yield from arguments.read(scanner, parameter, (_PARAMETER_END,))) is None:
            return False
        yield from scanner.skip_space()
    yield from scanner.expect(_INVOKE_END)
    arguments.end()
    writer.end_call()
    return True
