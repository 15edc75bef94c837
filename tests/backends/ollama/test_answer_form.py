"""Forms that the text of an answer must have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asking import CITY, TIME, WEATHER, asked, last_line, line
from decoding import TIMINGS, USAGE, events_of, failure

from server.backends.ollama.answer_form import answer_form, check_strict_tools
from server.core.errors import InvalidOutput, InvalidRequest, UnsupportedParameter
from server.core.events import ChoiceFinished, Failed, Finished, FinishReason, TextDelta
from server.core.request import (
    ChatRequest,
    ChoiceFormat,
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    RegexFormat,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)

OBJECT = asked(response_format=JsonObjectFormat())
SCHEMA = asked(response_format=JsonSchemaFormat(CITY, strict=True))
CHOICE = asked(response_format=ChoiceFormat(("yes", 'no "way"', "Zürich")))
BAD: Tool = Tool("bad", None, {"type": "object", "properties": {"a": {"type": "odd"}}})


def said(text: str, request: ChatRequest, done_reason: str = "stop") -> list[Any]:
    """The events of a text that comes in three pieces."""
    third = len(text) // 3
    pieces = [line(piece) for piece in (text[:third], text[third : 2 * third], text[2 * third :])]
    return events_of(*pieces, last_line(done_reason), request=request)


def content_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_free_text_has_no_form() -> None:
    assert answer_form(asked()) is None
    assert answer_form(asked(tools=(WEATHER, TIME))) is None
    assert answer_form(asked(tools=(BAD,))) is None  # what its arguments are is up to the model


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (OBJECT, "{}"),
        (OBJECT, ' {"a": [1, {"b": null}]}\n'),
        (SCHEMA, '{"city": "Zürich", "more": 1}'),
        (asked(response_format=JsonSchemaFormat({})), "5"),
    ],
)
def test_json_is_streamed_as_it_comes(request_: ChatRequest, text: str) -> None:
    events = said(text, request_)

    assert content_of(events) == text
    assert events[-2:] == [ChoiceFinished(0, FinishReason.STOP), Finished(USAGE, TIMINGS)]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (OBJECT, ""),
        (OBJECT, "[1, 2]"),
        (OBJECT, "I would rather not."),
        (OBJECT, '{"a": 1} And more.'),
        (OBJECT, '```json\n{"a": 1}\n```'),
        (OBJECT, '{"a": '),
        (OBJECT, "[" * 100_000),
        (SCHEMA, "{}"),
        (SCHEMA, '{"city": 5}'),
        (SCHEMA, '{"city": "' + "x" * 100_000),
    ],
)
def test_what_is_not_as_demanded_ends_with_a_failure(request_: ChatRequest, text: str) -> None:
    events = said(text, request_)

    assert content_of(events) == text
    assert not any(isinstance(event, ChoiceFinished) for event in events)
    assert type(failure(events)) is InvalidOutput
    assert "response_format" in failure(events).message
    assert "stop" not in failure(events).message
    assert len(failure(events).message) < 2000
    cut = said(text, request_, "length")
    assert cut[-2:] == [ChoiceFinished(0, FinishReason.LENGTH), Finished(USAGE, TIMINGS)]


def test_a_stop_string_may_be_what_cut_it() -> None:
    stopped = asked(response_format=JsonObjectFormat(), stop=("}",))

    assert "stop strings" in failure(said('{"a": 1', stopped)).message


@pytest.mark.parametrize("choice", ["yes", 'no "way"', "Zürich"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_choice_loses_its_quotes(choice: str, ascii_only: bool) -> None:  # noqa: FBT001
    text = json.dumps(choice, ensure_ascii=ascii_only)

    assert said(text, CHOICE) == [
        TextDelta(0, choice),
        ChoiceFinished(0, FinishReason.STOP),
        Finished(USAGE, TIMINGS),
    ]
    for length in range(len(text)):
        *begun, finished, _ = said(text[:length], CHOICE, "length")
        assert choice.startswith(content_of(begun))
        assert len(content_of(begun)) >= min(length - 1, length - len(text) + len(choice))
        assert finished == ChoiceFinished(0, FinishReason.LENGTH)


@pytest.mark.parametrize("text", ["", "yes", '"maybe"', '["yes"]', '"yes', "null", '"\\ud83d"'])
def test_what_is_none_of_the_choices_fails(text: str) -> None:
    events = said(text, CHOICE)

    assert [type(event) for event in events] == [Failed]
    assert "guided_choice" in failure(events).message


@pytest.mark.parametrize("text", ['"\\ud83d', '"\\ud83d\\ude0', "\x00", '"yes" and'])
def test_half_a_choice_that_is_no_text(text: str) -> None:
    assert content_of(said(text, CHOICE, "length")) in {"", "yes"}


@pytest.mark.parametrize(
    ("request_", "kind", "param"),
    [
        (asked(response_format=GrammarFormat("root ::= [a-z]")), UnsupportedParameter, "grammar"),
        (asked(response_format=RegexFormat("[a-z]+")), UnsupportedParameter, "guided_regex"),
        (asked(response_format=ChoiceFormat(("a",)), top_logprobs=0), UnsupportedParameter, "logprobs"),
        (
            asked(response_format=JsonObjectFormat(), tools=(WEATHER,), top_logprobs=2),
            UnsupportedParameter,
            "logprobs",
        ),
        (
            asked(response_format=JsonSchemaFormat({"type": "odd"})),
            InvalidRequest,
            "response_format.json_schema.schema",
        ),
        (
            asked(response_format=JsonSchemaFormat(CITY), tools=(WEATHER, BAD)),
            InvalidRequest,
            "tools[1].function.parameters",
        ),
        (
            asked(tools=(WEATHER, BAD), tool_choice=ToolChoice(ToolChoiceMode.REQUIRED)),
            InvalidRequest,
            "tools[1].function.parameters",
        ),
        (
            asked(tools=(WEATHER, BAD), tool_choice=ToolChoice(ToolChoiceMode.REQUIRED, "bad")),
            InvalidRequest,
            "tools[1].function.parameters",
        ),
    ],
)
def test_what_cannot_be_demanded(request_: ChatRequest, kind: type[Exception], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        answer_form(request_)

    assert type(caught.value) is kind
    assert caught.value.param == param


def test_schemas_of_strict_tools_are_checked() -> None:
    strict = Tool("bad", None, BAD.parameters, strict=True)

    check_strict_tools(asked(tools=(WEATHER, BAD)))
    with pytest.raises(InvalidRequest) as caught:
        check_strict_tools(asked(tools=(WEATHER, strict)))

    assert caught.value.param == "tools[1].function.parameters"


def test_what_is_not_called_needs_no_schema() -> None:
    named = ToolChoice(ToolChoiceMode.REQUIRED, "weather")

    form = answer_form(asked(tools=(BAD, WEATHER), tool_choice=named))

    assert form is not None
    assert "bad" not in str(form.instruction)
    assert answer_form(asked(tools=(BAD,), tool_choice=ToolChoice(ToolChoiceMode.NONE))) is None
