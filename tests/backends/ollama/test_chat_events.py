"""From the bytes of the daemon's stream to events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from asking import asked, last_line, line, ndjson
from decoding import FORCED, TIMINGS, USAGE, call, decoded, decoder_for, events_of, failure
from hypothesis import example, given
from hypothesis import strategies as st

from server.backends.ollama.chat_events import (
    MAX_LINE_BYTES,
    merged_timings,
    merged_usage,
    timings_since_arrival,
)
from server.core.errors import BackendError, ContextLengthExceeded, InsufficientMemory
from server.core.events import (
    ChoiceFinished,
    Event,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    Timings,
    TokenLogprob,
    Usage,
)


def test_an_answer() -> None:
    assert events_of(line("The"), line(" capital"), last_line()) == [
        TextDelta(0, "The"),
        TextDelta(0, " capital"),
        ChoiceFinished(0, FinishReason.STOP),
        Finished(USAGE, TIMINGS),
    ]


def test_events_carry_the_index_of_their_choice() -> None:
    events = events_of(line("a", thinking="b", tool_calls=[call("weather")]), last_line(), index=3)

    assert [getattr(event, "index", 3) for event in events] == [3] * 5


@pytest.mark.parametrize(
    ("done_reason", "reason"),
    [("stop", FinishReason.STOP), ("length", FinishReason.LENGTH), ("load", FinishReason.STOP)],
)
def test_why_an_answer_ends(done_reason: str, reason: FinishReason) -> None:
    assert ChoiceFinished(0, reason) in events_of(line("a"), last_line(done_reason))


def test_zeros_are_left_out_by_the_daemon() -> None:
    assert events_of(line(done=True)) == [
        ChoiceFinished(0, FinishReason.STOP),
        Finished(Usage(0, 0), Timings()),
    ]


def test_a_daemon_that_counts_backwards() -> None:
    durations = {"load_duration": -1, "prompt_eval_duration": -(10**18), "eval_duration": -5}

    assert events_of({**last_line(), **durations})[-1] == Finished(USAGE, Timings())


@pytest.mark.parametrize(
    ("first_token", "queued"),
    [(4.0, 1.5), (2.5, 0.0), (2.0, 0.0)],  # clocks differ: what remains may be less than nothing
)
def test_what_the_daemon_does_not_count_is_queueing(first_token: float, queued: float) -> None:
    assert timings_since_arrival(TIMINGS, first_token) == Timings(
        queued=queued, load=2.0, prompt=0.5, first_token=first_token, decode=1.5
    )


def test_choices_are_timed_from_the_first_token_of_all_to_the_last() -> None:
    early = Timings(queued=0.25, load=0.5, prompt=0.25, first_token=1.0, decode=2.0)
    late = Timings(queued=4.0, load=0.0, prompt=0.5, first_token=4.5, decode=1.5)

    for timings in ([early, late], [late, early]):
        assert merged_timings(timings) == replace(early, decode=5.0)
    assert merged_timings([early]) == early


def test_text_in_the_last_line_counts() -> None:
    assert events_of({**last_line(), "message": {"role": "assistant", "content": "!"}})[0] == TextDelta(0, "!")


def test_thinking_is_reasoning() -> None:
    events = events_of(line(thinking="Hm"), line(thinking=", well"), line("Yes"), last_line())

    assert events[:3] == [ReasoningDelta(0, "Hm"), ReasoningDelta(0, ", well"), TextDelta(0, "Yes")]


@pytest.mark.parametrize("name", ["thinking", "tool_calls"])
def test_null_is_nothing(name: str) -> None:
    answer: dict[str, Any] = line("a")
    answer["message"][name] = None

    assert events_of(answer, last_line())[0] == TextDelta(0, "a")


# --- framing ---

WHOLE = (
    line("Zü"),
    line("ri\n\u2028 \U0001f3d4"),
    line(thinking="ünd"),
    line("", tool_calls=[call("weather", "call_1", city="Zürich\n")]),
    last_line(),
)
ENDINGS = {
    "done": b"",
    "error": ndjson({"error": "an error was encountered while running the model: unexpected EOF"}),
    "half": b'{"message":{"content":"',
    "html": b"<html>\n<body>502</body>\n",
}


@st.composite
def cuts(draw: st.DrawFn, length: int) -> list[int]:
    places = draw(st.lists(st.integers(0, length), max_size=12))
    return sorted({0, length, *places})


@pytest.mark.parametrize("ending", ENDINGS)
@given(data=st.data(), num_lines=st.integers(0, len(WHOLE)), newline=st.booleans())
def test_pieces_make_no_difference(data: st.DataObject, num_lines: int, newline: bool, ending: str) -> None:  # noqa: FBT001
    lines = [json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in WHOLE[:num_lines]]
    whole = b"".join(lines) + ENDINGS[ending]
    whole = whole if newline else whole.removesuffix(b"\n")
    places = data.draw(cuts(len(whole)))
    pieces = [whole[start:end] for start, end in pairwise(places)]

    assert comparable(decoded(pieces)) == comparable(decoded([whole]))


def comparable(events: Sequence[Event]) -> list[object]:
    return [str(event.error) if isinstance(event, Failed) else event for event in events]


def test_byte_by_byte() -> None:
    whole = ndjson(*WHOLE)

    assert decoded(bytes([byte]) for byte in whole) == decoded([whole])


def test_lines_in_one_piece_are_events_of_one_piece() -> None:
    decoder = decoder_for()

    assert len(decoder.feed(ndjson(*[line("a")] * 1000) + b'{"mess')) == 1000


def test_empty_lines_are_nothing() -> None:
    assert decoded([b"\n\n", ndjson(line("a")), b"\n", ndjson(last_line())])[0] == TextDelta(0, "a")


def test_the_last_line_needs_no_newline() -> None:
    assert isinstance(decoded([ndjson(line("a")), json.dumps(last_line()).encode()])[-1], Finished)


def test_nothing_counts_after_the_end() -> None:
    assert events_of(line("a"), last_line(), line("b"), {"error": "late"}) == events_of(line("a"), last_line())


# --- failures ---


@pytest.mark.parametrize("lines", [(), (line("a"),), (line("a"), line("b", thinking="c"))])
def test_an_answer_without_its_last_line(lines: tuple[object, ...]) -> None:
    events = events_of(*lines)

    assert "before it was complete" in failure(events).message
    assert "try again" in failure(events).message


def test_half_a_line_at_the_end() -> None:
    events = decoded([ndjson(line("a")), ndjson(line("b"))[:-20]])

    assert events[0] == TextDelta(0, "a")
    assert "does not behave as Ollama does" in failure(events).message


@pytest.mark.parametrize(
    "garbage",
    [
        "<!DOCTYPE html>",
        "null",
        "5",
        '"error"',
        '"a string with error in it"',
        "[]",
        '["error"]',
        "{}",
        '{"done": true}',
        '{"message": null, "done": true}',
        '{"message": "text"}',
        '{"message": {"content": "a", "tool_calls": 5}}',
        '{"message": {"content": "a", "tool_calls": ["weather"]}}',
        '{"message": {"content": "a", "tool_calls": [{"function": {"arguments": {}}}]}}',
        '{"message": {"content": "", "tool_calls": [{"function": {"name": "time", "arguments": "{}"}}]}}',
        '{"message": {"content": "", "tool_calls": [{"function": {"name": "time", "arguments": [1]}}]}}',
        '{"message": {"content": "a"}, "done": true, "eval_count": "many"}',
        '{"message": {"content": "a"}, "done": true, "eval_count": {"a": 1}}',
        '{"message": {"content": "a"}, "done": true, "eval_count": 1e999}',
        '{"message": {"content": "a"}, "done": true, "eval_duration": [1]}',
        "\x00\xff",
        "{" * 5000,
        "[" * 200_000,
        '{"message": {"content": "\\ud800"}}',
    ],
)
def test_garbage(garbage: str) -> None:
    events = decoded([ndjson(line("before")), garbage.encode("latin-1") + b"\n", ndjson(last_line())])

    assert events[0] == TextDelta(0, "before")
    assert "does not behave as Ollama does" in failure(events).message
    assert len(failure(events).message) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "message": st.fixed_dictionaries(
                {}, optional={"content": JSON, "thinking": JSON, "tool_calls": st.lists(JSON, max_size=2) | JSON}
            ),
            "done": JSON,
            "error": JSON,
            "eval_count": JSON,
            "eval_duration": JSON,
            "logprobs": JSON,
        },
    ),
    st.booleans(),
)
@example({"message": {"content": ""}, "done": True, "eval_count": float("inf")}, False)  # noqa: FBT003
@example({"error": {"error": {"error": {"error": []}}}}, True)  # noqa: FBT003
def test_no_line_raises(entry: dict[str, Any], forced: bool) -> None:  # noqa: FBT001
    request = replace(FORCED if forced else asked(), top_logprobs=2)
    events = decoded([json.dumps(entry).encode() + b"\n"], request)

    assert isinstance(events[-1], Finished | Failed)


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    assert isinstance(decoded([data])[-1], Failed)


def test_a_line_without_end_is_given_up() -> None:
    decoder = decoder_for()
    piece = b"x" * (1024 * 1024)
    events: list[Event] = []
    for _ in range(MAX_LINE_BYTES // len(piece) + 1):
        events += decoder.feed(piece)

    assert str(MAX_LINE_BYTES) in failure(events).message
    assert decoder.feed(piece) == []


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ("an error was encountered while running the model: unexpected EOF", BackendError, "unexpected EOF"),
        ("CUDA error: out of memory", InsufficientMemory, "no memory"),
        (
            '{"error":{"code":400,"message":"request (819 tokens) exceeds the available context size (256 tokens)"}}',
            ContextLengthExceeded,
            "819 tokens",
        ),
        ({"message": "nested"}, BackendError, "nested"),
        (None, BackendError, "does not say why"),
        ("", BackendError, "does not say why"),
        (5, BackendError, "does not say why"),
    ],
)
def test_an_error_line_ends_the_answer(error: object, kind: type[Exception], words: str) -> None:
    events = events_of(line("before"), {"error": error}, line("after"), last_line())

    assert [type(event) for event in events] == [TextDelta, Failed]
    assert isinstance(events[1], Failed)
    assert type(events[1].error) is kind
    assert words in events[1].error.message


# --- log probabilities ---


def test_log_probabilities() -> None:
    entry = {
        "token": " é",
        "logprob": -0.5,
        "bytes": [32, 195, 169],
        "top_logprobs": [{"token": " é", "logprob": -0.5, "bytes": [32, 195, 169]}, {"token": "x", "logprob": -2}],
    }

    (delta, *_) = events_of(line(" é", logprobs=[entry]), last_line(), request=asked(top_logprobs=2))

    top = (TokenLogprob(" é", b" \xc3\xa9", -0.5), TokenLogprob("x", b"x", -2.0))
    assert delta == TextDelta(0, " é", (TokenLogprob(" é", b" \xc3\xa9", -0.5, top),))


def test_no_more_alternatives_than_asked_for() -> None:
    entry = {"token": "a", "logprob": -1, "top_logprobs": [{"token": "a", "logprob": -1}]}

    (delta, *_) = events_of(line("a", logprobs=[entry]), last_line(), request=asked(top_logprobs=0))

    assert delta == TextDelta(0, "a", (TokenLogprob("a", b"a", -1.0),))


def test_log_probabilities_without_text_are_kept() -> None:
    entries = [{"token": "<tool", "logprob": -1, "bytes": None, "top_logprobs": None}, {"token": ">", "logprob": 0}]

    (delta, *_) = events_of(line("", logprobs=entries), last_line(), request=asked(top_logprobs=0))

    assert delta == TextDelta(0, "", (TokenLogprob("<tool", b"<tool", -1.0), TokenLogprob(">", b">", 0.0)))


def test_log_probabilities_that_nobody_asked_for_are_dropped() -> None:
    assert events_of(line("a", logprobs=[{"token": "a", "logprob": -1}]), last_line())[0] == TextDelta(0, "a")


def test_merged_usage_counts_the_prompt_once() -> None:
    assert merged_usage([Usage(7, 2), Usage(7, 3), Usage(0, 4)]) == Usage(prompt_tokens=7, completion_tokens=9)
