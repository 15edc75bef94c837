"""Collects the parts of an answer that a parser finds, and sees to what all formats have in common.

White space between thinking, content and calls belongs to the format, not to what is said: it is held back until it is
known what follows.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence

from server.chat.answer_format import CallArguments, CallBegan, Content, Part, Reasoning


class AnswerWriter:
    """The parts of one answer since they were last taken."""

    def __init__(self, *, trims_content: bool) -> None:
        """Start; with ``trims_content`` white space after content is held back, because a call may follow."""
        self._parts: list[Part] = []
        self._held = ""
        self._held_begin = 0
        self._held_thought = ""
        self._has_thought = False
        self._skips_space = False
        self._has_open_call = False
        self._trims_content = trims_content
        self.is_reasoning = False
        self.num_calls = 0

    @property
    def has_open_call(self) -> bool:
        """Whether a call has begun whose end has not been read."""
        return self._has_open_call

    def take(self) -> Sequence[Part]:
        """Return the parts, once."""
        parts, self._parts = self._parts, []
        return parts

    def content(self, text: str, begin: int) -> None:
        """Add what the model says to the user; ``begin`` is its offset in the whole text."""
        if self._skips_space:
            stripped = text.lstrip()
            begin += len(text) - len(stripped)
            text = stripped
        if not text:
            return
        self._skips_space = False
        if self._held and self._held_begin + len(self._held) == begin:
            text, begin, self._held = self._held + text, self._held_begin, ""
        elif self._held:  # something that is not said to anybody stood between the two
            self._parts.append(Content(self._held, self._held_begin))
            self._held = ""
        if self._trims_content:
            kept = text.rstrip()
            self._held, self._held_begin = text[len(kept) :], begin + len(kept)
            text = kept
        if text:
            self._parts.append(Content(text, begin))

    def reasoning(self, text: str, _begin: int = 0) -> None:
        """Add what the model thinks."""
        if not self._has_thought:
            text = text.lstrip()
        if not text:
            return
        self._has_thought = True
        text = self._held_thought + text
        kept = text.rstrip()
        self._held_thought = text[len(kept) :]
        if kept:
            self._parts.append(Reasoning(kept))

    def begin_reasoning(self, *, is_apart: bool = True) -> None:
        """Say that the model thinks from here on; its thoughts are content as well unless they are kept apart."""
        self.is_reasoning = True
        if is_apart:
            self._begin_structure()

    def end_reasoning(self, *, is_apart: bool = True) -> None:
        """Say that the thinking is over."""
        self.is_reasoning = False
        self._has_thought, self._held_thought = False, ""
        if is_apart:
            self._begin_structure()

    def leave_out(self) -> None:
        """Say that something stands here that is said to nobody; the space around it belongs to the format."""
        self._begin_structure()

    def begin_call(self, name: str, call_id: str | None = None) -> None:
        """Begin a call; without an id of the model's own it gets one."""
        self._begin_structure()
        self._has_open_call = True
        self._parts.append(CallBegan(name, call_id or f"call_{uuid.uuid4().hex[:24]}"))

    def arguments(self, text: str, _begin: int = 0) -> None:
        """Add to the arguments of the call that was begun last."""
        if text:
            self._parts.append(CallArguments(text))

    def end_call(self) -> None:
        """Say that the call is complete."""
        self._has_open_call = False
        self.num_calls += 1

    def abandon_call(self) -> None:
        """Say that the rest of a call that has begun will not come."""
        self._has_open_call = False

    def whole_call(self, name: str, arguments: object, call_id: str | None = None) -> None:
        """Add a call that was read as a whole."""
        self.begin_call(name, call_id)
        self.arguments(json.dumps(arguments, ensure_ascii=False))
        self.end_call()

    def finish(self) -> None:
        """Give up what was held back: at the end of an answer, white space is content like any other."""
        if self._held and self.num_calls == 0 and not self._has_open_call:
            self._parts.append(Content(self._held, self._held_begin))
        self._held = ""

    def _begin_structure(self) -> None:
        self._held = ""
        self._skips_space = True
