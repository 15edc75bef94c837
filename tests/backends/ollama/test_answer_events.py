"""What becomes of the thinking of a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from asking import WEATHER, asked, last_line, line
from decoding import FORCED, TIMINGS, USAGE, call, calls_of, events_of, failure

from server.core.events import ChoiceFinished, Event, Finished, FinishReason, ReasoningDelta, TextDelta
from server.core.request import JsonObjectFormat, ReasoningOutput

THOUGHT = (line(thinking="Hm"), line(thinking=", well"))
FINISHED = Finished(replace(USAGE, reasoning_tokens=2), TIMINGS)


def after_thinking(reasoning: ReasoningOutput) -> list[Event]:
    """The events of thinking, and of its end before what the model says."""
    match reasoning:
        case ReasoningOutput.HIDE:
            return []
        case ReasoningOutput.SPLIT:
            return [ReasoningDelta(0, "Hm"), ReasoningDelta(0, ", well")]
        case ReasoningOutput.RAW:
            return [TextDelta(0, "<think>Hm"), TextDelta(0, ", well"), TextDelta(0, "</think>")]


@pytest.mark.parametrize("reasoning", ReasoningOutput)
def test_thinking_before_text(reasoning: ReasoningOutput) -> None:
    assert events_of(*THOUGHT, line("Yes"), line("."), last_line(), reasoning=reasoning) == [
        *after_thinking(reasoning),
        TextDelta(0, "Yes"),
        TextDelta(0, "."),
        ChoiceFinished(0, FinishReason.STOP),
        FINISHED,
    ]


@pytest.mark.parametrize("reasoning", ReasoningOutput)
def test_thinking_before_a_call(reasoning: ReasoningOutput) -> None:
    lines = [*THOUGHT, line(tool_calls=[call("weather", "a")]), last_line()]
    forced = [*THOUGHT, line('{"name":"weather","arguments":{"city":"Ulm"}}'), last_line()]

    for events in (
        events_of(*lines, request=asked(tools=(WEATHER,)), reasoning=reasoning),
        events_of(*forced, request=FORCED, reasoning=reasoning),
    ):
        (made,) = calls_of(events)
        assert events == [
            *after_thinking(reasoning),
            made,
            ChoiceFinished(0, FinishReason.TOOL_CALLS),
            FINISHED,
        ]


@pytest.mark.parametrize("reasoning", ReasoningOutput)
def test_thinking_that_does_not_end(reasoning: ReasoningOutput) -> None:
    *events, finished, _ = events_of(*THOUGHT, last_line("length"), reasoning=reasoning)

    assert finished == ChoiceFinished(0, FinishReason.LENGTH)
    assert events == [event for event in after_thinking(reasoning) if event != TextDelta(0, "</think>")]


@pytest.mark.parametrize("reasoning", ReasoningOutput)
def test_thinking_is_no_part_of_what_is_demanded(reasoning: ReasoningOutput) -> None:
    request = asked(response_format=JsonObjectFormat())

    events = events_of(*THOUGHT, line("{}"), last_line(), request=request, reasoning=reasoning)

    assert events[: -len(("text", "finished", "end"))] == after_thinking(reasoning)
    assert events[-1] == FINISHED
    assert (
        "while it was thinking"
        in failure(events_of(*THOUGHT, last_line(), request=request, reasoning=reasoning)).message
    )


def test_a_piece_of_both() -> None:
    events = events_of(line("Yes", thinking="Hm"), last_line(), reasoning=ReasoningOutput.RAW)

    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "<think>Hm</think>Yes"


def test_thinking_counts_where_the_daemon_does_not_count_it() -> None:
    lines = [line(thinking="a")] * 20 + [line("b")] * 3

    (*_, finished) = events_of(*lines, last_line())

    assert isinstance(finished, Finished)
    assert (finished.usage.completion_tokens, finished.usage.reasoning_tokens) == (23, 20)


@pytest.mark.parametrize("reasoning", ReasoningOutput)
def test_log_probabilities_are_those_of_what_is_said(reasoning: ReasoningOutput) -> None:
    scored: dict[str, Any] = {"logprobs": [{"token": "x", "logprob": -1}]}

    events = events_of(
        line(thinking="Hm", **scored),
        line("Yes", **scored),
        last_line(),
        request=asked(top_logprobs=0),
        reasoning=reasoning,
    )

    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert [len(delta.logprobs) for delta in deltas if delta.text == "Yes"] == [1]
    assert sum(len(delta.logprobs) for delta in deltas) == 1
