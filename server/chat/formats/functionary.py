"""Functionary: ``<function=name>{…}</function>`` up to version 3.1, and ``>>>name`` with JSON behind it in 3.2.

https://github.com/MeetKai/functionary/tree/main/functionary/prompt_template
"""

from __future__ import annotations

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.whole_format import WholeFormat
from server.core.request import Tool

_LONGEST_NAME = 256
_END = "</function>"
_NEXT = ">>>"
_TO_USER = "all\n"


class FunctionaryTagCalls:
    """The name in a tag, and the arguments as one JSON object behind it."""

    name = "Functionary v3.1"
    trigger = "<function="
    markers: frozenset[str] = frozenset()
    families: tuple[str, ...] = ("Functionary v3.1",)
    example = '<function=get_weather>{"city": "Paris"}</function>'

    def read(self, scanner: Scanner, writer: AnswerWriter, _plan: AnswerPlan) -> Reading[None]:
        """Read one call."""
        name, bracket = yield from scanner.collect((">",), _LONGEST_NAME)
        yield from scanner.skip_space()
        if bracket is None or not name.strip() or (yield from scanner.next_character()) not in ("{", ""):
            raise Malformed
        writer.begin_call(name.strip())
        if not (yield from scanner.json_value(writer.arguments)):
            return
        writer.end_call()
        yield from scanner.skip_space()
        yield from scanner.take(_END)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for one call."""
        calls = [
            sequence([quoted(f"{tool.name}>"), grammar.json(tool.parameters), quoted(_END)]) for tool in plan.tools
        ]
        return grammar.rule(" | ".join(calls))


class FunctionaryFormat(WholeFormat):
    """Pieces for recipients, each named on a line of its own; the prompt ends with the first ``>>>``."""

    name = "Functionary v3.2"
    families: tuple[str, ...] = ("Functionary v3.2",)
    example = '>>>all\nLet me look.>>>get_weather\n{"city": "Paris"}'

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read pieces up to the end."""
        recipients = {f"{tool.name}\n" for tool in plan.tools} | {_TO_USER}
        yield from scanner.take(_NEXT)
        is_over = False
        while not is_over:
            recipient = yield from scanner.take_any(recipients)
            if recipient is not None and recipient != _TO_USER:
                yield from _read_arguments(scanner, writer, recipient.strip())
            markers = [_NEXT + each for each in recipients]
            marker = yield from scanner.until(markers, writer.content)
            is_over = marker is None
            if marker is not None:
                scanner.step_back(len(marker) - len(_NEXT))

    def expression(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for what the model says to all, and for its calls."""
        content = "" if plan.response_format is None else grammar.content(plan.response_format)
        if not plan.tools:
            return sequence([quoted(_TO_USER), content])
        call = _calls(grammar, plan.tools)
        calls = sequence([call, f"({quoted(_NEXT)} {call})*" if plan.is_parallel else ""])
        if plan.must_call:
            return calls
        if content:
            return f"({calls} | {quoted(_TO_USER)} {content})"
        later = " | ".join(
            sequence([grammar.through(f"{_NEXT}{tool.name}\n"), grammar.json(tool.parameters)]) for tool in plan.tools
        )
        more = f"({quoted(_NEXT)} {call})*" if plan.is_parallel else ""
        said = f"({grammar.rule(later)} {more} | {grammar.any_text()})"
        return f"({calls} | {quoted(_TO_USER)} {said})"


def _calls(grammar: LarkGrammar, tools: tuple[Tool, ...]) -> str:
    return grammar.rule(
        " | ".join(sequence([quoted(f"{tool.name}\n"), grammar.json(tool.parameters)]) for tool in tools)
    )


def _read_arguments(scanner: Scanner, writer: AnswerWriter, name: str) -> Reading[None]:
    yield from scanner.skip_space()
    writer.begin_call(name)
    if (yield from scanner.json_value(writer.arguments)):
        writer.end_call()
