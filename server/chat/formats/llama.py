"""Llama 3.1 to 3.3: an answer that is a JSON object with ``name`` and ``parameters`` is a call.

https://github.com/meta-llama/llama-models/blob/main/models/llama3_1/prompt_format.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.json_call import JsonCall
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.tagged import read_or_say
from server.chat.whole_format import WholeFormat
from server.core.request import Tool

_CALL = JsonCall("name", "parameters")
_TAG = "<|python_tag|>"
_HEADS = ('{"name": ', '{"type": "function", "name": ')
"""What models write up to the name; the second is not in the templates, and usual all the same."""
_SPACE = r"[ \t\r\n]*"
_BUILT_IN_CALL = ".call("
_CODE_TOOLS = ("code_interpreter", "ipython", "python")
_LONGEST_NAME = 256


class LlamaFormat(WholeFormat):
    """Bare JSON at the very beginning, or behind ``<|python_tag|>``, where built-in tools and code are found, too.

    The templates accept one call in a message, so that no more is asked for; more are read if the model writes them.
    """

    name = "Llama 3"
    markers = frozenset({_TAG})
    families: tuple[str, ...] = ("Llama 3.1", "Llama 3.2", "Llama 3.3")
    example = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
    speaks_plainly = True

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read calls at the beginning, then text with calls behind tags."""
        names = {tool.name for tool in plan.tools}
        if names:
            yield from _read_objects(scanner, writer, names)
        markers = (_TAG,) if names else ()
        while (yield from scanner.until(markers, writer.content)) is not None:
            is_call = yield from read_or_say(scanner, writer, _TAG, _read_tagged(scanner, writer, names))
            if is_call and (yield from _another_follows(scanner, writer)):
                yield from _read_objects(scanner, writer, names)

    def expression(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for a call, or for text that does not begin as one."""
        content = "" if plan.response_format is None else grammar.content(plan.response_format)
        if not plan.tools:
            return content
        tag, call = grammar.literal(_TAG), _call(grammar, plan.tools)
        if plan.must_call:
            return f"({tag})? {call}"
        if content:  # which may be JSON as well: only the tag tells the two apart from the first character on
            return f"({tag} {call} | {content})"
        return f"(({tag})? {call} | {grammar.terminal(_free_text(plan.tools))})"


def _call(grammar: LarkGrammar, tools: Sequence[Tool]) -> str:
    calls = [
        # up to the parameters it is one text, so that it can be told from free text by its beginning
        sequence([quoted(f'{head}{json.dumps(tool.name)}, "parameters": '), grammar.json(tool.parameters), quoted("}")])
        for tool in tools
        for head in _HEADS
    ]
    return grammar.rule(" | ".join(calls))


def _free_text(tools: Sequence[Tool]) -> str:
    """Return a terminal for text that does not begin as a call of one of some functions."""
    names = "|".join(re.escape(tool.name) for tool in tools)
    kind = f'"type"{_SPACE}:{_SPACE}"function"{_SPACE},{_SPACE}'
    call = rf'\{{{_SPACE}({kind})?"name"{_SPACE}:{_SPACE}"({names})"'
    return rf"/(.|\n)*/ & ~/{_SPACE}({re.escape(_TAG)}|{call})(.|\n)*/"


def _read_objects(scanner: Scanner, writer: AnswerWriter, names: Collection[str]) -> Reading[None]:
    """Read calls one after the other, with a separator between them or without."""
    follows = True
    while follows and (yield from read_or_say(scanner, writer, "", _CALL.read(scanner, writer, names))):
        follows = yield from _another_follows(scanner, writer)


def _another_follows(scanner: Scanner, writer: AnswerWriter) -> Reading[bool]:
    if writer.has_open_call:
        return False
    yield from scanner.skip_space()
    yield from scanner.take_any((";", ","))
    yield from scanner.skip_space()
    return (yield from scanner.next_character()) == "{"


def _read_tagged(scanner: Scanner, writer: AnswerWriter, names: Collection[str]) -> Reading[None]:
    yield from scanner.skip_space()
    if (yield from scanner.next_character()) == "{":
        yield from _CALL.read(scanner, writer, names)
        return
    built_in = yield from scanner.take_any([name + _BUILT_IN_CALL for name in names])
    if built_in is not None:
        yield from _read_built_in(scanner, writer, built_in.removesuffix(_BUILT_IN_CALL))
        return
    tool = next((name for name in _CODE_TOOLS if name in names), None)
    if tool is None:
        raise Malformed
    code, _ = yield from scanner.collect((_TAG,))
    writer.whole_call(tool, {"code": code})


def _read_built_in(scanner: Scanner, writer: AnswerWriter, name: str) -> Reading[None]:
    """Read ``query="the weather")``: arguments as Python writes them, whose texts are those of JSON."""
    writer.begin_call(name)
    opening = "{"
    while not (yield from scanner.take(")")):
        key, _ = yield from scanner.collect(("=",), _LONGEST_NAME)
        writer.arguments(f"{opening}{json.dumps(key.strip(), ensure_ascii=False)}: ")
        if not (yield from scanner.json_value(writer.arguments)):
            return
        opening = ", "
        yield from scanner.skip_space()
        if not (yield from scanner.take(",")):
            yield from scanner.expect(")")
            break
        yield from scanner.skip_space()
    writer.arguments("{}" if opening == "{" else "}")
    writer.end_call()
