"""GLM 4.5 to 4.7, Ling 3, Laguna, Spark, Hunyuan 3: a tag for each parameter's name and one for its value.

https://huggingface.co/zai-org/GLM-4.6 (chat template)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.chat.answer_format import AnswerPlan
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, sequence
from server.chat.scanner import Malformed, Reading, Scanner
from server.chat.typed_arguments import TypedArguments, parameters_expression
from server.core.request import Tool


@dataclass(frozen=True, slots=True)
class ArgumentKeyCalls:
    """``<tool_call>get_weather``, then ``<arg_key>city</arg_key><arg_value>Paris</arg_value>``, then ``</tool_call>``.

    Families differ in the line breaks between those, which do not matter when calls are read.

    Attributes:
        name: what the documentation calls it.
        families: the families that write so.
        after_name: what stands between the function's name and its parameters.
        after_key: what stands between a parameter's name and its value.
        after_value: what stands behind each value.
        before_end: what stands before the closing tag.
        suffix: what every tag ends with in the vocabulary of a family.
        is_grouped: whether all calls of an answer stand between tags of their own.

    """

    name: str
    families: tuple[str, ...]
    after_name: str = ""
    after_key: str = ""
    after_value: str = ""
    before_end: str = ""
    suffix: str = ""
    is_grouped: bool = False

    @property
    def example(self) -> str:
        """One call."""
        call = (
            f"{self._call}get_weather{self.after_name}"
            f"{self._key('city')}Paris{self._end_of_value}{self.after_value}{self.before_end}{self._end}"
        )
        return f"{self.trigger}\n{call}\n{self._end_of_group}" if self.is_grouped else call

    @property
    def trigger(self) -> str:
        """What begins a call, or all of them."""
        return self._tag("tool_calls") if self.is_grouped else self._call

    @property
    def markers(self) -> frozenset[str]:
        """Texts that are control tokens in some vocabularies."""
        names = ["tool_call", "arg_key", "arg_value", *(["tool_calls"] if self.is_grouped else [])]
        tags = {self._tag(slash + each) for each in names for slash in ("", "/")}
        return frozenset(tags | ({self._tag("tool_sep")} if self.is_grouped else set()))

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read one call, or a group."""
        if not self.is_grouped:
            yield from self._read_call(scanner, writer, plan)
            return
        yield from scanner.skip_space()
        while (yield from scanner.take(self._call)):
            yield from self._read_call(scanner, writer, plan)
            yield from scanner.skip_space()
        yield from scanner.take(self._end_of_group)

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for one call, or for a group."""
        call = grammar.rule(" | ".join(self._call_expression(grammar, tool) for tool in plan.tools))
        if not self.is_grouped:
            return call
        more = sequence([grammar.literal("\n" + self._call), call])
        group = f"{more} ({more})*" if plan.is_parallel else more
        return sequence([group, grammar.literal("\n" + self._end_of_group)])

    def _read_call(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        separator = self._tag("tool_sep")
        name, marker = yield from scanner.collect([self._tag("arg_key"), self._end, separator])
        if marker is None or not _NAME.fullmatch(name.strip()):
            raise Malformed
        writer.begin_call(name.strip())
        arguments = TypedArguments(writer, plan.tools, name.strip())
        while marker != self._end:
            if marker != separator:
                key, found = yield from scanner.collect([self._tag("/arg_key")])
                yield from scanner.skip_space()
                yield from scanner.expect(self._tag("arg_value"))
                value = yield from arguments.read(scanner, key.strip(), [self._end_of_value])
                if found is None or value is None:
                    return
            yield from scanner.skip_space()
            if (yield from scanner.take(self._end)):
                break
            yield from scanner.expect(self._tag("arg_key"))
            marker = self._tag("arg_key")
        arguments.end()
        writer.end_call()

    def _call_expression(self, grammar: LarkGrammar, tool: Tool) -> str:
        return sequence(
            [
                grammar.literal(tool.name + self._after_name),
                parameters_expression(
                    grammar,
                    tool,
                    opening=lambda name, _: self._key(name),
                    closing=self._end_of_value,
                    between=self.after_value,
                ),
                grammar.literal(self.before_end + self._end),
            ]
        )

    @property
    def _after_name(self) -> str:
        return (self._tag("tool_sep") if self.is_grouped else "") + self.after_name

    @property
    def _call(self) -> str:
        return self._tag("tool_call")

    @property
    def _end(self) -> str:
        return self._tag("/tool_call")

    @property
    def _end_of_group(self) -> str:
        return self._tag("/tool_calls")

    @property
    def _end_of_value(self) -> str:
        return self._tag("/arg_value")

    def _key(self, name: str) -> str:
        return f"{self._tag('arg_key')}{name}{self._tag('/arg_key')}{self.after_key}{self._tag('arg_value')}"

    def _tag(self, name: str) -> str:
        return f"<{name}{self.suffix}>"


_NAME = re.compile(r"[^\s<>{}\"']+")
_LINES = ArgumentKeyCalls("GLM", ("GLM 4.5", "GLM 4.6", "Laguna XS"), after_name="\n", after_key="\n", after_value="\n")
_DENSE = ArgumentKeyCalls("GLM, without line breaks", ("GLM 4.7", "Laguna S", "Spark 2.5"))
_LING = ArgumentKeyCalls("Ling", ("Ling 3.0",), after_name="\n", after_key="\n", before_end="\n")
ARGUMENT_KEY_CALLS = (_LINES, _DENSE, _LING)
HUNYUAN_SUFFIX = ":opensource"
HUNYUAN_CALLS = ArgumentKeyCalls(
    "Hunyuan",
    ("Hunyuan 3",),
    after_name="\n",
    after_key="\n",
    after_value="\n",
    suffix=HUNYUAN_SUFFIX,
    is_grouped=True,
)


def recognize(template: str) -> ArgumentKeyCalls | None:
    """Tell from a template's text whether its models write so, and with which line breaks."""
    if "tool_sep" in template and "arg_key{}" in template and HUNYUAN_SUFFIX in template:
        return HUNYUAN_CALLS
    if "<arg_key>" not in template:
        return None
    if "<role>ASSISTANT</role>" in template:
        return _LING
    return _LINES if re.search(r"</arg_key>(\\n|\n)", template) else _DENSE
