"""Command R and R+: ``Action:`` and an indented JSON array in a block of code.

https://docs.cohere.com/docs/command-r-plus-hf
"""

from __future__ import annotations

import json

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.json_call import JsonCall, listed
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.tagged import read_or_say
from server.chat.whole_format import WholeFormat

_CALL = JsonCall("tool_name", "parameters")
_TRIGGER = "Action:"
_BLOCK, _BLOCK_END = "```json", "```"
_NO_CALL = ('"directly-answer"', '"directly_answer"')
"""What the model calls, because the template tells it to, when it wants to call nothing."""
_CALLS = _BLOCK + '\n[\n    {\n        "tool_name": '
_NEXT = ',\n    {\n        "tool_name": '
_CALLS_END = "\n]" + _BLOCK_END


class CommandRFormat(WholeFormat):
    """``Action:`` in a line, and under it the array of ``tool_name`` and ``parameters``."""

    name = "Command R"
    families: tuple[str, ...] = ("Command R", "Command R+")
    example = (
        'Action:\n```json\n[\n    {\n        "tool_name": "get_weather",\n        "parameters": {\n'
        '            "city": "Paris"\n        }\n    }\n]```'
    )

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read text with actions in it."""
        markers = (_TRIGGER, _CALLS) if plan.tools else ()
        while (marker := (yield from scanner.until(markers, writer.content))) is not None:
            if marker == _CALLS:
                scanner.step_back(len(_CALLS))
            if not (yield from _takes_no_call(scanner)):
                trigger = _TRIGGER if marker == _TRIGGER else ""
                yield from read_or_say(scanner, writer, trigger, _read_calls(scanner, writer))

    def expression(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for actions, or text with actions in it."""
        content = grammar.any_text() if plan.response_format is None else grammar.content(plan.response_format)
        if not plan.tools:
            return content
        call = grammar.rule(
            " | ".join(
                sequence(
                    [
                        quoted(f'{json.dumps(tool.name, ensure_ascii=False)},\n        "parameters": '),
                        grammar.json(tool.parameters, is_indented=True),
                        quoted("\n    }"),
                    ]
                )
                for tool in plan.tools
            )
        )
        calls = listed(call, plan, "", _NEXT, _CALLS_END)
        now = sequence([f"/\\n?{_TRIGGER}[ \\n]/", quoted(_CALLS), calls, "/\\n?/"])
        if plan.must_call:
            return now
        if plan.response_format is not None:
            return f"({now} | {content})"
        no_call = sequence([quoted(f'{_NO_CALL[0]},\n        "parameters": {{}}\n    }}{_CALLS_END}'), content])
        return f"({grammar.through(_CALLS)} ({calls} | {no_call}) | {content})"


def _takes_no_call(scanner: Scanner) -> Reading[bool]:
    """Read an action that is none, to the end of its block; read nothing if there is another."""
    scanner.mark()
    begin = scanner.offset
    yield from scanner.skip_space()
    for text in (_BLOCK, "[", "{", '"tool_name"', ":"):
        yield from scanner.take(text)
        yield from scanner.skip_space()
    is_none = (yield from scanner.take_any(_NO_CALL)) is not None
    if is_none:
        yield from scanner.collect((_BLOCK_END,))
    else:
        scanner.step_back(scanner.offset - begin)
    scanner.lift()
    return is_none


def _read_calls(scanner: Scanner, writer: AnswerWriter) -> Reading[None]:
    yield from scanner.skip_space()
    yield from scanner.take(_BLOCK)
    yield from scanner.skip_space()
    if (yield from scanner.next_character()) != "[":
        raise Malformed
    yield from _CALL.read_list(scanner, writer)
    yield from scanner.skip_space()
    yield from scanner.take(_BLOCK_END)
