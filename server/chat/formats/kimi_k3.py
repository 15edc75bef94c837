"""Kimi K3: an answer is made of sections for thinking, the response and calls, each between tags of control tokens.

https://huggingface.co/moonshotai/Kimi-K3 (chat template)
"""

from __future__ import annotations

import html
import re

from server.chat.answer_format import AnswerParser, AnswerPlan, ControlToken, ReasoningStart
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.tagged import ReadingParser, read_calls
from server.chat.typed_arguments import (
    Schema,
    TypedArguments,
    allowed_types,
    expression_of_each,
    is_plain_text,
    takes_any_text,
    value_expression,
)
from server.core.request import Tool

_TYPES = {"integer": "number"}
_TYPE = re.compile(r'\btype="([a-z]+)"')
_NAME = re.compile(r'\b(?:tool|key)="([^"]*)"')


def _open(tag: str) -> str:
    return f"<|open|>{tag}<|sep|>"


def _close(tag: str) -> str:
    return f"<|close|>{tag}<|sep|>"


_THINKING, _END_OF_THINKING = _open("think"), _close("think")
_RESPONSE, _END_OF_RESPONSE = _open("response"), _close("response")
_CALLS, _END_OF_CALLS = _open("tools"), _close("tools")
_END_OF_CALL = _close("call")
_ARGUMENT, _END_OF_VALUE = "<|open|>argument", _close("argument")
_END_OF_MESSAGE = _close("message")


class _KimiK3Calls:
    """The section of calls: ``call`` with ``argument`` in it, as JSON where the type is not ``string``."""

    name = "Kimi K3"
    families = ("Kimi K3",)
    trigger = _CALLS
    markers = frozenset({"<|open|>", "<|close|>", "<|sep|>"})
    example = (
        f'{_CALLS}<|open|>call tool="get_weather" index="1"<|sep|>'
        f'{_ARGUMENT} key="city" type="string"<|sep|>Paris{_END_OF_VALUE}{_END_OF_CALL}{_END_OF_CALLS}'
    )

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read the calls."""
        yield from scanner.skip_space()
        while not (yield from scanner.take(_END_OF_CALLS)):
            yield from scanner.expect("<|open|>call")
            attributes, _ = yield from scanner.collect(["<|sep|>"])
            name = _attribute(_NAME, attributes)
            if not name:
                raise Malformed
            writer.begin_call(name)
            yield from scanner.skip_space()
            if (yield from scanner.take(_open('json type="object"'))):
                yield from _read_json(scanner, writer)
            else:
                yield from _read_arguments(scanner, TypedArguments(writer, plan.tools, name))
            writer.end_call()
            yield from scanner.skip_space()

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for the calls."""
        call = grammar.rule(" | ".join(_call_expression(grammar, tool) for tool in plan.tools))
        return f"{call}{'+' if plan.is_parallel else ''} {grammar.literal(_END_OF_CALLS)}"


_CALL_SYNTAX = _KimiK3Calls()


class KimiK3Format:
    """Thinking, response and calls in this order; the prompt ends within the first of those that there are."""

    name = _CALL_SYNTAX.name
    families = _CALL_SYNTAX.families
    markers = _CALL_SYNTAX.markers
    example = _CALL_SYNTAX.example
    thinking_end = _END_OF_THINKING
    speaks_plainly = False

    def thinking_closing(self, _plan: AnswerPlan) -> str | None:
        """Return the end of the section of thoughts."""
        return _END_OF_THINKING

    def reasoning_start(self, prompt: str) -> ReasoningStart:
        """Look which section the prompt has begun."""
        end = prompt.rstrip()
        if end.endswith(_THINKING):
            return ReasoningStart.OPEN
        return ReasoningStart.NEVER if end.endswith(_RESPONSE) else ReasoningStart.POSSIBLE

    def parser(self, plan: AnswerPlan) -> AnswerParser:
        """Make the parser for one choice."""
        return ReadingParser(lambda scanner, writer: _read(scanner, writer, plan), plan=plan)

    def grammar(self, plan: AnswerPlan, control_token: ControlToken) -> str | None:
        """Return the grammar of the whole answer, ``None`` if it may be anything."""
        if plan.is_free:
            return None
        grammar = LarkGrammar(self.markers, control_token)
        thinking = grammar.through(_END_OF_THINKING)
        before = {
            ReasoningStart.NEVER: "",
            ReasoningStart.OPEN: sequence([thinking, grammar.literal(_RESPONSE)]),
            ReasoningStart.POSSIBLE: f"({grammar.literal(_THINKING)} {thinking})? {grammar.literal(_RESPONSE)}",
        }[plan.reasoning]
        answer = sequence([_answer_expression(grammar, plan), grammar.literal(_END_OF_MESSAGE)])
        return grammar.build(sequence([before, answer]))


