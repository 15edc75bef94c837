from __future__ import annotations

import json

import pytest
from compare.load import Answer, BadAnswer, aggregate_speed, gaps, median_gap, read_answer

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def answer(started: float, *arrivals: float) -> Answer:
    return Answer(started, arrivals, "x" * len(arrivals), len(arrivals), 10, 0)


def event(chunk: object) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def text(content: str | None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": content}}]})


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}}


def test_texts_arrive_when_their_last_byte_does() -> None:
    first, second = text("one"), text(" two")
    pieces = [
        (1.0, HEAD + chunked(text(None))),
        (2.0, chunked(first[:9])),
        (3.0, chunked(first[9:])),
        (4.0, chunked(second) + chunked(event({"choices": [], "usage": USAGE}) + b"data: [DONE]\n\n")),
        (5.0, b"0\r\n\r\n"),
    ]
    found = read_answer(0.5, pieces)
    assert found == Answer(0.5, (3.0, 4.0), "one two", 2, 7, 5)
    assert found.first_token_seconds == 2.5
    assert found.ended == 4.0


def test_without_usage_the_texts_are_counted() -> None:
    found = read_answer(0.0, [(1.0, HEAD + chunked(text("one")) + b"0\r\n\r\n")])
    assert (found.num_tokens, found.prompt_len, found.num_cached_tokens) == (1, 0, 0)


def test_comments_and_thoughts_are_understood() -> None:
    thought = event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]})
    found = read_answer(0.0, [(1.0, HEAD + chunked(b": loading\n\n" + thought) + b"0\r\n\r\n")])
    assert found.text == "hm"


@pytest.mark.parametrize(
    ("received", "message"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 7\r\n\r\nloading", "status 503: loading"),
        (HEAD + chunked(event({"error": {"message": "no slot"}})), "no slot"),
        (HEAD + chunked(b"data: {oops\n\n"), "not JSON"),
        (HEAD + chunked(text("")) + b"0\r\n\r\n", "no text"),
        (b"", "status 0"),
        (b"SSH-2.0\r\n\r\n", "not HTTP"),
    ],
)
def test_what_is_no_answer_is_said(received: bytes, message: str) -> None:
    with pytest.raises(BadAnswer, match=message):
        read_answer(0.0, [(1.0, received)])


def test_gaps_are_counted_within_answers_and_from_a_moment_on() -> None:
    answers = [answer(0.0, 1.0, 2.0, 5.0), answer(0.0, 1.5, 2.5)]
    assert gaps(answers) == [1.0, 3.0, 1.0]
    assert gaps(answers, since=2.2) == [3.0, 1.0]
    assert median_gap(answers) == 1.0
    assert median_gap([answer(0.0, 1.0)]) == 0.0


def test_the_speed_of_all_counts_from_the_first_request_to_the_last_text() -> None:
    assert aggregate_speed([answer(1.0, 2.0, 3.0), answer(1.5, 5.0)]) == 3 / 4
