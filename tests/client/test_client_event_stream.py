from __future__ import annotations

import pytest

from server.client.event_stream import Comment, Data, EventStreamReader
from server.client.fields import Unreadable

STREAM = (
    ': loading 42%\n\ndata: {"text": "é"}\n\n: keep-alive\r\n\r\nevent: more\ndata: one\ndata:two\nid: 7\n\n'
    "data\n\nretry: 5\n\ndata: [DONE]\r\n\r\ndata: without an end"
).encode()
EVENTS = [
    Comment("loading 42%"),
    Data('{"text": "é"}'),
    Comment("keep-alive"),
    Data("one\ntwo"),
    Data(""),
    Data("[DONE]"),
]


def read(*pieces: bytes) -> list[Data | Comment]:
    reader = EventStreamReader()
    return [event for piece in pieces for event in reader.feed(piece)]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, len(STREAM)])
def test_cuts_make_no_difference(length: int) -> None:
    assert read(*(STREAM[start : start + length] for start in range(0, len(STREAM), length))) == EVENTS


def test_every_single_cut() -> None:
    assert all(read(STREAM[:cut], STREAM[cut:]) == EVENTS for cut in range(len(STREAM)))


def test_old_line_ends() -> None:
    assert read(b"data: a\r\rdata: b\r", b"\r", b"data: c\n\n") == [Data("a"), Data("b"), Data("c")]


def test_a_line_without_an_end() -> None:
    with pytest.raises(Unreadable, match="does not end a line"):
        read(*[b"x" * 2**20] * 100)


def test_what_is_no_text() -> None:
    with pytest.raises(Unreadable, match="UTF-8"):
        read(b"data: \xff\n")
