"""MiniMax M3: a tag for each parameter, named like it, and within it one for each member and element.

https://huggingface.co/MiniMaxAI/MiniMax-M3 (chat template)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.schema_shapes import Items, Members, Other, Shapes, Text
from server.chat.tagged import ThinkingTags
from server.chat.typed_arguments import (
    Schema,
    TypedArguments,
    allowed_types,
    collect_value,
    expression_of_each,
    is_plain_text,
    json_value,
    resolved,
    takes_any_text,
)
from server.core.request import Tool

_MARK = "]<]minimax[>["
"""A control token, which is the first of every tag."""
_MOST_NESTED = 64
_EMPTY = {"object": "{}", "array": "[]"}
_NAME = re.compile(r"[\w.$-]+")

MINIMAX_M3_THINKING = ThinkingTags("<mm:think>", "</mm:think>")


class MiniMaxM3Calls:
    """``<invoke name="get_weather">`` with ``<city>Paris</city>`` in it; the elements of a list are called ``item``."""

    name = "MiniMax M3"
    families = ("MiniMax M3",)
    trigger = _MARK + "<tool_call>"
    markers = frozenset({_MARK, "<tool_call>", "</tool_call>"})
    example = (
        f'{trigger}\n{_MARK}<invoke name="get_weather">{_MARK}<city>Paris{_MARK}</city>{_MARK}</invoke>\n'
        f"{_MARK}</tool_call>"
    )

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read the calls."""
        yield from scanner.skip_space()
        while (yield from scanner.take(_MARK + '<invoke name="')):
            name, bracket = yield from scanner.collect(['">'])
            if bracket is None:
                raise Malformed
            writer.begin_call(name)
            arguments = TypedArguments(writer, plan.tools, name)
            while (tag := (yield from _next_tag(scanner))) != "/invoke":
                yield from _Value(arguments.begin(tag), writer.arguments).read(scanner, tag)
            arguments.end()
            writer.end_call()
            yield from scanner.skip_space()
        yield from scanner.take(_MARK + "</tool_call>")

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for the calls."""
        call = grammar.rule(" | ".join(_call_expression(grammar, tool) for tool in plan.tools))
        calls = f"{call}+" if plan.is_parallel else call
        return sequence([grammar.literal("\n"), calls, grammar.literal(_MARK + "</tool_call>")])


class _Value:
    """Reads the values within one parameter and writes them as JSON."""

    def __init__(self, schema: Schema | None, write: Callable[[str], object]) -> None:
        self._root = {} if schema is None else schema
        self._write = write

    def read(self, scanner: Scanner, tag: str) -> Reading[None]:
        yield from self._read(scanner, tag, self._root, 0)

    def _read(self, scanner: Scanner, tag: str, schema: Schema, depth: int) -> Reading[None]:
        closing = f"{_MARK}</{tag}>"
        whole = resolved(schema, self._root)
        if depth > _MOST_NESTED:
            raise Malformed
        if is_plain_text(whole):
            self._write('"')
            if (yield from scanner.until([closing], lambda text, _: self._write(json.dumps(text)[1:-1]))) is None:
                raise Malformed
            self._write('"')
            return
        is_text = takes_any_text(whole)
        if not is_text:
            yield from scanner.skip_space()
        if is_text or (yield from scanner.next_character()) != _MARK[0]:
            yield from self._read_leaf(scanner, closing, whole)
        elif (yield from scanner.take(closing)):
            types = allowed_types(whole, self._root) if whole else frozenset({"string"})
            self._write(next((empty for kind, empty in _EMPTY.items() if kind in types), '""'))
        else:
            yield from self._read_nested(scanner, tag, whole, depth)

    def _read_leaf(self, scanner: Scanner, closing: str, schema: Schema) -> Reading[None]:
        text, marker = yield from collect_value(scanner, [closing], schema or None)
        if marker is None:
            raise Malformed
        self._write(json_value(text, schema or None))

    def _read_nested(self, scanner: Scanner, tag: str, schema: Schema, depth: int) -> Reading[None]:
        child = yield from _next_tag(scanner)
        is_list = child == "item" and "array" in allowed_types(schema, self._root)
        properties = schema.get("properties")
        self._write("[" if is_list else "{")
        num_read = 0
        while child != f"/{tag}":
            self._write(", " if num_read else "")
            num_read += 1
            inner: object = schema.get("items")
            if not is_list:
                self._write(json.dumps(child, ensure_ascii=False) + ": ")
                inner = properties.get(child) if isinstance(properties, Mapping) else None
            yield from self._read(scanner, child, inner if isinstance(inner, Mapping) else {}, depth + 1)
            child = yield from _next_tag(scanner)
        self._write("]" if is_list else "}")


def _next_tag(scanner: Scanner) -> Reading[str]:
    """Read a tag; return what stands in it.

    Raises:
        Malformed: something else comes.

    """
    yield from scanner.skip_space()
    yield from scanner.expect(_MARK + "<")
    tag, bracket = yield from scanner.collect([">"])
    if bracket is None:
        raise Malformed
    return tag


def _call_expression(grammar: LarkGrammar, tool: Tool) -> str:
    values = _Values(grammar, tool)
    return sequence(
        [
            grammar.literal(f'{_MARK}<invoke name="{tool.name}">'),
            expression_of_each(grammar, tool, lambda name, schema: values.tagged(name, schema, 0)),
            grammar.literal(f"{_MARK}</invoke>\n"),
        ]
    )


class _Values:
    """Makes expressions for what a function takes; where a schema is too much for rules, it is JSON that is written."""

    def __init__(self, grammar: LarkGrammar, tool: Tool) -> None:
        self._grammar = grammar
        self._shapes = Shapes(tool.parameters)

    def tagged(self, tag: str, schema: Schema, depth: int) -> str:
        opening, closing = (self._grammar.literal(f"{_MARK}<{each}>") for each in (tag, f"/{tag}"))
        match self._shapes.of(schema, depth):
            case Text(None):
                value = self._grammar.through(f"{_MARK}</{tag}>")
                return self._grammar.rule(sequence([opening, value]))
            case Text(listed):
                value = self._grammar.choice(listed or ())
            case Items(items, least, most):
                item = self.tagged("item", items, depth + 1)
                value = f"({item}){{{least},{'' if most is None else most}}}"
            case Members(schemas, required) if all(map(_NAME.fullmatch, schemas)):
                members = [
                    self.tagged(name, each, depth + 1) + ("" if name in required else "?")
                    for name, each in schemas.items()
                ]
                value = sequence(members)
            case Other(whole) if takes_any_text(whole):
                return self._grammar.rule(sequence([opening, self._grammar.through(f"{_MARK}</{tag}>")]))
            case Other(whole):
                value = self._grammar.json(whole)
            case _:
                value = self._grammar.json(schema)
        return self._grammar.rule(sequence([opening, value, closing]))
