"""Answers that are taken apart while they come: with a toy format, because the engine knows none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import pytest
from automata import Automaton, Knowing, Walks
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import END, GREEDY, Harness, Heard, ScriptedRunner, ScriptedVocabulary
from toy_parser import ToyParser

from server.chat.answer_format import Part
from server.core.events import ChoiceFinished, FinishReason, ReasoningDelta, TextDelta
from server.engine.answer import ThinkingLimit
from server.engine.runner import Logits


class Script:
    """A model that says certain pieces, one token each, whatever it is asked; and then the last one for ever.

    ``controls`` are pieces that are control tokens: without text of their own, but with a marker's.
    """

    def __init__(
        self, pieces: Sequence[bytes], *, controls: Sequence[bytes] = (), others: Sequence[bytes] = ()
    ) -> None:
        known = [*dict.fromkeys([b"", *pieces, *others])]
        self.ids = {piece: token for token, piece in enumerate(known)}
        self.said = [self.ids[piece] for piece in pieces]
        self.markers: Mapping[int, bytes] = {self.ids[piece]: piece for piece in controls}
        self.vocabulary = ScriptedVocabulary([b"" if piece in controls else piece for piece in known])
        self.prompt = (END,)

    def tokens(self, *pieces: bytes) -> tuple[int, ...]:
        return tuple(self.ids[piece] for piece in pieces)

    def model(self, tokens: tuple[int, ...]) -> Logits:
        row = np.zeros(len(self.ids), dtype=np.float32)
        row[self.said[min(len(tokens) - len(self.prompt), len(self.said) - 1)]] = 20
        return row

    def bench(self, *, guesses: bool = False, can_draw: bool = False) -> Harness:
        runner = ScriptedRunner(self.model, vocabulary_size=len(self.ids), num_cells=400, can_draw=can_draw)
        runner.seconds = lambda _: 0.01
        drafter = Knowing([(*self.prompt, *self.said)], wrong_every=5)
        new_drafter = (lambda: drafter) if guesses else None
        return Harness(runner, vocabulary=self.vocabulary, new_drafter=new_drafter, device_sampling=can_draw)

    def answer(
        self, parser: ToyParser | None = None, *, guesses: bool = False, can_draw: bool = False, **parameters: object
    ) -> Heard:
        bench = self.bench(guesses=guesses, can_draw=can_draw)
        parameters = {"max_tokens": 100, "new_parser": lambda: parser or ToyParser(), **parameters}
        return bench.answer(self.prompt, markers=self.markers, **parameters)


def said(text: str, *, end: bool = True) -> Script:
    """Return a script of one token for each byte."""
    return Script([*(bytes([byte]) for byte in text.encode()), *([b""] if end else [])])


# Whatever an answer is made of and however it is cut: its parts come out as they went in.


@dataclass(frozen=True)
class Segment:
    kind: str
    text: str

    @property
    def pieces(self) -> list[str]:
        """Texts that may be cut, and between them markers, which are control tokens in some vocabularies."""
        return {
            "content": ["", "", self.text],
            "thought": ["<t>", self.text, "</t>"],
            "call": ["<c>", f"f:{self.text}", "</c>"],
        }[self.kind]


texts = st.text(st.sampled_from("abcdé🙂 {}"), min_size=1, max_size=8)
answers = st.lists(st.builds(Segment, st.sampled_from(["content", "content", "thought", "call"]), texts), max_size=6)


@settings(deadline=None, max_examples=150)
@given(
    segments=answers,
    data=st.data(),
    stop=st.sampled_from([(), ("bc",), ("ab", "d🙂", "é")]),
    has_controls=st.booleans(),
    guesses=st.booleans(),
    wants_logprobs=st.booleans(),
)
def test_parts_come_out_as_they_went_in(
    segments: list[Segment],
    data: st.DataObject,
    stop: tuple[str, ...],
    has_controls: bool,  # noqa: FBT001
    guesses: bool,  # noqa: FBT001
    wants_logprobs: bool,  # noqa: FBT001
) -> None:
    pieces = [piece.encode() for segment in segments for piece in segment.pieces if piece]
    controls = [piece for piece in (b"<t>", b"</t>", b"<c>", b"</c>") if has_controls]
    if not has_controls:
        pieces = [b"".join(pieces)] if pieces else []
    tokens = [part for piece in pieces for part in ([piece] if piece in controls else cut(piece, data))]
    heard = Script([*tokens, b""], controls=controls, others=controls).answer(
        guesses=guesses, stop=stop, top_logprobs=0 if wants_logprobs else None
    )

    whole, stopped = until_stop(segments, stop)
    assert heard.text() == "".join(segment.text for segment in whole if segment.kind == "content")
    assert heard.reasoning() == "".join(segment.text for segment in whole if segment.kind == "thought")
    assert heard.calls() == [("f", segment.text) for segment in whole if segment.kind == "call"]
    has_calls = any(segment.kind == "call" for segment in whole)
    assert heard.reason() is (FinishReason.TOOL_CALLS if has_calls and not stopped else FinishReason.STOP)
    if not stopped:
        assert heard.finished.usage.completion_tokens == len(tokens)
    if wants_logprobs:
        assert [entry.token_bytes for entry in heard.logprobs()] == begun_in_content(tokens, whole)


def cut(piece: bytes, data: st.DataObject) -> list[bytes]:
    places = sorted(data.draw(st.sets(st.integers(1, len(piece) - 1)))) if len(piece) > 1 else []
    return [piece[begin:end] for begin, end in pairwise([0, *places, len(piece)])]


def until_stop(segments: Sequence[Segment], stop: Sequence[str]) -> tuple[list[Segment], bool]:
    """Cut an answer before the stop string that is complete first; content that touches is one text."""
    whole: list[Segment] = []
    for segment in segments:
        if whole and whole[-1].kind == segment.kind == "content":
            whole[-1] = Segment("content", whole[-1].text + segment.text)
        else:
            whole.append(segment)
    for place, segment in enumerate(whole):
        found = [
            (segment.text.find(each) + len(each), segment.text.find(each)) for each in stop if each in segment.text
        ]
        if segment.kind == "content" and found:
            return [*whole[:place], Segment("content", segment.text[: min(found)[1]])], True
    return whole, False


def begun_in_content(tokens: Sequence[bytes], whole: Sequence[Segment]) -> list[bytes]:
    """Tokens whose first byte belongs to content, or to a character of it."""
    is_content: list[bool] = []
    for segment in whole:
        is_content += [segment.kind == "content"] * len("".join(segment.pieces).encode())
    begins = accumulate(map(len, tokens[:-1]), initial=0)
    return [
        token for token, begin in zip(tokens, begins, strict=False) if begin < len(is_content) and is_content[begin]
    ]


# Stop strings.


def test_stop_strings_are_looked_for_in_content_alone() -> None:
    heard = said("<t>a stop</t>be<c>f:stop</c>gin stop here").answer(stop=("stop",))
    assert (heard.reasoning(), heard.calls(), heard.text()) == ("a stop", [("f", "stop")], "begin ")
    assert heard.reason() is FinishReason.STOP


def test_what_may_become_a_stop_string_does_not_wait_for_the_end_of_a_call() -> None:
    heard = said("ab<c>f:1</c>c").answer(stop=("abc",))
    assert [type(event).__name__ for event in heard.events[1:4]] == ["TextDelta", "ToolCallDelta", "ToolCallDelta"]
    assert heard.text() == "abc"


def test_what_the_parser_held_back_may_hold_a_stop_string() -> None:
    heard = said("a</").answer(stop=("</",))
    assert (heard.text(), heard.reason()) == ("a</"[:1], FinishReason.STOP)


# The end of an answer.


@pytest.mark.parametrize(
    ("text", "max_tokens", "expected"),
    [
        ("hi", 9, FinishReason.STOP),
        ("hi", 2, FinishReason.LENGTH),
        ("<c>f:{}</c>", 99, FinishReason.TOOL_CALLS),
        ("<c>f:{}</c>", 11, FinishReason.LENGTH),
        ("<c>f:{}", 99, FinishReason.STOP),
        ("<c>f:1</c><c>f:2", 99, FinishReason.TOOL_CALLS),
        ("x<c>f:{}</c>y", 99, FinishReason.TOOL_CALLS),
    ],
)
def test_the_reason_of_the_end(text: str, max_tokens: int, expected: FinishReason) -> None:
    parser = ToyParser()
    assert said(text).answer(parser, max_tokens=max_tokens).reason() is expected
    assert parser.num_finished == 1


def test_a_complete_grammar_after_a_call_is_the_end_of_a_turn() -> None:
    script = said("<c>f:{}</c>more")
    walks = Walks(Automaton.of(script.said[:11]), num_tokens=len(script.ids))
    heard = script.answer(new_constraint=walks)
    assert (heard.calls(), heard.text(), heard.reason()) == ([("f", "{}")], "", FinishReason.TOOL_CALLS)


def test_an_end_token_that_is_a_marker_is_seen() -> None:
    script = said("<c>f:{}")
    parser = ToyParser()
    bench = script.bench()
    heard = bench.answer(script.prompt, max_tokens=99, new_parser=lambda: parser, markers={END: b"</c>"})
    assert (heard.calls(), heard.reason(), parser.num_calls) == ([("f", "{}")], FinishReason.TOOL_CALLS, 1)
    assert heard.finished.usage.completion_tokens == 7


def test_control_tokens_that_are_no_markers_are_not_seen() -> None:
    script = Script([b"a", b"<t>", b"b", b""], controls=[b"<t>"])
    heard = script.bench().answer(script.prompt, max_tokens=9, new_parser=ToyParser)
    assert (heard.text(), heard.reasoning()) == ("ab", "")


@pytest.mark.parametrize("text", ["a<", "a<t", "a\ufffd"])
def test_what_was_held_back_comes_at_the_end(text: str) -> None:
    assert said(text).answer().text() == text
    assert said(text, end=False).answer(max_tokens=len(text.encode())).text() == text


def test_a_character_that_was_cut_off_ends_content_with_its_log_probability() -> None:
    heard = Script([b"a", b"\xc3"]).answer(max_tokens=2, top_logprobs=0)
    assert heard.text() == "a\ufffd"
    assert [entry.token_bytes for entry in heard.logprobs()] == [b"a", b"\xc3"]
    thought = Script([b"<t>", b"a", b"\xc3"]).answer(max_tokens=3, top_logprobs=0)
    assert (thought.reasoning(), thought.logprobs()) == ("a\ufffd", [])


@pytest.mark.parametrize(("opening", "num_entries"), [(b"b", 3), (b"<t>", 0)])
def test_a_token_without_text_belongs_to_the_content_that_it_ends(opening: bytes, num_entries: int) -> None:
    script = Script([opening, b"a", b"<x>"], controls=[b"<x>"])
    heard = script.bench().answer(script.prompt, max_tokens=3, new_parser=ToyParser, top_logprobs=0)
    assert len(heard.logprobs()) == num_entries


def test_choices_have_parsers_of_their_own() -> None:
    made: list[ToyParser] = []

    def new_parser() -> ToyParser:
        made.append(ToyParser())
        return made[-1]

    heard = said("<t>x</t>y<c>f:1</c>").answer(n=3, new_parser=new_parser)
    for index in range(3):
        assert (heard.reasoning(index), heard.text(index), heard.calls(index)) == ("x", "y", [("f", "1")])
    assert [parser.num_calls for parser in made] == [1, 1, 1]


def test_a_parser_that_fails_ends_its_request_alone() -> None:
    class Failing(ToyParser):
        def push(self, text: str) -> Sequence[Part]:
            raise ValueError(text)

    script = said("hello")
    bench = script.bench()
    failing = bench.submit(script.prompt, new_parser=Failing)
    fine = bench.submit(script.prompt, new_parser=ToyParser)
    bench.run()
    assert "failed" in bench.heard[failing].failed.error.message
    assert bench.heard[fine].text() == "hello"


# Thinking.


def test_tokens_of_thinking_are_counted() -> None:
    pieces = [b"<t>", b"a", b"bc", b"</t>", b"d", b"<t>", b"e", b"</t>", b"f", b""]
    usage = Script(pieces).answer(n=2).finished.usage
    assert (usage.completion_tokens, usage.reasoning_tokens) == (18, 10)
    opened = Script([b"a", b"</t>", b"b", b""]).answer(ToyParser(is_open=True)).finished.usage
    assert (opened.completion_tokens, opened.reasoning_tokens) == (3, 2)


ENDLESS = Script([b"mm"], controls=[b"</t>"], others=[b"\n", b"</t>", b"\n\n"])
CLOSING = ENDLESS.tokens(b"\n", b"</t>", b"\n\n")


@pytest.mark.parametrize("most_tokens", [0, 1, 7])
@pytest.mark.parametrize(("can_draw", "top_logprobs"), [(False, None), (True, None), (False, 0)])
def test_thinking_is_ended_when_its_limit_is_reached(
    most_tokens: int,
    can_draw: bool,  # noqa: FBT001
    top_logprobs: int | None,
) -> None:
    limit = ThinkingLimit(most_tokens, np.array(CLOSING, dtype=np.int32))
    heard = ENDLESS.answer(
        ToyParser(is_open=True), can_draw=can_draw, thinking=limit, max_tokens=12, top_logprobs=top_logprobs
    )
    assert heard.reasoning() == "mm" * most_tokens + "\n"
    assert heard.text() == "\n\n" + "mm" * (12 - most_tokens - 3)
    usage = heard.finished.usage
    assert (usage.completion_tokens, usage.reasoning_tokens) == (12, most_tokens + 2)
    if top_logprobs is not None:
        assert b"".join(entry.token_bytes for entry in heard.logprobs()).decode() == heard.text()


def test_who_ends_thinking_in_time_is_left_alone() -> None:
    script = Script([b"a", b"b", b"</t>", b"c", b""], others=[b"\n"])
    limit = ThinkingLimit(3, np.array(script.tokens(b"\n", b"</t>"), dtype=np.int32))
    heard = script.answer(ToyParser(is_open=True), thinking=limit)
    assert (heard.reasoning(), heard.text()) == ("ab", "c")


def test_the_limit_waits_for_the_end_of_a_character() -> None:
    script = Script([b"a", b"\xf0\x9f", b"\x99", b"\x82", b"b"], others=[b"</t>"])
    limit = ThinkingLimit(2, np.array(script.tokens(b"</t>"), dtype=np.int32))
    heard = script.answer(ToyParser(is_open=True), thinking=limit, max_tokens=7)
    assert (heard.reasoning(), heard.text()) == ("a🙂", "bb")


def test_a_closing_that_the_parser_does_not_understand_is_not_said_for_ever() -> None:
    script = Script([b"m"], others=[b"x"])
    limit = ThinkingLimit(2, np.array(script.tokens(b"x"), dtype=np.int32))
    heard = script.answer(ToyParser(is_open=True), thinking=limit, max_tokens=90)
    assert heard.reasoning().endswith("m" * 50)


def test_every_further_thought_is_ended_at_once_when_the_limit_is_reached() -> None:
    script = Script([b"<t>", b"m", b"m", b"m"], others=[b"</t>"])
    limit = ThinkingLimit(2, np.array(script.tokens(b"</t>"), dtype=np.int32))
    heard = script.answer(ToyParser(), thinking=limit, max_tokens=90)
    assert heard.text()
    assert heard.reasoning() == "mm"


def test_a_limit_obeys_the_grammar() -> None:
    """Thinking is an even number of tokens here."""
    script = Script([b"mm"], others=[b"</t>", b"z"])
    m, close, z = script.tokens(b"mm", b"</t>", b"z")
    steps = [{m: 1, close: 2}, {m: 0, z: 0}, {z: 3, m: 2}, {}]
    walks = Walks(Automaton(steps, frozenset({3})), num_tokens=len(script.ids))
    limit = ThinkingLimit(3, np.array([close], dtype=np.int32))
    heard = script.answer(ToyParser(is_open=True), thinking=limit, new_constraint=walks, max_tokens=9)
    assert (heard.reasoning(), heard.text(), heard.reason()) == ("mm" * 4, "mm" * 4, FinishReason.LENGTH)
    assert not walks.made[0].complaints


def test_events_of_one_step_are_joined() -> None:
    script = said("<t>abc</t>def")
    walks = Walks(Automaton.of(script.said[:-1]), num_tokens=len(script.ids))
    heard = script.answer(new_constraint=walks)
    assert heard.events[1:-1] == [ReasoningDelta(0, "abc"), TextDelta(0, "def"), ChoiceFinished(0, FinishReason.STOP)]


def test_greedy_text_is_the_same_with_a_parser_that_finds_nothing() -> None:
    script = said("just text, étude 🙂.")
    assert script.answer(sampling=GREEDY).text() == script.bench().answer(script.prompt, max_tokens=99).text()
