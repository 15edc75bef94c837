"""What the text of an answer has to be, how the daemon is asked for it, and the check that it is. Pure.

The daemon promises less than a schema says. Its converter leaves out keywords in silence, and the models that think are
not constrained before they have thought: one that answers at once, or ends its turn while it thinks, is not constrained
at all. Daemons before ``forceImmediate`` in ``server/routes.go`` drop ``format`` for some families where ``think`` is
false (https://github.com/ollama/ollama/issues/14645, https://github.com/ollama/ollama/issues/15260); gpt-oss writes
nothing then. No value of ``think`` is right for all, so it stays what the client says, and what comes is validated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from server.backends.ollama.forced_call import (
    WrittenAnswer,
    WrittenCall,
    compact_json,
    forced_call_format,
    forced_call_instruction,
    parse_forced_call,
)
from server.core.errors import InvalidOutput, UnsupportedParameter
from server.core.request import (
    ChatRequest,
    ChoiceFormat,
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
    Tool,
    ToolChoiceMode,
)
from server.grammar.schema import check_parameters, check_schema
from server.grammar.validation import check_validatable, validate

_MAX_SHOWN = 200
_LONGEST_ESCAPE = len(r"\ud83d\ude00")
_JSON_OBJECT = {"type": "object"}

Outcome = WrittenCall | str | None
"""What a whole text becomes: a call, content, or nothing that has not been streamed."""


class AnswerForm(Protocol):
    """A form that the text of an answer must have."""

    @property
    def format(self) -> object:
        """The ``format`` that the daemon is asked for."""
        ...

    @property
    def instruction(self) -> str | None:
        """What the model has to be told."""
        ...

    @property
    def is_streamed(self) -> bool:
        """Whether the text is content as it comes; what it becomes is known at its end otherwise."""
        ...

    def outcome(self, text: str) -> Outcome:
        """Return what a whole text becomes.

        Raises:
            InvalidOutput: it does not have the form.

        """
        ...

    def beginning(self, text: str) -> str:
        """Return the content that the beginning of a text is; empty where it is known at the end only."""
        ...


def answer_form(request: ChatRequest) -> AnswerForm | None:
    """Return the form that a request demands; ``None`` for free text. Checks schemas, which may take its time.

    Raises:
        InvalidRequest: a schema is none, or cannot be enforced.
        UnsupportedParameter: the daemon cannot be asked for such a form.

    """
    wanted = request.response_format
    if request.tools and request.tool_choice.mode is ToolChoiceMode.REQUIRED:
        return JsonCall(_checked_tools(request))
    if wanted is None:
        return None
    answer = _text_form(request, wanted)
    is_free = bool(request.tools) and request.tool_choice.mode is ToolChoiceMode.AUTO
    form = JsonCall(_checked_tools(request), answer) if is_free else answer
    if not form.is_streamed and request.top_logprobs is not None:
        raise UnsupportedParameter(
            "Unsupported parameter: 'logprobs' is not available on the backend ollama for answers that the model "
            "writes as part of JSON: with guided_choice, and with tools and response_format; leave one of them out.",
            param="logprobs",
        )
    return form


def check_strict_tools(request: ChatRequest) -> None:
    """Refuse schemas that arguments could not be held to where the model calls as it likes.

    Raises:
        InvalidRequest: a schema is none, or cannot be enforced.

    """
    for index, tool in enumerate(request.tools):
        if tool.strict:
            _check_tool(tool, index)


def _checked_tools(request: ChatRequest) -> tuple[Tool, ...]:
    """Return the tools that have to be called, or one of which."""
    named = request.tool_choice.name
    tools = [(index, tool) for index, tool in enumerate(request.tools) if named is None or tool.name == named]
    for index, tool in tools:
        _check_tool(tool, index)
    return tuple(tool for _, tool in tools)


def _check_tool(tool: Tool, index: int) -> None:
    param = f"tools[{index}].function.parameters"
    check_parameters(tool.parameters, strict=tool.strict, param=param)
    check_validatable(tool.parameters, param=param)


def _text_form(request: ChatRequest, wanted: ResponseFormat) -> JsonText | QuotedChoice:
    match wanted:
        case JsonObjectFormat():
            return JsonText(_JSON_OBJECT, "json", may_be_cut=bool(request.stop))
        case JsonSchemaFormat():
            param = "response_format.json_schema.schema"
            check_schema(wanted.schema, strict=wanted.strict, param=param)
            check_validatable(wanted.schema, param=param)
            return JsonText(wanted.schema, dict(wanted.schema) or "json", may_be_cut=bool(request.stop))
        case ChoiceFormat():
            return QuotedChoice(wanted.choices)
        case GrammarFormat():
            raise _refused("grammar")
        case RegexFormat():
            raise _refused("guided_regex")


def _refused(name: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"Unsupported parameter: '{name}' is not available on the backend ollama; describe the answer with a JSON "
        "schema in response_format, or use a model of the other backend.",
        param=name,
    )


@dataclass(frozen=True, slots=True)
class JsonText:
    """JSON that a schema describes; it is streamed, and validated at its end."""

    schema: Mapping[str, object]
    format: object
    may_be_cut: bool = False
    instruction: str | None = field(default=None, init=False)
    is_streamed: bool = field(default=True, init=False)

    def outcome(self, text: str) -> None:
        """Validate the whole text."""
        if (reason := validate(text, self.schema)) is not None:
            hint = " One of the stop strings may have cut it." if self.may_be_cut else ""
            raise InvalidOutput(
                f"The model's answer is not the JSON that response_format demands: {_shortened(reason)}.{hint} Try "
                f"again. The answer ends with {_end_of(text)}."
            )

    def beginning(self, text: str) -> str:
        """Nothing: all of the beginning has been streamed."""
        del text
        return ""


@dataclass(frozen=True, slots=True)
class QuotedChoice:
    """One of several texts, which the model writes as a JSON string."""

    choices: Sequence[str]
    instruction: str | None = field(default=None, init=False)
    is_streamed: bool = field(default=False, init=False)

    @property
    def format(self) -> dict[str, object]:
        """The schema of the strings."""
        return {"type": "string", "enum": list(self.choices)}

    def outcome(self, text: str) -> str:
        """Return the choice without its quotes."""
        chosen = _parsed(text)
        if not isinstance(chosen, str) or chosen not in self.choices:
            raise InvalidOutput(
                f"The model did not answer with one of the texts of guided_choice, but wrote {_start_of(text)}; try "
                "again."
            )
        return chosen

    def beginning(self, text: str) -> str:
        """Return as much of the choice as there is."""
        text = text.lstrip()
        for length in range(len(text), max(0, len(text) - _LONGEST_ESCAPE), -1):  # it may end within an escape
            if isinstance(found := _parsed(text[:length] + '"'), str):
                return found
        return ""


@dataclass(frozen=True, slots=True)
class JsonCall:
    """A call of one of the tools, or what ``answer`` describes, which the model writes as JSON."""

    tools: Sequence[Tool]
    answer: JsonText | QuotedChoice | None = None
    is_streamed: bool = field(default=False, init=False)

    @property
    def format(self) -> dict[str, object]:
        """The schema of the calls and the answer."""
        return forced_call_format(self.tools, self._answer_schema)

    @property
    def instruction(self) -> str:
        """The functions in words."""
        return forced_call_instruction(self.tools, self._answer_schema)

    def outcome(self, text: str) -> WrittenCall | str:
        """Return the call, or the content that the answer is."""
        written = parse_forced_call(text, self.tools, may_answer=self.answer is not None)
        if written is None:
            wanted = "tool_choice asks for" if self.answer is None else "a tool or response_format describes"
            raise InvalidOutput(f"The model did not write what {wanted}, but {_start_of(text)}; try again.")
        if isinstance(written, WrittenAnswer):
            return self._content(written.value)
        check_arguments(next(tool for tool in self.tools if tool.name == written.name), written.arguments)
        return written

    def beginning(self, text: str) -> str:
        """Nothing: it may be a call."""
        del text
        return ""

    @property
    def _answer_schema(self) -> Mapping[str, object] | None:
        match self.answer:
            case JsonText():
                return self.answer.schema
            case QuotedChoice():
                return self.answer.format
            case None:
                return None

    def _content(self, value: object) -> str:
        try:
            text = compact_json(value)
        except ValueError as error:
            raise InvalidOutput(f"The model's answer holds what JSON cannot: {error}; try again.") from error
        if isinstance(self.answer, QuotedChoice):
            return self.answer.outcome(text)
        if self.answer is not None:
            self.answer.outcome(text)
        return text


def check_arguments(tool: Tool, arguments: str) -> None:
    """Hold the arguments of a call to the schema of its function.

    Raises:
        InvalidOutput: they are not what it describes.

    """
    if (reason := validate(arguments, tool.parameters)) is not None:
        raise InvalidOutput(
            f"The model called '{tool.name}' with arguments that its schema does not allow: {_shortened(reason)}; try "
            f"again. The arguments are {_start_of(arguments)}."
        )


def _parsed(text: str) -> object:
    try:
        return orjson.loads(text)
    except ValueError:
        return None


def _shortened(reason: str) -> str:
    reason = reason.rstrip(".")
    return reason if len(reason) <= 2 * _MAX_SHOWN else f"{reason[: 2 * _MAX_SHOWN]}…"


def _start_of(text: str) -> str:
    return repr(text[:_MAX_SHOWN]) if text.strip() else "nothing"


def _end_of(text: str) -> str:
    return repr(text[-_MAX_SHOWN:]) if text.strip() else "nothing at all"
