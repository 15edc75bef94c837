"""Tokens of one sequence to events: plain text as it is, or taken apart into thinking, content and calls."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from server.chat.answer_format import AnswerParser, CallArguments, CallBegan, Content, Part, Reasoning
from server.core.events import Event, ReasoningDelta, TextDelta, TokenLogprob, ToolCallDelta
from server.engine.detokenizer import Detokenizer, StopSearch
from server.engine.runner import Tokens, Vocabulary

_LONGEST_CHARACTER = 4
_PATIENCE = 16


@dataclass(frozen=True, slots=True)
class ThinkingLimit:
    """After ``most_tokens`` tokens of thinking, the tokens of ``closing`` are said for the model, which end it."""

    most_tokens: int
    closing: Tokens


class Answer(Protocol):
    """What one sequence has said, as events."""

    @property
    def has_stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        ...

    @property
    def num_calls(self) -> int:
        """Calls of functions that are complete."""
        ...

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens that were spent on thinking."""
        ...

    def push(self, token: int, logprob: TokenLogprob | None) -> list[Event]:
        """Add a token and return what that makes certain; nothing may be added when the answer has stopped."""
        ...

    def finish(self, end_token: int | None = None) -> list[Event]:
        """End the answer, by a token if the model has ended it, and return what was held back."""
        ...

    def overdue(self) -> Sequence[int]:
        """Return the tokens that have to be said next because the model has been thinking for too long."""
        ...


class PlainAnswer:
    """``Answer`` of text that is all meant for the user."""

    num_calls = 0
    num_reasoning_tokens = 0

    def __init__(self, index: int, vocabulary: Vocabulary, stop: Sequence[str]) -> None:
        """Begin.

        Args:
            index: the choice.
            vocabulary: the texts of tokens.
            stop: what ends the text.

        """
        self._index = index
        self._vocabulary = vocabulary
        self._detokenizer = Detokenizer(stop)

    @property
    def has_stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._detokenizer.stopped

    def push(self, token: int, logprob: TokenLogprob | None) -> list[Event]:
        """Add a token and return the text that became certain."""
        text = self._detokenizer.push(self._vocabulary.piece(token), logprob)
        return [TextDelta(self._index, text, self._detokenizer.take_logprobs())] if text else []

    def finish(self, _end_token: int | None = None) -> list[Event]:
        """End the text and return what was held back."""
        text = self._detokenizer.flush()
        logprobs = self._detokenizer.take_remaining_logprobs()
        return [TextDelta(self._index, text, logprobs)] if text or logprobs else []

    def overdue(self) -> Sequence[int]:
        """Return no tokens: nothing is taken for thinking."""
        return ()


