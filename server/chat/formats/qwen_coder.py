"""Qwen3-Coder, Qwen 3.5, Nemotron 3, StepFun, Seed-OSS: tags for the function and for each parameter, between others.

https://github.com/QwenLM/Qwen3-Coder
"""

from __future__ import annotations

from dataclasses import dataclass

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.typed_arguments import TypedArguments, parameters_expression

_END_OF_VALUE = "</parameter>"
_END_OF_FUNCTION = "</function>"


@dataclass(frozen=True, slots=True)
class QwenCoderCalls:
    """``<function=get_weather>``, in it ``<parameter=city>`` with the value, in most families on lines of its own."""

    name: str = "Qwen3-Coder"
    families: tuple[str, ...] = ("Qwen3-Coder", "Qwen 3.5", "Nemotron 3", "StepFun 3.5")
    trigger: str = "<tool_call>"
    closing: str = "</tool_call>"
    around_value: str = "\n"

    @property
    def example(self) -> str:
        """One call."""
        value = f"{self.around_value}Paris{self.around_value}"
        return (
            f"{self.trigger}\n<function=get_weather>\n<parameter=city>{value}{_END_OF_VALUE}\n"
            f"{_END_OF_FUNCTION}\n{self.closing}"
        )

    @property
    def markers(self) -> frozenset[str]:
        """Texts that are control tokens in some vocabularies."""
        return frozenset({self.trigger, self.closing})

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read one call."""
        yield from scanner.skip_space()
        yield from scanner.expect("<function=")
        name, bracket = yield from scanner.collect([">"])
        if bracket is None:
            raise Malformed
        writer.begin_call(name.strip())
        arguments = TypedArguments(writer, plan.tools, name.strip())
        endings = sorted({self.around_value + _END_OF_VALUE, _END_OF_VALUE})
        while True:
            yield from scanner.skip_space()
            if not (yield from scanner.take("<parameter=")):
                break
            parameter, bracket = yield from scanner.collect([">"])
            yield from scanner.take(self.around_value)
            marker = yield from arguments.read(scanner, parameter.strip(), endings)
            if bracket is None or marker is None:
                return
        yield from scanner.expect(_END_OF_FUNCTION)
        arguments.end()
        writer.end_call()
        yield from scanner.skip_space()
        yield from scanner.take(self.closing)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for one call."""
        calls = [
            sequence(
                [
                    quoted(f"\n<function={tool.name}>\n"),
                    parameters_expression(
                        grammar,
                        tool,
                        opening=lambda name, _: f"<parameter={name}>{self.around_value}",
                        closing=self.around_value + _END_OF_VALUE,
                        text_closing=_END_OF_VALUE,
                        between="\n",
                    ),
                    grammar.literal(f"{_END_OF_FUNCTION}\n{self.closing}"),
                ]
            )
            for tool in plan.tools
        ]
        return grammar.rule(" | ".join(calls))
