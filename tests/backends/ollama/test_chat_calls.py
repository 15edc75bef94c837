"""Function calls in the daemon's stream, and those that the model has to make."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from asking import TIME, WEATHER, asked, last_line, line
from decoding import FORCED, TIMINGS, USAGE, call, calls_of, events_of, failure

from server.core.events import (
    ChoiceFinished,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from server.core.request import ToolChoice, ToolChoiceMode

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

    assert [each.id for each in calls_of(events_of(*lines, last_line(), request=asked(parallel_tool_calls=False)))] == [
        "a"
    ]


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
        Finished(USAGE, TIMINGS),
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
        '["weather"]',
        "null",
        "[" * 100_000,
        "x" * 100_000,
    ],
)
def test_a_forced_call_that_is_none_fails(text: str) -> None:
    events = events_of(line(text), last_line(), request=FORCED)

    assert [type(event) for event in events] == [Failed]
    assert "tool_choice" in failure(events).message
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