class ParsedAnswer:
    """``Answer`` that a parser takes apart. Stop strings are looked for in content alone."""

    def __init__(
        self,
        index: int,
        vocabulary: Vocabulary,
        stop: Sequence[str],
        parser: AnswerParser,
        markers: Mapping[int, bytes],
        thinking: ThinkingLimit | None,
    ) -> None:
        """Begin.

        Args:
            index: the choice.
            vocabulary: the texts of tokens.
            stop: what ends the answer.
            parser: takes the text apart.
            markers: control tokens whose text the parser sees.
            thinking: how long the model may think.

        """
        self.num_reasoning_tokens = 0
        self._num_before_thought = 0
        self._index = index
        self._vocabulary = vocabulary
        self._search = StopSearch(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parser = parser
        self._markers = markers
        self._thinking = thinking
        self._num_begun = 0
        self._num_decoded = 0
        self._logprobs = _ContentLogprobs()

    @property
    def has_stopped(self) -> bool:
        """Whether a stop string in the content has ended the answer."""
        return self._search.stopped

    @property
    def num_calls(self) -> int:
        """Calls of functions that are complete."""
        return self._parser.num_calls

    def push(self, token: int, logprob: TokenLogprob | None) -> list[Event]:
        """Add a token and return what became certain."""
        if self._parser.is_reasoning:
            self.num_reasoning_tokens += 1
        else:
            self._num_before_thought = self.num_reasoning_tokens
        if logprob is not None:
            self._logprobs.add(self._num_decoded, logprob)
        return self._push(self._vocabulary.piece(token) or self._markers.get(token, b""))

    def finish(self, end_token: int | None = None) -> list[Event]:
        """End the answer and return what was held back; the parser sees the token that ended it if it is a marker."""
        if self.has_stopped:
            return []
        events = self._push(b"" if end_token is None else self._markers.get(end_token, b""), is_last=True)
        if not self.has_stopped:
            events += self._events(self._parser.finish())
        if not self.has_stopped:
            text = self._search.flush()
            logprobs = self._logprobs.release_all(len(text), self._num_decoded)
            events += [TextDelta(self._index, text, logprobs)] if text or logprobs else []
        return events

    def overdue(self) -> Sequence[int]:
        """Return the tokens that end thinking when its limit is reached.

        They wait for the end of a character, and are not said for ever: the text may not be what the parser takes for
        an end. A thought that begins when the limit is reached already is ended at once.
        """
        limit = self._thinking
        if limit is None or not self._parser.is_reasoning or self.num_reasoning_tokens < limit.most_tokens:
            return ()
        excess = self.num_reasoning_tokens - max(limit.most_tokens, self._num_before_thought)
        if excess < _LONGEST_CHARACTER and self._decoder.getstate()[0]:
            return ()
        closing: list[int] = limit.closing.tolist()
        return closing if excess < len(closing) + _PATIENCE else ()

    def _push(self, piece: bytes, *, is_last: bool = False) -> list[Event]:
        text = self._decoder.decode(piece, is_last)
        if not text:
            return []
        self._num_decoded += len(text)
        return self._events(self._parser.push(text))

    def _events(self, parts: Sequence[Part]) -> list[Event]:
        events: list[Event] = []
        for part in parts:
            if isinstance(part, Content):
                events += self._content(part)
                if self.has_stopped:
                    break
                continue
            events += self._held_content()
            match part:
                case Reasoning(text):
                    events.append(ReasoningDelta(self._index, text))
                case CallBegan(name, call_id):
                    events.append(ToolCallDelta(self._index, self._num_begun, call_id, name, ""))
                    self._num_begun += 1
                case CallArguments(text):
                    events.append(ToolCallDelta(self._index, self._num_begun - 1, None, None, text))
        return events

    def _content(self, part: Content) -> list[Event]:
        self._logprobs.cover(part.begin, len(part.text))
        text = self._search.push(part.text)
        return [TextDelta(self._index, text, self._logprobs.release(len(text)))] if text else []

    def _held_content(self) -> list[Event]:
        """Release what might have become a stop string, if only content had followed."""
        text = self._search.flush()
        return [TextDelta(self._index, text, self._logprobs.release(len(text)))] if text else []


class _ContentLogprobs:
    """The entries of tokens whose text begins inside of content, in the order of the text."""

    def __init__(self) -> None:
        self._entries: deque[tuple[int, TokenLogprob]] = deque()
        self._content: deque[tuple[int, int]] = deque()  # where it begins and ends, as far as it was not released
        self._end = 0

    def add(self, begin: int, entry: TokenLogprob) -> None:
        """Note a token by the place where its text begins."""
        self._entries.append((begin, entry))

    def cover(self, begin: int, length: int) -> None:
        """Note that text is content."""
        self._content.append((begin, begin + length))
        self._end = begin + length

    def release(self, length: int) -> tuple[TokenLogprob, ...]:
        """Return the entries of the next ``length`` characters of content; those of other text before it are lost."""
        taken: list[TokenLogprob] = []
        while length > 0:
            begin, end = self._content.popleft()
            if end - begin > length:
                self._content.appendleft((begin + length, end))
                end = begin + length
            length -= end - begin
            while self._entries and self._entries[0][0] < end:
                place, entry = self._entries.popleft()
                if place >= begin:
                    taken.append(entry)
        return tuple(taken)

    def release_all(self, length: int, num_decoded: int) -> tuple[TokenLogprob, ...]:
        """Return the same at the end of the answer, and what has no text of its own there, if it ends in content."""
        taken = self.release(length)
        if self._end == num_decoded:
            taken += tuple(entry for place, entry in self._entries if place == num_decoded)
        self._entries.clear()
        return taken


def joined(events: Sequence[Event]) -> list[Event]:
    """Make one event of neighbours that say more of the same."""
    whole: list[Event] = []
    for event in events:
        last = whole[-1] if whole else None
        match last, event:
            case TextDelta(), TextDelta() if last.index == event.index:
                whole[-1] = TextDelta(last.index, last.text + event.text, last.logprobs + event.logprobs)
            case ReasoningDelta(), ReasoningDelta() if last.index == event.index:
                whole[-1] = ReasoningDelta(last.index, last.text + event.text)
            case ToolCallDelta(), ToolCallDelta(id=None) if (last.index, last.call) == (event.index, event.call):
                whole[-1] = replace(last, arguments=last.arguments + event.arguments)
            case _:
                whole.append(event)
    return whole