def _answer_expression(grammar: LarkGrammar, plan: AnswerPlan) -> str:
    """Return an expression for what follows the opening tag of the response."""
    said = grammar.through(_END_OF_RESPONSE)
    if plan.response_format is not None:
        said = sequence([grammar.content(plan.response_format), grammar.literal(_END_OF_RESPONSE)])
    if not plan.tools:
        return said
    calls = sequence([grammar.literal(_CALLS), _CALL_SYNTAX.rest(grammar, plan)])
    nothing = grammar.literal(_END_OF_RESPONSE)
    if plan.must_call:
        return f"{nothing} {calls}"
    if plan.response_format is not None:
        return f"({nothing} {calls} | {said})"
    return f"{said} ({calls})?"


def _call_expression(grammar: LarkGrammar, tool: Tool) -> str:
    return sequence(
        [
            grammar.literal(f'<|open|>call tool="{_escaped(tool.name)}" index="'),
            "/[1-9][0-9]{0,2}/",
            grammar.literal('"<|sep|>'),
            expression_of_each(grammar, tool, lambda name, schema: _argument_expression(grammar, name, schema)),
            grammar.literal(_END_OF_CALL),
        ]
    )


def _argument_expression(grammar: LarkGrammar, name: str, schema: Schema) -> str:
    opening = grammar.literal(f'{_ARGUMENT} key="{_escaped(name)}" type="')
    types = sorted({_TYPES.get(each, each) for each in allowed_types(schema)})
    value = value_expression(grammar, schema, _END_OF_VALUE)
    texts = sequence([quoted("string"), grammar.literal('"<|sep|>'), value])
    if is_plain_text(schema):
        return sequence([opening, texts])
    others = " | ".join(quoted(each) for each in types if each != "string" or not takes_any_text(schema))
    as_json = sequence([grammar.json(schema), grammar.literal(_END_OF_VALUE)])
    written = sequence([f"({others})", grammar.literal('"<|sep|>'), as_json])
    return f"{opening} ({texts} | {written})" if takes_any_text(schema) else sequence([opening, written])


def _read(scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
    emit = writer.content if plan.is_reasoning_raw else writer.reasoning
    is_thinking = plan.reasoning is ReasoningStart.OPEN
    if plan.reasoning is ReasoningStart.POSSIBLE:
        yield from scanner.skip_space()
        is_thinking = yield from scanner.take(_THINKING)
    if is_thinking:
        writer.begin_reasoning(is_apart=not plan.is_reasoning_raw)
        yield from scanner.until([_END_OF_THINKING, _RESPONSE], emit)
        writer.end_reasoning(is_apart=not plan.is_reasoning_raw)
    # tags of sections are said to nobody; calls are read where they may come
    unsaid = (_RESPONSE, _END_OF_RESPONSE, _END_OF_THINKING, _END_OF_MESSAGE)
    calls = (_CALLS,) if plan.tools else ()
    while (marker := (yield from scanner.until((*unsaid, *calls), writer.content))) is not None:
        if marker == _CALLS:
            yield from read_calls(scanner, writer, _CALL_SYNTAX, plan)
        elif plan.is_reasoning_raw:
            writer.content(marker, scanner.offset - len(marker))
        else:
            writer.leave_out()


def _read_json(scanner: Scanner, writer: AnswerWriter) -> Reading[None]:
    """Read arguments that are one JSON object."""
    if not (yield from scanner.json_value(writer.arguments)):
        raise Malformed
    yield from scanner.skip_space()
    yield from scanner.expect(_close("json"))
    yield from scanner.skip_space()
    yield from scanner.expect(_END_OF_CALL)


def _read_arguments(scanner: Scanner, arguments: TypedArguments) -> Reading[None]:
    while not (yield from scanner.take(_END_OF_CALL)):
        yield from scanner.expect(_ARGUMENT)
        attributes, _ = yield from scanner.collect(["<|sep|>"])
        kind = _attribute(_TYPE, attributes)
        is_text = None if kind is None else kind == "string"
        name = _attribute(_NAME, attributes) or ""
        if (yield from arguments.read(scanner, name, [_END_OF_VALUE], is_text=is_text)) is None:
            raise Malformed
        yield from scanner.skip_space()
    arguments.end()


def _attribute(pattern: re.Pattern[str], attributes: str) -> str | None:
    found = pattern.search(attributes)
    return None if found is None else html.unescape(found[1])


def _escaped(value: str) -> str:
    return value.replace("&", "&amp;").replace('"', "&quot;")
