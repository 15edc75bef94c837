"""How one model answers: from what a request wants of the answer to parsers, grammars and limits for the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from server.chat.answer_format import (
    AnswerFormat,
    AnswerParser,
    AnswerPlan,
    LarkFormat,
    Part,
    Reasoning,
    ReasoningStart,
)
from server.core.request import (
    ChatRequest,
    GrammarFormat,
    JsonSchemaFormat,
    ReasoningOutput,
    RegexFormat,
    Tool,
    ToolChoiceMode,
)
from server.engine.answer import ThinkingLimit
from server.engine.constraint import Constraint
from server.engine.runner import Tokens
from server.grammar.compiler import GrammarCompiler
from server.grammar.gbnf import check_regex, lark_of_gbnf
from server.grammar.schema import check_parameters, check_schema, enforceable_parameters

_TAIL_SEGMENTS = 8


@dataclass(frozen=True, slots=True)
class Answering:
    """What a request wants of an answer, as the engine takes it.

    Attributes:
        new_parser: makes the parser of a choice; ``None`` where the whole answer is content.
        new_constraint: makes the constraint of a choice; ``None`` where the answer may be anything.
        markers: texts of control tokens that the parser sees.
        thinking: how long the model may think; ``None`` for no limit.

    """

    new_parser: Callable[[], AnswerParser] | None = None
    new_constraint: Callable[[], Constraint] | None = None
    markers: Mapping[int, bytes] = field(default_factory=dict)
    thinking: ThinkingLimit | None = None


class AnswerShaper:
    """Knows a loaded model's format and compiles grammars for its vocabulary. Any thread may ask."""

    def __init__(
        self,
        answer_format: AnswerFormat,
        compiler: GrammarCompiler,
        control_ids: Mapping[str, int],
        tokenize: Callable[[str], Tokens],
        reasoning: ReasoningOutput,
    ) -> None:
        """Take what is known of a model.

        Args:
            answer_format: how its family answers.
            compiler: for its vocabulary.
            control_ids: its control tokens by their texts.
            tokenize: text to tokens, control tokens included.
            reasoning: what becomes of thinking.

        """
        self.format = answer_format
        self._compiler = compiler
        self._control_ids = control_ids
        self._markers = {
            control_ids[marker]: marker.encode() for marker in answer_format.markers if marker in control_ids
        }
        self._tokenize = tokenize
        self._reasoning = reasoning

    def shape(self, request: ChatRequest, prompt: Sequence[str]) -> Answering:
        """Prepare the answer to a request; blocking, for a worker thread: a grammar's first use takes a while.

        Args:
            request: what is asked for.
            prompt: the rendered prompt, in segments.

        Raises:
            InvalidRequest: it demands something that cannot be enforced; the message says what.

        """
        plan = self._plan(request, "".join(prompt[-_TAIL_SEGMENTS:]))
        is_thinking = plan.reasoning is not ReasoningStart.NEVER
        if plan.is_free and not is_thinking and self.format.speaks_plainly:
            return Answering()
        grammar = self.format.grammar(plan, self._control_ids.get)
        new_constraint = None if grammar is None else self._compiler.compile(grammar).start
        hides = self._reasoning is ReasoningOutput.HIDE
        return Answering(
            (lambda: _HidingParser(self.format.parser(plan))) if hides else (lambda: self.format.parser(plan)),
            new_constraint,
            self._markers,
            self._thinking_limit(request, plan) if is_thinking else None,
        )

    def _plan(self, request: ChatRequest, prompt_end: str) -> AnswerPlan:
        named = request.tool_choice.name
        tools = () if request.tool_choice.mode is ToolChoiceMode.NONE else tuple(self._tools(request))
        wanted: AnswerPlan = AnswerPlan(
            tools,
            must_call=bool(tools) and request.tool_choice.mode is ToolChoiceMode.REQUIRED,
            is_parallel=request.parallel_tool_calls and named is None,
            reasoning=self.format.reasoning_start(prompt_end),
            is_reasoning_raw=self._reasoning is ReasoningOutput.RAW,
        )
        match request.response_format:
            case GrammarFormat(text):
                return replace(wanted, response_format=LarkFormat(lark_of_gbnf(text)))
            case RegexFormat(pattern):
                check_regex(pattern, param="guided_regex")
            case JsonSchemaFormat(schema, strict) as wants:
                checked = check_schema(schema, strict=strict, param="response_format.json_schema.schema")
                return replace(wanted, response_format=replace(wants, schema=checked))
        return replace(wanted, response_format=request.response_format)

    def _tools(self, request: ChatRequest) -> Iterator[Tool]:
        """Yield the functions that may be called, with schemas that can be enforced."""
        is_forced = request.tool_choice.mode is ToolChoiceMode.REQUIRED
        for index, tool in enumerate(request.tools):
            if request.tool_choice.name in {None, tool.name}:
                param = f"tools[{index}].function.parameters"
                if tool.strict or is_forced:
                    checked = check_parameters(tool.parameters, strict=tool.strict, param=param)
                else:  # nobody demanded more than that the arguments are JSON
                    checked = enforceable_parameters(tool.parameters, param=param)
                yield replace(tool, parameters=checked)

    def _thinking_limit(self, request: ChatRequest, plan: AnswerPlan) -> ThinkingLimit | None:
        closing = self.format.thinking_closing(plan)
        if request.thinking_budget is None or closing is None:
            return None
        return ThinkingLimit(request.thinking_budget, self._tokenize(closing))


class _HidingParser:
    """Leaves out what the model thinks."""

    def __init__(self, parser: AnswerParser) -> None:
        self._parser = parser

    @property
    def is_reasoning(self) -> bool:
        return self._parser.is_reasoning

    @property
    def num_calls(self) -> int:
        return self._parser.num_calls

    def push(self, text: str) -> Sequence[Part]:
        return [part for part in self._parser.push(text) if not isinstance(part, Reasoning)]

    def finish(self) -> Sequence[Part]:
        return [part for part in self._parser.finish() if not isinstance(part, Reasoning)]
