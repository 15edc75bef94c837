"""GigaChat 3: a message of a role of its own for a call, and in 3.1 a token before it.

https://huggingface.co/ai-sage/GigaChat3-10B-A1.8B
"""

from __future__ import annotations

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.json_call import JsonCall
from server.chat.lark import LarkGrammar, sequence
from server.chat.scanner import Reading, Scanner
from server.chat.tagged import read_or_say
from server.chat.whole_format import WholeFormat

_CALL = JsonCall()
_SEPARATOR = "<|message_sep|>"
_ROLE = "function call<|role_sep|>"


class GigaChatFormat(WholeFormat):
    """``…<|message_sep|>``, then the role ``function call`` with one JSON object. One call an answer."""

    name = "GigaChat 3"
    markers = frozenset({_SEPARATOR, "<|role_sep|>"})
    families: tuple[str, ...] = ("GigaChat 3",)
    example = (
        "Let me look.<|message_sep|>\n\nfunction call<|role_sep|>\n"
        '{"name": "get_weather", "arguments": {"city": "Paris"}}'
    )
    call_opening = f"{_SEPARATOR}\n\n{_ROLE}\n"
    """What is written before a call."""
    call_sign = _ROLE
    """What of that a call is known by."""

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read messages up to the end."""
        markers = (_SEPARATOR, self.call_sign) if plan.tools else (_SEPARATOR,)
        while (marker := (yield from scanner.until(markers, writer.content))) is not None:
            if marker == _SEPARATOR:
                yield from scanner.skip_space()
            else:
                yield from read_or_say(scanner, writer, marker, _CALL.read(scanner, writer))

    def expression(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for what is said and a call, or one of the two."""
        content = grammar.any_text() if plan.response_format is None else grammar.content(plan.response_format)
        end = f"({grammar.literal(_SEPARATOR)} /\\n{{0,2}}/)?"
        said = f"{content} {end}"
        if not plan.tools:
            return said
        call = sequence([_CALL.expression(grammar, plan.tools), end])
        if plan.must_call or plan.response_format is not None:
            calls = sequence([grammar.literal(self.call_opening), call])
            return calls if plan.must_call else f"({calls} | {said})"
        return f"({grammar.through(self.call_opening)} {call} | {said})"


class GigaChat31Format(GigaChatFormat):
    """``<|function_call|>`` with one JSON object. One call an answer."""

    name = "GigaChat 3.1"
    markers = frozenset({_SEPARATOR, "<|function_call|>"})
    families: tuple[str, ...] = ("GigaChat 3.1",)
    example = 'Let me look.<|function_call|>{"name": "get_weather", "arguments": {"city": "Paris"}}<|message_sep|>'
    call_opening = "<|function_call|>"
    call_sign = "<|function_call|>"
