"""What ``llmspell chat`` writes: the answer to standard output, everything else to standard error."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TextIO

from server.cli.chat_source import Ended, Piece, Reasoning, Text, Waiting

_DIM, _PLAIN = "\x1b[2m", "\x1b[22m"
_CLEAR_LINE = "\r\x1b[K"
_LEAST_LOAD_MS = 10.0
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """Shows one answer after the other, and what happens meanwhile."""

    def __init__(self, out: TextIO, err: TextIO, *, as_json: bool = False) -> None:
        """Take the streams; with ``as_json`` an answer is one line of JSON once it is there."""
        self._out = out
        self._err = err
        self._as_json = as_json
        self._answer = _Answer()
        self._has_waited = False
        self._is_dim = False

    def begin(self) -> None:
        """Expect the next answer."""
        self._answer = _Answer()
        self._has_waited = False

    def show(self, piece: Piece) -> None:
        """Show a piece of the answer as soon as it is there."""
        if isinstance(piece, Waiting):
            self._wait(piece)
            return
        self._wait_no_more()
        self._answer.add(piece)
        if isinstance(piece, Text) and not self._as_json:
            self._undim()
            self._write(self._out, piece.text)
        elif isinstance(piece, Reasoning) and not self._as_json:
            self._think(piece.text)

    def end(self, model: str) -> str:
        """End the answer, complete or not, and return its text."""
        self._wait_no_more()
        self._undim()
        if self._as_json:
            self._out.write(json.dumps({"model": model, **self._answer.document}) + "\n")
            self._out.flush()
        else:
            self._end_line()
        return self._answer.text

    def drop(self) -> None:
        """End an answer that failed; what is shown of it stays."""
        self._wait_no_more()
        self._undim()
        if not self._as_json:
            self._end_line()

    def note_ending(self, *, timings: bool) -> None:
        """Say what is to be known of the answer that has ended."""
        if self._answer.reason == "length":
            self.tell("(cut: it was as long as it may be)")
        if timings and self._answer.timings:
            self.tell(f"({timings_line(self._answer.timings)})")

    def tell(self, line: str) -> None:
        """Write a line that is no answer."""
        self._write(self._err, f"{line}\n")

    def _think(self, text: str) -> None:
        """Show reasoning where a person looks: among the answers, else beside them; a program has no use for it."""
        stream = self._out if self._out.isatty() else self._err
        if not stream.isatty():
            return
        if not self._is_dim:
            self._is_dim = True
            stream.write(_DIM)
        self._write(stream, text)

    def _end_line(self) -> None:
        if self._answer.text and not self._answer.text.endswith("\n"):
            self._out.write("\n")
        self._out.flush()

    def _undim(self) -> None:
        if self._is_dim:
            self._is_dim = False
            stream = self._out if self._out.isatty() else self._err
            stream.write(f"{_PLAIN}\n\n" if stream is self._out else f"{_PLAIN}\n")
            stream.flush()

    def _wait(self, piece: Waiting) -> None:
        if self._err.isatty():
            self._write(self._err, piece.reason, before=_CLEAR_LINE)
        elif not self._has_waited:
            self.tell(f"{piece.reason.split()[0]}…")
        self._has_waited = True

    def _wait_no_more(self) -> None:
        if self._has_waited and self._err.isatty():
            self._err.write(_CLEAR_LINE)
            self._err.flush()
        self._has_waited = False

    def _write(self, stream: TextIO, text: str, before: str = "") -> None:
        """Write at once; a model must not be able to move somebody's cursor, or rename their window."""
        stream.write(before + (_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if stream.isatty() else text))
        stream.flush()


class _Answer:
    """What has come of an answer."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.reason: str | None = None
        self.timings: Mapping[str, object] = {}

    def add(self, piece: Piece) -> None:
        match piece:
            case Text():
                self.text += piece.text
            case Reasoning():
                self.reasoning += piece.text
            case Ended():
                self.reason, self.timings = piece.reason, piece.timings

    @property
    def document(self) -> dict[str, object]:
        """The answer for programs; ``finish_reason`` is null if it was stopped."""
        return {
            "content": self.text,
            "reasoning": self.reasoning or None,
            "finish_reason": self.reason,
            "timings": dict(self.timings) or None,
        }


def timings_line(timings: Mapping[str, object]) -> str:
    """Say in words where the time of an answer went."""
    count, first = _number(timings, "completion_tokens"), _number(timings, "first_token_ms")
    load, decode = _number(timings, "load_ms"), _number(timings, "decode_ms")
    cached = _number(timings, "cached_tokens")
    speed = f" at {(count - 1) * 1000 / decode:.1f} tokens/s" if decode > 0 and count > 1 else ""
    seen = f", {cached:.0f} of them cached" if cached else ""
    loading = f", {load / 1000:.2f} s of them loading" if load >= _LEAST_LOAD_MS else ""
    parts = [
        f"{count:.0f} tokens{speed}",
        f"first token after {first / 1000:.2f} s{loading}",
        f"prompt of {_number(timings, 'prompt_tokens'):.0f} tokens{seen}",
    ]
    backend = timings.get("backend")
    return "; ".join([*parts, str(backend)] if backend else parts)


def _number(timings: Mapping[str, object], name: str) -> float:
    value = timings.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
