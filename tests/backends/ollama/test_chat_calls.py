"""Function calls in the daemon's stream, and those that the model has to make."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from asking import TIME, WEATHER, asked, last_line, line
from decoding import FORCED, TIMINGS, USAGE, call, calls_of, events_of, failure

from server.core.errors import InvalidOutput, InvalidRequest
from server.core.events import (
    ChoiceFinished,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from server.core.request import (
    ChatRequest,
    ChoiceFormat,
    JsonSchemaFormat,
    ToolChoice,
    ToolChoiceMode,
)

# --- tool calls ---


def test_a_native_call_comes_with_the_last_line() -> None:
    made = call("weather", "WfG4LxBSbCh1KHIZHpeEYBNwpXzIQUkO", city="Zürich")
    final = last_line()
    final["message"]["tool_calls"] = [made]

    assert events_of(final, request=asked(tools=(WEATHER,))) == [
        ToolCallDelta(0, 0, "WfG4LxBSbCh1KHIZHpeEYBNwpXzIQUkO", "weather", '{"city":"Zürich"}'),
        ChoiceFinished(0, FinishReason.TOOL_CALLS),
        Finished(USAGE, TIMINGS),
    ]


def test_rendered_calls_come_in_lines_of_their_own() -> None:
    lines = [line("Wait."), line(tool_calls=[call("weather", "call_a")]), line(tool_calls=[call("time", "call_b")])]

    events = events_of(*lines, last_line(), request=asked(tools=(WEATHER, TIME)))

    assert events[0] == TextDelta(0, "Wait.")
    assert calls_of(events) == [
        ToolCallDelta(0, 0, "call_a", "weather", "{}"),
        ToolCallDelta(0, 1, "call_b", "time", "{}"),
    ]
    assert ChoiceFinished(0, FinishReason.TOOL_CALLS) in events


@pytest.mark.parametrize("arguments", [{}, None, {"a": {"b": [1, 2.5, None, True, "ü\n\"'"]}}])
def test_arguments_are_json_text(arguments: object) -> None:
    made = {"id": "x", "function": {"name": "weather", "arguments": arguments}}

    (delta,) = calls_of(events_of(line(tool_calls=[made]), last_line()))

    assert json.loads(delta.arguments) == (arguments or {})


@pytest.mark.parametrize("missing", [None, ""])
def test_calls_without_an_id_get_one_each(missing: str | None) -> None:
    nameless = [call("weather"), {**call("weather"), "id": missing}]
    first, second = calls_of(events_of(line(tool_calls=nameless), last_line()))

    assert first.id != second.id
    assert all(each.id is not None and each.id.startswith("call_") for each in (first, second))


def test_without_parallel_calls_the_first_counts() -> None:
    lines = [line(tool_calls=[call("weather", "a"), call("time", "b")]), line(tool_calls=[call("time", "c")])]

    assert [
        each.id
        for each in calls_of(
            events_of(*lines, last_line(), request=asked(tools=(WEATHER, TIME), parallel_tool_calls=False))
        )
    ] == ["a"]


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (asked(tools=(WEATHER,)), "time"),
        (asked(tools=(WEATHER,)), "x" * 100_000),
        (asked(), "weather"),
        (asked(tools=(WEATHER,), tool_choice=ToolChoice(ToolChoiceMode.NONE)), "weather"),
    ],
)
def test_a_call_of_what_was_not_offered_fails(request_: ChatRequest, name: str) -> None:
    events = events_of(line("Wait."), line(tool_calls=[call(name)]), last_line(), request=request_)

    assert [type(event) for event in events] == [TextDelta, Failed]
    assert type(failure(events)) is InvalidOutput
    assert len(failure(events).message) < 1000


@pytest.mark.parametrize("arguments", [{}, {"city": 5}])
def test_only_strict_tools_hold_the_model_to_their_schema(arguments: dict[str, Any]) -> None:
    lines = [line(tool_calls=[call("weather", **arguments)]), last_line()]

    (made,) = calls_of(events_of(*lines, request=asked(tools=(WEATHER, TIME))))
    assert json.loads(made.arguments) == arguments
    events = events_of(*lines, request=asked(tools=(TIME, replace(WEATHER, strict=True))))
    assert [type(event) for event in events] == [Failed]
    assert type(failure(events)) is InvalidOutput
    assert "'weather'" in failure(events).message


def test_a_strict_call_that_is_right() -> None:
    lines = [line(tool_calls=[call("weather", city="Ulm")]), last_line()]

    events = events_of(*lines, request=asked(tools=(replace(WEATHER, strict=True),)))

    assert [each.arguments for each in calls_of(events)] == ['{"city":"Ulm"}']
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize(
    ("max_tokens", "kind", "param"), [(12, InvalidRequest, "max_tokens"), (None, InvalidOutput, None)]
)
def test_a_call_that_is_cut(max_tokens: int | None, kind: type[Exception], param: str | None) -> None:
    error = 'llama-server returned invalid tool call arguments for "weather": unexpected end of JSON input'

    events = events_of(line("Wait."), {"error": error}, request=asked(tools=(WEATHER,), max_tokens=max_tokens))

    assert isinstance(events[-1], Failed)
    assert type(events[-1].error) is kind
    assert events[-1].error.param == param


# --- forced calls ---


def test_a_forced_call_is_read_from_the_text() -> None:
    lines = [line(thinking="Hm"), line('{"name":"wea'), line('ther","arguments":{"city":"Zürich"}}')]

    events = events_of(*lines, last_line(), request=FORCED, index=1)

    (made,) = calls_of(events)
    assert (made.index, made.call, made.name, made.arguments) == (1, 0, "weather", '{"city":"Zürich"}')
    assert made.id is not None
    assert made.id.startswith("call_")
    assert events == [
        ReasoningDelta(1, "Hm"),
        made,
        ChoiceFinished(1, FinishReason.TOOL_CALLS),
        Finished(replace(USAGE, reasoning_tokens=1), TIMINGS),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I would rather not.",
        '{"name":"weather","arguments":{"city":',
        '{"name":"weather","arguments":"{}"}',
        '{"name":"weather"}',
        '{"name":"other","arguments":{}}',
        '{"name":["weather"],"arguments":{}}',
        '{"name":"weather","arguments":{"city":5}}',
        '{"name":"weather","arguments":{}}',
        '{"answer":"rain"}',
        '["weather"]',
        "null",
        "[" * 100_000,
        "x" * 100_000,
    ],
)
def test_a_forced_call_that_is_none_fails(text: str) -> None:
    events = events_of(line(text), last_line(), request=FORCED)

    assert [type(event) for event in events] == [Failed]
    assert type(failure(events)) is InvalidOutput
    assert len(failure(events).message) < 1000


def test_a_forced_call_that_is_cut_off_ends_by_its_length() -> None:
    events = events_of(line('{"name":"weather","arguments":{"city":'), last_line("length"), request=FORCED)

    assert [type(event) for event in events] == [ChoiceFinished, Finished]
    assert isinstance(events[0], ChoiceFinished)
    assert events[0].reason is FinishReason.LENGTH


def test_a_forced_call_is_one_of_the_named_function() -> None:
    named = replace(FORCED, tool_choice=ToolChoice(ToolChoiceMode.REQUIRED, "time"))

    assert isinstance(events_of(line('{"name":"time","arguments":{}}'), last_line(), request=named)[-1], Finished)
    failure(events_of(line('{"name":"weather","arguments":{}}'), last_line(), request=named))


# --- a call, or an answer in the form that is demanded ---

CHOSEN = asked(tools=(WEATHER, TIME), response_format=JsonSchemaFormat({"type": "array", "items": {"type": "integer"}}))


def test_a_call_in_place_of_an_answer() -> None:
    text = '{"name":"weather","arguments":{"city":"Ulm"}}'

    (made, finished, _) = events_of(line(text[:9]), line(text[9:]), last_line(), request=CHOSEN)

    assert isinstance(made, ToolCallDelta)
    assert (made.name, made.arguments) == ("weather", '{"city":"Ulm"}')
    assert finished == ChoiceFinished(0, FinishReason.TOOL_CALLS)


@pytest.mark.parametrize(
    ("request_", "text", "content"),
    [
        (CHOSEN, '{"answer": [1, 2]}', "[1,2]"),
        (replace(CHOSEN, response_format=ChoiceFormat(("Zürich", "Ulm"))), '{"answer": "Zürich"}', "Zürich"),
        (replace(CHOSEN, stop=("2",)), '{"answer": [1, 2]}', "[1,"),
    ],
)
def test_an_answer_in_place_of_a_call(request_: ChatRequest, text: str, content: str) -> None:
    assert events_of(line(text), last_line(), request=request_) == [
        TextDelta(0, content),
        ChoiceFinished(0, FinishReason.STOP),
        Finished(USAGE, TIMINGS),
    ]


@pytest.mark.parametrize("text", ["", "[1]", '{"answer": ["a"]}', '{"answer": [1e999]}', '{"name": "time"}'])
def test_neither_a_call_nor_an_answer(text: str) -> None:
    events = events_of(line(text), last_line(), request=CHOSEN)

    assert [type(event) for event in events] == [Failed]
    assert type(failure(events)) is InvalidOutput
    assert [type(event) for event in events_of(line(text), last_line("length"), request=CHOSEN)] == [
        ChoiceFinished,
        Finished,
    ]
