"""Answers for tests of formats: taken apart in pieces of any size, or made up at random by their own grammars."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import llguidance
import llguidance.numpy
import numpy as np

from server.chat.answer_format import (
    AnswerFormat,
    AnswerPlan,
    CallArguments,
    CallBegan,
    Content,
    Part,
    Reasoning,
)


@dataclass
class Answer:
    """What a parser made of a text."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    call_ids: list[str] = field(default_factory=list)
    num_complete: int = 0

    @property
    def decoded_calls(self) -> list[tuple[str, object]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


def parse(answer_format: AnswerFormat, plan: AnswerPlan, pieces: Iterable[str]) -> Answer:
    """Parse a text that comes in pieces; content has to be where it says."""
    parser, answer, text = answer_format.parser(plan), Answer(), ""
    parts: list[Part] = []
    for piece in pieces:
        text += piece
        parts += parser.push(piece)
    parts += parser.finish()
    for part in parts:
        match part:
            case Content(said, begin):
                assert text[begin : begin + len(said)] == said
                answer.content += said
            case Reasoning(thought):
                answer.reasoning += thought
            case CallBegan(name, call_id):
                answer.calls.append((name, ""))
                answer.call_ids.append(call_id)
            case CallArguments(more):
                name, arguments = answer.calls[-1]
                answer.calls[-1] = (name, arguments + more)
    answer.num_complete = parser.num_calls
    return answer


def all_cuts(text: str) -> Iterator[list[str]]:
    """Cut a text in two at every place, if it is long at some of them, and into pieces of each small size."""
    for position in range(0, len(text) + 1, 1 + len(text) // 400):
        yield [text[:position], text[position:]]
    for size in (1, 2, 3, 5, 7):
        yield [text[begin : begin + size] for begin in range(0, len(text), size)]


def parse_however_cut(answer_format: AnswerFormat, plan: AnswerPlan, text: str) -> Answer:
    """Parse a text; the result has to be the same wherever it is cut."""
    whole = parse(answer_format, plan, [text])
    for pieces in all_cuts(text):
        answer = parse(answer_format, plan, pieces)
        assert (answer.content, answer.reasoning, answer.calls, answer.num_complete) == (
            whole.content,
            whole.reasoning,
            whole.calls,
            whole.num_complete,
        ), pieces
    return whole


_WORDS = (
    " the",
    "get",
    "_weather",
    "name",
    "arguments",
    '{"',
    '":',
    '": "',
    '"}',
    "}}",
    "Paris",
    "\n\n",
    "</",
    "think>",
)


_ENDINGS = re.compile(r'ANY_TEXT ("(?:[^"\\]|\\.)*")')
"""What ends free text in a grammar: it would hardly come by chance."""


class ByteVocabulary:
    """A token for every byte, some words, the markers of a format as control tokens or as text, and an end token."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, markers: Iterable[str], endings: Iterable[str], *, are_control: bool) -> None:
        ordered = sorted(markers)
        self.tokens = [bytes([byte]) for byte in range(256)] + [word.encode() for word in _WORDS]
        begin = len(self.tokens)
        self.tokens += [text.encode() for text in (*ordered, *endings)]
        self.control = {marker: begin + i for i, marker in enumerate(ordered)} if are_control else {}
        self.markers = range(begin, len(self.tokens))
        self.favoured = {len(self.tokens), *self.markers, *b'"}]>\n', *range(256, 256 + len(_WORDS))}
        self.eos_token_id = len(self.tokens)
        self.tokens.append(b"<|end|>")
        self.special_token_ids = [*self.control.values(), self.eos_token_id]
        self.tokenizer = llguidance.LLTokenizer(self, eos_token=[self.eos_token_id])  # type: ignore[arg-type]

    def __call__(self, text: str | bytes) -> Sequence[int]:
        return list(text.encode() if isinstance(text, str) else text)

    def text(self, tokens: Iterable[int]) -> str:
        return b"".join(self.tokens[token] for token in tokens if token != self.eos_token_id).decode()


@lru_cache(maxsize=256)
def _vocabulary(markers: frozenset[str], endings: frozenset[str], *, are_control: bool) -> ByteVocabulary:
    return ByteVocabulary(markers, sorted(endings), are_control=are_control)


def made_up(
    answer_format: AnswerFormat, plan: AnswerPlan, seed: int, *, are_control: bool = False, most_tokens: int = 1500
) -> str | None:
    """Make up an answer that the format's grammar allows, at random; ``None`` if it does not end in time.

    The end, markers and quotes are taken more often than by chance, so that answers end and calls come.
    """
    grammar = answer_format.grammar(plan, lambda _: None)
    assert grammar is not None
    endings = {json.loads(ending) for ending in _ENDINGS.findall(grammar)}
    if not are_control:
        endings -= answer_format.markers
    vocabulary = _vocabulary(answer_format.markers, frozenset(endings), are_control=are_control)
    grammar = answer_format.grammar(plan, vocabulary.control.get)
    assert grammar is not None
    numbers = random.Random(seed)
    matcher = llguidance.LLMatcher(vocabulary.tokenizer, grammar, log_level=0)
    assert not matcher.is_error(), (matcher.get_error(), grammar)
    mask = llguidance.numpy.allocate_token_bitmask(1, len(vocabulary.tokens))
    tokens: list[int] = []
    while len(tokens) < most_tokens:
        if forced := matcher.compute_ff_tokens():
            matcher.consume_tokens(forced)
            tokens += forced
            continue
        if matcher.is_stopped():
            break
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        bits = np.unpackbits(mask[0].view(np.uint8), bitorder="little", count=len(vocabulary.tokens))
        allowed = np.flatnonzero(bits).tolist()
        assert allowed, matcher.get_error()
        chance = numbers.random()
        wanted = vocabulary.markers if chance < 0.2 else vocabulary.favoured if chance < 0.5 else ()
        token = numbers.choice([token for token in allowed if token in wanted] or allowed)
        assert matcher.consume_token(token)
        tokens.append(token)
    assert not matcher.is_error(), matcher.get_error()
    return vocabulary.text(tokens) if matcher.is_stopped() else None
