"""Solar Open: messages that are thoughts, content or calls by the token that begins them.

https://huggingface.co/upstage/Solar-Open-100B
"""

from __future__ import annotations

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.tagged import read_or_say
from server.chat.whole_format import MessagesFormat

_BEGIN, _END, _FLUSH, _CALLS_END = "<|begin|>", "<|end|>", "<|flush|>", "<|calls|>"
_THINK, _CONTENT, _CALLS = "<|think|>", "<|content|>", "<|tool_calls|>"
_CALL_BEGIN, _CALL_NAME, _CALL_ARGUMENTS, _CALL_END = (
    "<|tool_call:begin|>",
    "<|tool_call:name|>",
    "<|tool_call:args|>",
    "<|tool_call:end|>",
)
_ID = "/[a-z0-9]{10}/"
_LONGEST_NAME = 256


class SolarFormat(MessagesFormat):
    """``<|think|>…<|end|>``, then ``<|content|>…`` or ``<|tool_calls|>``, all behind ``<|begin|>assistant``."""

    name = "Solar Open"
    markers = frozenset(
        {
            _THINK,
            _CONTENT,
            _CALLS,
            _CALL_BEGIN,
            _CALL_NAME,
            _CALL_ARGUMENTS,
            _CALL_END,
            _BEGIN,
            _END,
            _FLUSH,
            _CALLS_END,
        }
    )
    message_opening = _BEGIN
    speech_opening = _CONTENT
    call_opening = _CALLS
    endings = (_END, _FLUSH, _CALLS_END, _BEGIN)
    thinking_end = _END
    thinking_opening = _THINK
    families: tuple[str, ...] = ("Solar Open",)
    example = (
        "<|think|>I have to look.<|end|><|begin|>assistant<|tool_calls|><|tool_call:begin|>a1b2c3d4e5"
        '<|tool_call:name|>get_weather<|tool_call:args|>{"city": "Paris"}<|tool_call:end|><|calls|>'
    )

    def read_message(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[str | None]:
        """Read a message from the token that says what it is; text without one is content."""
        kind = yield from scanner.take_any((_THINK, _CONTENT, _CALLS))
        if kind == _THINK:
            if plan.is_reasoning_raw:
                writer.content(_THINK, scanner.offset - len(_THINK))
            return (yield from self.read_thought(scanner, writer, plan))
        markers = (*self.endings, _CALL_BEGIN) if plan.tools else self.endings
        while (marker := (yield from scanner.until(markers, writer.content))) == _CALL_BEGIN:
            yield from read_or_say(scanner, writer, _CALL_BEGIN, _read_call(scanner, writer))
        return marker

    def expression(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for a thought, then calls or what is said."""
        thought = self.thoughts(grammar, plan, _END)
        content = grammar.any_text() if plan.response_format is None else grammar.content(plan.response_format)
        said = sequence([grammar.literal(_CONTENT), content])
        if not plan.tools:
            return sequence([thought, said])
        call = grammar.rule(
            " | ".join(
                sequence(
                    [
                        grammar.literal(_CALL_BEGIN),
                        _ID,
                        grammar.literal(f"{_CALL_NAME}{tool.name}{_CALL_ARGUMENTS}"),
                        grammar.json(tool.parameters),
                        grammar.literal(_CALL_END),
                    ]
                )
                for tool in plan.tools
            )
        )
        calls = sequence([grammar.literal(_CALLS), f"({call})+" if plan.is_parallel else call])
        return sequence([thought, calls if plan.must_call else f"({calls} | {said})"])


def _read_call(scanner: Scanner, writer: AnswerWriter) -> Reading[None]:
    call_id, _ = yield from scanner.collect((_CALL_NAME,), _LONGEST_NAME)
    name, marker = yield from scanner.collect((_CALL_ARGUMENTS,), _LONGEST_NAME)
    yield from scanner.skip_space()
    if marker is None or not name.strip() or (yield from scanner.next_character()) not in ("{", ""):
        raise Malformed
    writer.begin_call(name.strip(), call_id.strip())
    if (yield from scanner.json_value(writer.arguments)):
        writer.end_call()
        yield from scanner.skip_space()
        yield from scanner.take(_CALL_END)
