"""A parser of answers whose markers are ``<t>``, ``</t>`` and ``<c>name:arguments</c>``; each may be cut anywhere."""

from __future__ import annotations

from collections.abc import Sequence

from server.chat.answer_format import CallArguments, CallBegan, Content, Part, Reasoning

OPEN, CLOSE, CALL, CALL_END = "<t>", "</t>", "<c>", "</c>"


class ToyParser:
    """``AnswerParser`` of the toy format. With ``is_open`` the prompt has opened the thinking."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.num_calls = 0
        self.num_finished = 0
        self._mode = OPEN if is_open else ""
        self._text = ""
        self._begin = 0
        self._num_begun = 0

    @property
    def is_reasoning(self) -> bool:
        return self._mode == OPEN

    def push(self, text: str) -> Sequence[Part]:
        self._text += text
        parts: list[Part] = []
        while self._step(parts, [*self._markers()]):
            pass
        return parts

    def finish(self) -> Sequence[Part]:
        self.num_finished += 1
        parts: list[Part] = []
        self._emit(parts, len(self._text))
        return parts

    def _markers(self) -> Sequence[str]:
        return {"": (OPEN, CALL), OPEN: (CLOSE,), CALL: (":",), ":": (CALL_END,)}[self._mode]

    def _step(self, parts: list[Part], markers: Sequence[str]) -> bool:
        found = [(place, marker) for marker in markers if (place := self._text.find(marker)) >= 0]
        if not found:
            if self._mode != CALL:
                held = max(n for n in range(5) if not n or self._text[-n:] in {m[:n] for m in markers})
                self._emit(parts, len(self._text) - held)
            return False
        place, marker = min(found)
        if self._mode == CALL:
            parts.append(CallBegan(self._text[:place], f"call_{self._num_begun}"))
            self._num_begun += 1
        else:
            self._emit(parts, place)
            place = 0
        self._drop(place + len(marker))
        self.num_calls += marker == CALL_END
        self._mode = "" if marker in {CLOSE, CALL_END} else marker
        return True

    def _emit(self, parts: list[Part], length: int) -> None:
        text = self._text[:length]
        if text and self._mode == "":
            parts.append(Content(text, self._begin))
        elif text and self._mode == OPEN:
            parts.append(Reasoning(text))
        elif text and self._mode == ":":
            parts.append(CallArguments(text))
        self._drop(length)

    def _drop(self, length: int) -> None:
        self._text = self._text[length:]
        self._begin += length
