"""Kimi K2: calls between control tokens, with ids that hold the function's name and count the calls.

https://huggingface.co/moonshotai/Kimi-K2-Instruct/blob/main/docs/tool_call_guidance.md
"""

from __future__ import annotations

import re

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.core.request import Tool

_END_OF_GROUP = "<|tool_calls_section_end|>"
_CALL = "<|tool_call_begin|>"
_ARGUMENTS = "<|tool_call_argument_begin|>"
_END = "<|tool_call_end|>"
_ID = re.compile(r"(?:functions\.)?(?P<name>[^\s:]+)(?P<index>:[0-9]+)?")


class KimiCalls:
    """``functions.get_weather:0`` is the id of the first call, and the only place of its name."""

    name = "Kimi K2"
    families = ("Kimi K2",)
    trigger = "<|tool_calls_section_begin|>"
    markers = frozenset({"<|tool_calls_section_begin|>", _END_OF_GROUP, _CALL, _ARGUMENTS, _END})
    example = f'{trigger}{_CALL}functions.get_weather:0{_ARGUMENTS}{{"city": "Paris"}}{_END}{_END_OF_GROUP}'

    def read(self, scanner: Scanner, writer: AnswerWriter, _plan: AnswerPlan) -> Reading[None]:
        """Read the calls; an id is the model's own where it is as it should be."""
        yield from scanner.skip_space()
        taken: set[str] = set()
        while (yield from scanner.take(_CALL)):
            head, marker = yield from scanner.collect([_ARGUMENTS])
            call_id = head.strip()
            found = _ID.fullmatch(call_id)
            yield from scanner.skip_space()
            if marker is None or found is None or (yield from scanner.next_character()) != "{":
                raise Malformed
            writer.begin_call(found["name"], call_id if found["index"] and call_id not in taken else None)
            taken.add(call_id)
            if not (yield from scanner.json_value(writer.arguments)):
                return
            writer.end_call()
            yield from scanner.skip_space()
            yield from scanner.take(_END)
            yield from scanner.skip_space()
        yield from scanner.take(_END_OF_GROUP)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for the calls; which number is next depends on the conversation, which is not known."""

        def expression(tool: Tool) -> str:
            head = sequence([grammar.literal(f"{_CALL}functions.{tool.name}:"), "/0|[1-9][0-9]{0,3}/"])
            return sequence([head, grammar.literal(_ARGUMENTS), grammar.json(tool.parameters), grammar.literal(_END)])

        call = grammar.rule(" | ".join(map(expression, plan.tools)))
        return sequence([f"{call}+" if plan.is_parallel else call, grammar.literal(_END_OF_GROUP)])
