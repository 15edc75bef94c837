"""Nemotron Nano 2, Apriel, MiniMax M1: all calls of an answer between two tags, each a JSON object."""

from __future__ import annotations

from dataclasses import dataclass

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.json_call import JsonCall
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.scanner import Reading, Scanner

_CALL = JsonCall()


@dataclass(frozen=True, slots=True)
class JsonListCalls:
    """``<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</TOOLCALL>``.

    Attributes:
        name: what the documentation calls it.
        families: the families that write so.
        trigger: the tag before the calls.
        closing: the tag behind them.
        before: what the first call follows.
        between: what stands between two calls.
        after: what stands behind the last.

    """

    name: str
    families: tuple[str, ...]
    trigger: str
    closing: str
    before: str = "["
    between: str = ", "
    after: str = "]"

    @property
    def example(self) -> str:
        """One call."""
        call = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
        return f"{self.trigger}{self.before}{call}{self.after}{self.closing}"

    @property
    def markers(self) -> frozenset[str]:
        """Texts that are control tokens in some vocabularies."""
        return frozenset({self.trigger, self.closing})

    def read(self, scanner: Scanner, writer: AnswerWriter, _plan: AnswerPlan) -> Reading[None]:
        """Read the calls, as a JSON list or without its brackets and commas."""
        yield from scanner.skip_space()
        yield from scanner.take("[")
        while True:
            yield from scanner.skip_space()
            if (yield from scanner.next_character()) != "{":
                break
            yield from _CALL.read(scanner, writer)
            if writer.has_open_call:
                return
            yield from scanner.skip_space()
            yield from scanner.take(",")
        yield from scanner.take("]")
        yield from scanner.skip_space()
        yield from scanner.take(self.closing)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for the calls."""
        call = _CALL.expression(grammar, plan.tools)
        calls = f"{call} ({quoted(self.between)} {call})*" if plan.is_parallel else call
        return sequence([quoted(self.before), calls, grammar.literal(self.after + self.closing)])


NEMOTRON_CALLS = JsonListCalls("Nemotron Nano 2", ("Nemotron Nano 2",), "<TOOLCALL>", "</TOOLCALL>")
APRIEL_CALLS = JsonListCalls("Apriel", ("Apriel 1.5", "Apriel 1.6"), "<tool_calls>", "</tool_calls>")
MINIMAX_M1_CALLS = JsonListCalls(
    "MiniMax M1", ("MiniMax M1",), "<tool_calls>", "</tool_calls>", before="\n", between="\n", after="\n"
)
