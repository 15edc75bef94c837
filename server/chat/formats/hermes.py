"""Hermes, Qwen 2.5 and 3, and all that were trained like them: JSON between ``<tool_call>`` and ``</tool_call>``.

https://github.com/NousResearch/Hermes-Function-Calling
"""

from __future__ import annotations

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.json_call import JsonCall
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.scanner import Reading, Scanner

_CALL = JsonCall()
_END = "</tool_call>"


class HermesCalls:
    """One JSON object between tags for each call."""

    name = "Hermes"
    families = ("Hermes 2 and 3", "Qwen 2.5", "Qwen 3", "QwQ", "SmolLM3", "Bielik", "MiMo", "Reka", "any other")
    example = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    trigger = "<tool_call>"
    markers = frozenset({"<tool_call>", _END})

    def read(self, scanner: Scanner, writer: AnswerWriter, _plan: AnswerPlan) -> Reading[None]:
        """Read one call."""
        yield from _CALL.read(scanner, writer)
        yield from scanner.skip_space()
        yield from scanner.take(_END)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for one call."""
        return sequence([quoted("\n"), _CALL.expression(grammar, plan.tools), grammar.literal("\n" + _END)])
