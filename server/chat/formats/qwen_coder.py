"""Qwen3-Coder and Qwen 3.5: tags for the function and for each parameter, between ``<tool_call>`` and ``</tool_call>``.

https://github.com/QwenLM/Qwen3-Coder
"""

from __future__ import annotations

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.typed_arguments import TypedArguments, parameters_expression

_END_OF_VALUE = "</parameter>"
_END_OF_FUNCTION = "</function>"
_END = "</tool_call>"


class QwenCoderCalls:
    """``<function=get_weather>``, in it ``<parameter=city>`` with the value on lines of its own."""

    name = "Qwen3-Coder"
    trigger = "<tool_call>"
    markers = frozenset({"<tool_call>", _END})

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read one call."""
        yield from scanner.skip_space()
        yield from scanner.expect("<function=")
        name, bracket = yield from scanner.collect([">"])
        if bracket is None:
            raise Malformed
        writer.begin_call(name.strip())
        arguments = TypedArguments(writer, plan.tools, name.strip())
        while True:
            yield from scanner.skip_space()
            if not (yield from scanner.take("<parameter=")):
                break
            parameter, bracket = yield from scanner.collect([">"])
            yield from scanner.take("\n")
            marker = yield from arguments.read(scanner, parameter.strip(), ["\n" + _END_OF_VALUE, _END_OF_VALUE])
            if bracket is None or marker is None:
                return
        yield from scanner.expect(_END_OF_FUNCTION)
        arguments.end()
        writer.end_call()
        yield from scanner.skip_space()
        yield from scanner.take(_END)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for one call."""
        calls = [
            sequence(
                [
                    quoted(f"\n<function={tool.name}>\n"),
                    parameters_expression(
                        grammar,
                        tool,
                        opening=lambda name: f"<parameter={name}>\n",
                        closing="\n" + _END_OF_VALUE,
                        text_closing=_END_OF_VALUE,
                        between="\n",
                    ),
                    grammar.literal(f"{_END_OF_FUNCTION}\n{_END}"),
                ]
            )
            for tool in plan.tools
        ]
        return grammar.rule(" | ".join(calls))
