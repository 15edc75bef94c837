"""LFM2 and LFM2.5: calls as Python writes them, in a list between two control tokens.

https://docs.liquid.ai/lfm/key-concepts/tool-use
"""

from __future__ import annotations

import json
import re

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.json_call import JsonCall
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.loose_json import LooseJson
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.typed_arguments import Parameters, Schema
from server.core.errors import InvalidRequest
from server.core.request import Tool

_END = "<|tool_call_end|>"
_NAME = re.compile(r"[\w.-]+")
_KEY = re.compile(r"[\w.$-]+")
_VALUES = LooseJson()
_JSON_CALL = JsonCall()
_BOOLEANS = {"type": "boolean"}


class PythonicCalls:
    """``[get_weather(city="Paris"), ping()]``."""

    name = "LFM2"
    families = ("LFM2", "LFM2.5")
    trigger = "<|tool_call_start|>"
    markers = frozenset({"<|tool_call_start|>", _END})
    example = f'{trigger}[get_weather(city="Paris")]{_END}'

    def read(self, scanner: Scanner, writer: AnswerWriter, _plan: AnswerPlan) -> Reading[None]:
        """Read the calls; those that are JSON, which these models write when they are told to, are read as well."""
        yield from scanner.skip_space()
        yield from scanner.take("[")
        while True:
            yield from scanner.skip_space()
            following = yield from scanner.next_character()
            if following in {"]", "<", ""}:
                break
            if following == "{":
                yield from _JSON_CALL.read(scanner, writer)
            else:
                yield from _read_call(scanner, writer)
            if writer.has_open_call:
                return
            yield from scanner.skip_space()
            yield from scanner.take(",")
        yield from scanner.take("]")
        yield from scanner.skip_space()
        yield from scanner.take(_END)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for the calls."""
        call = grammar.rule(" | ".join(_call_expression(grammar, tool) for tool in plan.tools))
        calls = f'{call} (", " {call})*' if plan.is_parallel else call
        return sequence([quoted("["), calls, grammar.literal("]" + _END)])


def _read_call(scanner: Scanner, writer: AnswerWriter) -> Reading[None]:
    name, bracket = yield from scanner.collect(["("])
    if bracket is None or not _NAME.fullmatch(name.strip()):
        raise Malformed
    writer.begin_call(name.strip())
    num_read = 0
    yield from scanner.skip_space()
    while not (yield from scanner.take(")")):
        key, equals = yield from scanner.collect(["="])
        if equals is None:
            raise Malformed
        writer.arguments(("{" if num_read == 0 else ", ") + json.dumps(key.strip(), ensure_ascii=False) + ": ")
        num_read += 1
        yield from _VALUES.read(scanner, writer.arguments)
        yield from scanner.skip_space()
        if (yield from scanner.take(",")):
            yield from scanner.skip_space()
        elif (yield from scanner.next_character()) != ")":
            raise Malformed
    writer.arguments("}" if num_read else "{}")
    writer.end_call()


def _call_expression(grammar: LarkGrammar, tool: Tool) -> str:
    parameters = Parameters.of(tool)
    if unwritable := next((name for name in parameters.schemas if not _KEY.fullmatch(name)), None):
        raise InvalidRequest(
            f"The function {tool.name!r} has the parameter {unwritable!r}, which is no name in Python, as this model "
            "writes calls; use letters, digits and underscores.",
            param="tools",
        )
    members = [
        (f"{quoted(name + '=')} {_value_expression(grammar, schema)}", name in parameters.required)
        for name, schema in parameters.schemas.items()
    ]
    return sequence([quoted(f"{tool.name}("), grammar.separated(members, ", "), quoted(")")])


def _value_expression(grammar: LarkGrammar, schema: Schema) -> str:
    if {key: schema[key] for key in schema if key == "type"} == _BOOLEANS and "enum" not in schema:
        return '("True" | "False")'
    return grammar.json(schema)
