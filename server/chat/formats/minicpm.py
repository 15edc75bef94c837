"""MiniCPM 5: tags ``function`` and ``param`` with names in quotes; text with markup in it stands in a CDATA section.

https://huggingface.co/openbmb/MiniCPM5-1B (chat template)
"""

from __future__ import annotations

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.typed_arguments import (
    Schema,
    TypedArguments,
    expression_of_each,
    is_plain_text,
    listed_texts,
    takes_any_text,
    value_expression,
)
from server.core.request import Tool

_END = "</function>"
_PARAMETER = '<param name="'
_END_OF_VALUE = "</param>"
_CDATA = "<![CDATA["
_END_OF_CDATA = "]]>"


class MiniCpmCalls:
    """``<function name="get_weather"><param name="city">Paris</param></function>``."""

    name = "MiniCPM"
    families = ("MiniCPM 5",)
    trigger = '<function name="'
    markers = frozenset({"<function", "<param", _END, _END_OF_VALUE})
    example = '<function name="get_weather"><param name="city">Paris</param></function>'

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read one call."""
        name, bracket = yield from scanner.collect(['">'])
        if bracket is None or not name.strip():
            raise Malformed
        writer.begin_call(name.strip())
        arguments = TypedArguments(writer, plan.tools, name.strip())
        while True:
            yield from scanner.skip_space()
            if not (yield from scanner.take(_PARAMETER)):
                break
            parameter, bracket = yield from scanner.collect(['">'])
            is_cdata = yield from scanner.take(_CDATA)
            closing = _END_OF_CDATA if is_cdata else _END_OF_VALUE
            marker = yield from arguments.read(scanner, parameter, [closing], is_text=is_cdata or None)
            if bracket is None or marker is None:
                return
            if is_cdata:
                yield from scanner.skip_space()
                yield from scanner.expect(_END_OF_VALUE)
        yield from scanner.expect(_END)
        arguments.end()
        writer.end_call()

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for one call."""
        return grammar.rule(" | ".join(_call_expression(grammar, tool) for tool in plan.tools))


def _call_expression(grammar: LarkGrammar, tool: Tool) -> str:
    return sequence(
        [
            grammar.literal(f'{tool.name}">'),
            expression_of_each(grammar, tool, lambda name, schema: _parameter_expression(grammar, name, schema)),
            grammar.literal(_END),
        ]
    )


def _parameter_expression(grammar: LarkGrammar, name: str, schema: Schema) -> str:
    opening = grammar.literal(f'{_PARAMETER}{name}">')
    if listed_texts(schema) is not None or not (is_plain_text(schema) or takes_any_text(schema)):
        return sequence([opening, value_expression(grammar, schema, _END_OF_VALUE)])
    plain = sequence([grammar.terminal(r"/[^<&\n]*/"), grammar.literal(_END_OF_VALUE)])
    section = sequence([grammar.literal(_CDATA), grammar.through(_END_OF_CDATA), grammar.literal(_END_OF_VALUE)])
    return f"{opening} ({plain} | {section})"
