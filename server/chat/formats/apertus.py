"""Apertus: a JSON array between ``<|tools_prefix|>`` and ``<|tools_suffix|>``, with the name as the key of each call.

https://github.com/swiss-ai/apertus-format
"""

from __future__ import annotations

import json

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.json_call import listed
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.scanner import Malformed, Reading, Scanner

_END = "<|tools_suffix|>"


class ApertusCalls:
    """``[{"get_weather": {"city": "Paris"}}, …]``."""

    name = "Apertus"
    trigger = "<|tools_prefix|>"
    markers = frozenset({"<|tools_prefix|>", _END})
    families: tuple[str, ...] = ("Apertus",)
    example = '<|tools_prefix|>[{"get_weather": {"city": "Paris"}}]<|tools_suffix|>'

    def read(self, scanner: Scanner, writer: AnswerWriter, _plan: AnswerPlan) -> Reading[None]:
        """Read an array of calls."""
        yield from scanner.skip_space()
        yield from scanner.expect("[")
        follows = True
        while follows and (yield from _read_call(scanner, writer)):
            yield from scanner.skip_space()
            follows = yield from scanner.take(",")
        yield from scanner.take("]")
        yield from scanner.skip_space()
        yield from scanner.take(_END)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for the array and the tag behind it."""
        calls = [
            sequence(
                [
                    quoted("{" + json.dumps(tool.name, ensure_ascii=False) + ": "),
                    grammar.json(tool.parameters),
                    quoted("}"),
                ]
            )
            for tool in plan.tools
        ]
        return sequence([listed(grammar.rule(" | ".join(calls)), plan), grammar.literal(_END)])


def _read_call(scanner: Scanner, writer: AnswerWriter) -> Reading[bool]:
    """Read one call; return whether it was complete."""
    yield from scanner.skip_space()
    yield from scanner.expect("{")
    yield from scanner.skip_space()
    pieces: list[str] = []
    if (yield from scanner.next_character()) != '"' or not (
        yield from scanner.json_value(lambda text, _: pieces.append(text))
    ):
        raise Malformed
    yield from scanner.skip_space()
    yield from scanner.expect(":")
    yield from scanner.skip_space()
    if (yield from scanner.next_character()) not in ("{", ""):
        raise Malformed
    try:
        name = json.loads("".join(pieces), strict=False)
    except ValueError as error:
        raise Malformed from error
    writer.begin_call(name)
    if not (yield from scanner.json_value(writer.arguments)):
        return False
    yield from scanner.skip_space()
    yield from scanner.take("}")
    writer.end_call()
    return True
