"""Families that write all calls of an answer as JSON behind one marker, which differs."""

from __future__ import annotations

from dataclasses import dataclass

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.json_call import JsonCall, listed
from server.chat.lark import LarkGrammar, sequence
from server.chat.scanner import Reading, Scanner

_CALL = JsonCall()


@dataclass(frozen=True, slots=True)
class JsonListCalls:
    """``<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</TOOLCALL>``.

    Attributes:
        name: what the documentation calls it.
        families: the families that write so.
        trigger: the tag before the calls.
        closing: the tag behind them; empty if the end of the answer is.
        before: what the first call follows.
        between: what stands between two calls.
        after: what stands behind the last.
        call: how each is written.

    """

    name: str
    families: tuple[str, ...]
    trigger: str
    closing: str
    before: str = "["
    between: str = ", "
    after: str = "]"
    call: JsonCall = _CALL

    @property
    def example(self) -> str:
        """One call."""
        call = f'{{"{self.call.name_key}": "get_weather", "{self.call.arguments_key}": {{"city": "Paris"}}}}'
        return f"{self.trigger}{self.before}{call}{self.after}{self.closing}"

    @property
    def markers(self) -> frozenset[str]:
        """Texts that are control tokens in some vocabularies."""
        return frozenset({self.trigger, self.closing} - {""})

    def read(self, scanner: Scanner, writer: AnswerWriter, _plan: AnswerPlan) -> Reading[None]:
        """Read the calls, as a JSON list or without its brackets and commas."""
        yield from self.call.read_list(scanner, writer)
        if self.closing:
            yield from scanner.skip_space()
            yield from scanner.take(self.closing)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for the calls."""
        calls = listed(self.call.expression(grammar, plan.tools), plan, self.before, self.between, self.after)
        return sequence([calls, grammar.literal(self.closing)])


NEMOTRON_CALLS = JsonListCalls("Nemotron Nano 2", ("Nemotron Nano 2",), "<TOOLCALL>", "</TOOLCALL>")
APRIEL_CALLS = JsonListCalls("Apriel", ("Apriel 1.5", "Apriel 1.6"), "<tool_calls>", "</tool_calls>")
MINIMAX_M1_CALLS = JsonListCalls(
    "MiniMax M1", ("MiniMax M1",), "<tool_calls>", "</tool_calls>", before="\n", between="\n", after="\n"
)

FUNCTOOLS_CALLS = JsonListCalls(
    "functools", ("FireFunction v2", "Phi-4-mini, as some declare its tools"), "functools", ""
)
"""https://huggingface.co/fireworks-ai/llama-3-firefunction-v2"""

PHI_CALLS = JsonListCalls("Phi-4", ("Phi-4-mini",), "<|tool_call|>", "<|/tool_call|>")
"""https://huggingface.co/microsoft/Phi-4-mini-instruct"""

GRANITE_CALLS = JsonListCalls("Granite 3", ("Granite 3.0 to 3.3",), "<|tool_call|>", "")
"""https://huggingface.co/ibm-granite/granite-3.3-8b-instruct; from 4.0 on, Granite calls as Hermes does."""

COMMAND_R7B_CALLS = JsonListCalls(
    "Command R7B",
    ("Command R7B", "Command A", "North Mini Code"),
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    before="[\n    ",
    between=",\n    ",
    after="\n]",
    call=JsonCall("tool_name", "parameters", before_name='"\\"tool_call_id\\": \\"" /[0-9]{1,3}/ "\\", "'),
)
"""https://docs.cohere.com/docs/command-r7b-hf

The model's ids count its calls, so that they are not passed on: another answer may have the same.
"""
