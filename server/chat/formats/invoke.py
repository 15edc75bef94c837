"""MiniMax M2, DeepSeek 3.2 and 4: tags ``invoke`` and ``parameter`` with names in quotes, for all calls of an answer.

https://huggingface.co/MiniMaxAI/MiniMax-M2/blob/main/docs/tool_calling_guide.md
https://huggingface.co/deepseek-ai/DeepSeek-V3.2 (encoding/encoding_dsv32.py)
"""

from __future__ import annotations

from dataclasses import dataclass

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, quoted, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.typed_arguments import (
    Schema,
    TypedArguments,
    expression_of_each,
    is_plain_text,
    takes_any_text,
    value_expression,
)
from server.core.request import Tool


@dataclass(frozen=True, slots=True)
class InvokeCalls:
    """``<invoke name="get_weather">`` with ``<parameter name="city">Paris</parameter>`` in it.

    Attributes:
        name: what the documentation calls it.
        families: the families that write so.
        group: the name of the tag around all calls.
        mark: what the names of the inner tags begin with.
        control: control tokens of the vocabulary that the tags hold or are.
        tells_text: whether a parameter says if its value is plain text or JSON.
        when_empty: what stands in a call without parameters.

    """

    name: str
    families: tuple[str, ...]
    group: str
    mark: str = ""
    control: frozenset[str] = frozenset()
    tells_text: bool = False
    when_empty: str = ""

    @property
    def example(self) -> str:
        """One call."""
        is_text = ' string="true"' if self.tells_text else ""
        return (
            f'{self.trigger}\n<{self.mark}invoke name="get_weather">\n'
            f'<{self.mark}parameter name="city"{is_text}>Paris{self._end_of_value}\n{self._end}\n{self._end_of_group}'
        )

    @property
    def trigger(self) -> str:
        """What begins all calls."""
        return f"<{self.group}>"

    @property
    def markers(self) -> frozenset[str]:
        """Texts that are control tokens in some vocabularies."""
        return self.control

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read the calls."""
        yield from scanner.skip_space()
        while (yield from scanner.take(f"<{self.mark}invoke")):
            yield from self._read_call(scanner, writer, plan)
            if writer.has_open_call:
                return
            yield from scanner.skip_space()
        yield from scanner.take(self._end_of_group)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for the calls."""
        calls = [
            sequence(
                [
                    grammar.literal(f'\n<{self.mark}invoke name="{tool.name}">\n'),
                    expression_of_each(grammar, tool, lambda name, schema: self._parameter(grammar, name, schema)),
                    self._when_empty(tool),
                    grammar.literal(self._end),
                ]
            )
            for tool in plan.tools
        ]
        call = grammar.rule(" | ".join(calls))
        return sequence([f"{call}+" if plan.is_parallel else call, grammar.literal("\n" + self._end_of_group)])

    def _read_call(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        attributes = yield from _attributes(scanner)
        if "name" not in attributes:
            raise Malformed
        writer.begin_call(attributes["name"])
        arguments = TypedArguments(writer, plan.tools, attributes["name"])
        while True:
            yield from scanner.skip_space()
            if not (yield from scanner.take(f"<{self.mark}parameter")):
                break
            attributes = yield from _attributes(scanner)
            is_text = {"true": True, "false": False}.get(attributes.get("string", ""))
            name = attributes.get("name", "")
            if (yield from arguments.read(scanner, name, [self._end_of_value], is_text=is_text)) is None:
                return
        yield from scanner.expect(self._end)
        arguments.end()
        writer.end_call()

    def _parameter(self, grammar: LarkGrammar, name: str, schema: Schema) -> str:
        def written(value: str, *, is_text: bool) -> str:
            attribute = f' string="{str(is_text).lower()}"' if self.tells_text else ""
            opening = grammar.literal(f'<{self.mark}parameter name="{name}"{attribute}>')
            return sequence([opening, value, quoted("\n")])

        value = value_expression(grammar, schema, self._end_of_value)
        if is_plain_text(schema) or not takes_any_text(schema):
            return written(value, is_text=is_plain_text(schema))
        as_json = sequence([grammar.json(schema), grammar.literal(self._end_of_value)])
        return f"({written(value, is_text=True)} | {written(as_json, is_text=False)})"

    def _when_empty(self, tool: Tool) -> str:
        return quoted(self.when_empty) if self.when_empty and not tool.parameters.get("properties") else ""

    @property
    def _end(self) -> str:
        return f"</{self.mark}invoke>"

    @property
    def _end_of_value(self) -> str:
        return f"</{self.mark}parameter>"

    @property
    def _end_of_group(self) -> str:
        return f"</{self.group}>"


def _attributes(scanner: Scanner) -> Reading[dict[str, str]]:
    """Read attributes with their values in quotes, and the bracket behind them.

    Raises:
        Malformed: they are none.

    """
    found: dict[str, str] = {}
    yield from scanner.skip_space()
    while not (yield from scanner.take(">")):
        name, equals = yield from scanner.collect(['="', ">"])
        value, quote = yield from scanner.collect(['"'])
        if equals != '="' or quote is None:
            raise Malformed
        found[name.strip()] = value
        yield from scanner.skip_space()
    return found


_DSML = "｜DSML｜"
_DSML_TOKENS = frozenset({_DSML})
_MINIMAX = "minimax:tool_call"
INVOKE_CALLS = (
    InvokeCalls("MiniMax M2", ("MiniMax M2",), _MINIMAX, control=frozenset({f"<{_MINIMAX}>", f"</{_MINIMAX}>"})),
    InvokeCalls("DeepSeek 3.2", ("DeepSeek 3.2",), f"{_DSML}function_calls", _DSML, _DSML_TOKENS, tells_text=True),
    InvokeCalls(
        "DeepSeek 4", ("DeepSeek 4",), f"{_DSML}tool_calls", _DSML, _DSML_TOKENS, tells_text=True, when_empty="\n"
    ),
)
