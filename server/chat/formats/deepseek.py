"""DeepSeek 3, 3.1, R1 and its distillations: name and arguments between control tokens, R1's in a block of Markdown.

https://huggingface.co/deepseek-ai/DeepSeek-V3.1 (chat template and model card)
"""

from __future__ import annotations

from dataclasses import dataclass

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.core.request import Tool

_END_OF_GROUP = "<｜tool▁calls▁end｜>"
_CALL = "<｜tool▁call▁begin｜>"
_SEPARATOR = "<｜tool▁sep｜>"
_END = "<｜tool▁call▁end｜>"
_FENCE = "```"


@dataclass(frozen=True, slots=True)
class DeepSeekCalls:
    """A group of calls; ``is_fenced`` says that arguments are a block of Markdown behind the name on its line."""

    name: str
    families: tuple[str, ...]
    is_fenced: bool
    trigger: str = "<｜tool▁calls▁begin｜>"
    markers: frozenset[str] = frozenset({"<｜tool▁calls▁begin｜>", _END_OF_GROUP, _CALL, _SEPARATOR, _END})

    @property
    def example(self) -> str:
        """One call."""
        return f'{self.trigger}{self._head("get_weather")}{{"city": "Paris"}}{self._tail}{_END_OF_GROUP}'

    def read(self, scanner: Scanner, writer: AnswerWriter, _plan: AnswerPlan) -> Reading[None]:
        """Read the calls, in whichever of the two ways each is written."""
        yield from scanner.skip_space()
        while (yield from scanner.take(_CALL)):
            name, separator = yield from scanner.collect([_SEPARATOR])
            if separator is None:
                raise Malformed
            yield from scanner.skip_space()
            if (yield from scanner.next_character()) != "{":
                name, _ = yield from scanner.collect(["\n"])  # what came before is the kind of tool
                yield from scanner.skip_space()
                yield from scanner.take(_FENCE + "json")
                yield from scanner.skip_space()
            if not name.strip() or (yield from scanner.next_character()) != "{":
                raise Malformed
            writer.begin_call(name.strip())
            if not (yield from scanner.json_value(writer.arguments)):
                return
            writer.end_call()
            yield from scanner.skip_space()
            yield from scanner.take(_FENCE)
            yield from scanner.skip_space()
            yield from scanner.take(_END)
            yield from scanner.skip_space()
        yield from scanner.take(_END_OF_GROUP)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for the calls."""
        call = grammar.rule(" | ".join(self._call_expression(grammar, tool) for tool in plan.tools))
        between = quoted("\n") if self.is_fenced else ""
        calls = f"{call} ({sequence([between, call])})*" if plan.is_parallel else call
        return sequence([calls, grammar.literal(_END_OF_GROUP)])

    def _call_expression(self, grammar: LarkGrammar, tool: Tool) -> str:
        return sequence(
            [grammar.literal(self._head(tool.name)), grammar.json(tool.parameters), grammar.literal(self._tail)]
        )

    def _head(self, name: str) -> str:
        if self.is_fenced:
            return f"{_CALL}function{_SEPARATOR}{name}\n{_FENCE}json\n"
        return f"{_CALL}{name}{_SEPARATOR}"

    @property
    def _tail(self) -> str:
        return f"\n{_FENCE}{_END}" if self.is_fenced else _END


DEEPSEEK_R1_CALLS = DeepSeekCalls("DeepSeek R1", ("DeepSeek 3", "DeepSeek R1", "R1 Distill"), is_fenced=True)
DEEPSEEK_CALLS = DeepSeekCalls("DeepSeek 3.1", ("DeepSeek 3.1",), is_fenced=False)
