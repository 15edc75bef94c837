"""Token pieces to text: whole UTF-8 characters, and nothing that may still become a stop string."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence

from server.core.events import TokenLogprob


class StopSearch:
    """Looks for stop strings in a text that grows, and holds back what may become one.

    When a stop string is complete, ``stopped`` turns true and neither it nor what follows is released.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.stopped = False
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str) -> str:
        """Add text and return what became certain."""
        if not self._stop:
            return text
        if self.stopped:
            return ""
        text = self._held + text
        end = _find_stop(text, self._stop)
        if end is not None:
            self.stopped = True
            self._held = ""
        else:
            end = len(text) - _held_back_len(text, self._stop)
            self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """Return what was held back: it becomes no stop string any more. The next text begins anew."""
        held, self._held = self._held, ""
        return held


class Detokenizer:
    """The text of one sequence as it grows.

    Text is held back for two reasons only: its last bytes are an incomplete character, or its end is the beginning of
    a stop string. When a stop string is complete, ``stopped`` turns true and neither it nor what follows is released.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._search = StopSearch(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_decoded = 0
        self._num_released = 0
        self._logprobs: deque[tuple[int, TokenLogprob]] = deque()

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._search.stopped

    def push(self, piece: bytes, logprob: TokenLogprob | None = None) -> str:
        """Add a token's bytes and return the text that became certain."""
        if logprob is not None:
            self._logprobs.append((self._num_decoded, logprob))
        text = self._decoder.decode(piece)
        self._num_decoded += len(text)
        released = self._search.push(text)
        self._num_released += len(released)
        return released

    def flush(self) -> str:
        """End the text: return what was held back, unless a stop string already ended it."""
        if self.stopped:
            return ""
        text = self._decoder.decode(b"", final=True)
        self._num_decoded += len(text)
        released = self._search.push(text) + self._search.flush()
        self._num_released += len(released)
        return released

    def take_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Return, once, the entries of the tokens whose text begins inside the released text."""
        taken = []
        while self._logprobs and self._logprobs[0][0] < self._num_released:
            taken.append(self._logprobs.popleft()[1])
        return tuple(taken)

    def take_remaining_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Return the entries of tokens without text of their own (parts of a character) at the end of the text."""
        taken = self.take_logprobs()
        if not self.stopped:
            taken += tuple(entry for _, entry in self._logprobs)
        self._logprobs.clear()
        return taken


def _find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Offset of the stop string that is complete first, ``None`` if there is none."""
    found = [(offset + len(string), offset) for string in stop if (offset := text.find(string)) >= 0]
    return min(found)[1] if found else None


def _held_back_len(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of a stop string."""
    longest = max((len(string) for string in stop), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(string.startswith(text[-length:]) for string in stop):
            return length
    return 0
