"""Mistral's models: ``[TOOL_CALLS]`` with a JSON array behind it, and since 2025 with a name, ``[ARGS]`` and JSON.

https://docs.mistral.ai/capabilities/function_calling/ and, for the order of the tokens,
https://github.com/mistralai/mistral-common/blob/main/src/mistral_common/tokens/tokenizers/instruct.py
"""

from __future__ import annotations

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.json_call import JsonCall, listed
from server.chat.lark import LarkGrammar, sequence
from server.chat.scanner import Malformed, Reading, Scanner

_TRIGGER, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_ID_PATTERN = "/[a-zA-Z0-9]{9}/"
_LISTED = JsonCall(after_arguments=f'", \\"id\\": \\"" {_ID_PATTERN} "\\""')
_LONGEST_NAME = 256


class MistralListCalls:
    """All calls in one array, each with an id of nine letters and digits after its arguments."""

    name = "Mistral"
    trigger = _TRIGGER
    markers = frozenset({_TRIGGER})
    families: tuple[str, ...] = (
        "Mistral 7B v0.3",
        "Mistral Nemo",
        "Mistral Small 2409",
        "Mistral Large 2",
        "Mixtral 8x22B",
    )
    example = '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "a1B2c3D4e"}]'

    def read(self, scanner: Scanner, writer: AnswerWriter, _plan: AnswerPlan) -> Reading[None]:
        """Read the array, or one call in either way: models of one family have been trained on both."""
        yield from scanner.skip_space()
        if (yield from scanner.next_character()) in ("[", "{"):
            yield from _LISTED.read_list(scanner, writer)
        else:
            yield from _read_named(scanner, writer)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for the array."""
        return listed(_LISTED.expression(grammar, plan.tools), plan)


class MistralCalls(MistralListCalls):
    """Each call by itself: ``[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}``."""

    name = "Mistral (2025)"
    markers = frozenset({_TRIGGER, _ARGUMENTS})
    families: tuple[str, ...] = (
        "Devstral",
        "Magistral",
        "Ministral 3",
        "Mistral Small 4",
        "Mistral Medium 3.1",
        "Mistral Large 3",
    )
    example = '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}'

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for one call."""
        calls = [
            sequence([grammar.literal(tool.name), self.id_expression(grammar), grammar.json(tool.parameters)])
            for tool in plan.tools
        ]
        return grammar.rule(" | ".join(calls))

    def id_expression(self, grammar: LarkGrammar) -> str:
        """Return an expression for what stands between name and arguments."""
        return grammar.literal(_ARGUMENTS)


class MistralCallsWithIds(MistralCalls):
    """Each call by itself, with an id: ``[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris"}``."""

    name = "Mistral Small 3.2"
    markers = frozenset({_TRIGGER, _ID, _ARGUMENTS})
    families: tuple[str, ...] = ("Mistral Small 3.2",)
    example = '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Paris"}'

    def id_expression(self, grammar: LarkGrammar) -> str:
        """Return an expression for the id, and for what announces the arguments."""
        return sequence([grammar.literal(_ID), _ID_PATTERN, grammar.literal(_ARGUMENTS)])


def _read_named(scanner: Scanner, writer: AnswerWriter) -> Reading[None]:
    name, marker = yield from scanner.collect((_ID, _ARGUMENTS, "{"), _LONGEST_NAME)
    call_id = None
    if marker == _ID:
        call_id, marker = yield from scanner.collect((_ARGUMENTS, "{"), _LONGEST_NAME)
    if marker is None or not name.strip():
        raise Malformed
    if marker == "{":
        scanner.step_back(1)
    yield from scanner.skip_space()
    if (yield from scanner.next_character()) not in ("{", ""):
        raise Malformed
    writer.begin_call(name.strip(), call_id and call_id.strip())
    if (yield from scanner.json_value(writer.arguments)):
        writer.end_call()
