"""Gemma 4: ``call:name{key:value}`` between control tokens, with a control token for each quote.

https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.loose_json import LooseJson
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.schema_shapes import Items, Members, Other, Shapes, Text
from server.chat.tagged import ThinkingTags
from server.core.request import Tool

_END = "<tool_call|>"
_QUOTE = '<|"|>'
_VALUES = LooseJson(_QUOTE)
_NAME = re.compile(r"[\w.$-]+")

GEMMA_THINKING = ThinkingTags(
    "<|channel>thought", "<channel|>", markers=frozenset({"<|channel>", "<channel|>"}), is_repeated=True
)


class GemmaCalls:
    """Arguments are almost JSON: names without quotes, in the order of the alphabet, text between tokens of its own."""

    name = "Gemma 4"
    families = ("Gemma 4",)
    trigger = "<|tool_call>"
    markers = frozenset({"<|tool_call>", _END, _QUOTE})
    example = f"{trigger}call:get_weather{{city:{_QUOTE}Paris{_QUOTE}}}{_END}"

    def read(self, scanner: Scanner, writer: AnswerWriter, _plan: AnswerPlan) -> Reading[None]:
        """Read one call."""
        yield from scanner.skip_space()
        yield from scanner.expect("call:")
        name, brace = yield from scanner.collect(["{", _END])
        if brace is None or not _NAME.fullmatch(name.strip()):
            raise Malformed
        writer.begin_call(name.strip())
        if brace == "{":
            yield from _VALUES.read_members(scanner, writer.arguments)
            yield from scanner.skip_space()
            yield from scanner.take(_END)
        else:
            writer.arguments("{}")
        writer.end_call()

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for one call."""
        calls = [
            sequence([quoted(f"call:{tool.name}"), _Values(grammar, tool).root(), grammar.literal(_END)])
            for tool in plan.tools
        ]
        return grammar.rule(" | ".join(calls))


class _Values:
    """Makes expressions for what a function takes; where a schema is too much for rules, it is JSON that is written."""

    def __init__(self, grammar: LarkGrammar, tool: Tool) -> None:
        self._grammar = grammar
        self._parameters = tool.parameters
        self._shapes = Shapes(tool.parameters)

    def root(self) -> str:
        if not (self._parameters.get("properties") or set(self._parameters) - {"type", "properties"}):
            return quoted("{}")
        return self._value(self._parameters, 0)

    def _value(self, schema: Mapping[str, object], depth: int) -> str:
        match self._shapes.of(schema, depth):
            case Text(None):
                quote = self._grammar.literal(_QUOTE)
                return self._grammar.rule(f"{quote} {self._grammar.through(_QUOTE)}")
            case Text(listed):
                return self._grammar.choice(f"{_QUOTE}{text}{_QUOTE}" for text in listed or ())
            case Items(items, least, most):
                return self._grammar.rule(_list_expression(self._value(items, depth + 1), least, most))
            case Members(schemas, required) if all(map(_NAME.fullmatch, schemas)):
                members = [
                    (f"{quoted(name + ':')} {self._value(schemas[name], depth + 1)}", name in required)
                    for name in sorted(schemas, key=str.lower)
                ]
                return self._grammar.rule(f'"{{" {self._grammar.separated(members, ",")} "}}"')
            case Members():
                return self._grammar.json(self._shapes.alone(schema))
            case Other(whole):
                return self._grammar.json(whole)


def _list_expression(item: str, least: int, most: int | None) -> str:
    if most == 0:
        return '"[]"'
    more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
    items = f'{item} ("," {item}){more}'
    return f'"[" {items} "]"' if least else f'"[" ({items})? "]"'
