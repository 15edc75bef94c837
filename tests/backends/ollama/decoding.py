"""Bytes of the daemon's stream, decoded to the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from asking import TIME, WEATHER, asked, last_line, line, ndjson

from server.backends.ollama.answer_events import AnswerEvents
from server.backends.ollama.answer_form import answer_form
from server.backends.ollama.chat_events import ChatDecoder
from server.core.errors import BackendError
from server.core.events import (
    Event,
    Failed,
    Finished,
    Timings,
    ToolCallDelta,
    Usage,
)
from server.core.request import ChatRequest, ReasoningOutput, ToolChoice, ToolChoiceMode

USAGE = Usage(prompt_tokens=17, completion_tokens=5)
TIMINGS = Timings(load=2.0, prompt=0.5, first_token=2.5, decode=1.5)
FORCED = asked(tools=(WEATHER, TIME), tool_choice=ToolChoice(ToolChoiceMode.REQUIRED))


def decoder_for(
    request: ChatRequest | None = None, index: int = 0, reasoning: ReasoningOutput = ReasoningOutput.SPLIT
) -> ChatDecoder:
    request = asked(tools=(WEATHER, TIME)) if request is None else request
    return ChatDecoder(request, AnswerEvents(request, answer_form(request), reasoning, index), "demo:latest")


def decoded(pieces: Iterable[bytes], *about: Any) -> list[Event]:  # noqa: ANN401 - the arguments of `decoder_for`
    """All events of a stream that comes in these pieces."""
    decoder = decoder_for(*about)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    events += decoder.end()
    assert decoder.is_over
    assert decoder.feed(ndjson(line("more"), last_line())) == []
    assert decoder.end() == []
    return events


def events_of(
    *lines: object,
    request: ChatRequest | None = None,
    index: int = 0,
    reasoning: ReasoningOutput = ReasoningOutput.SPLIT,
) -> list[Event]:
    return decoded([ndjson(*lines)], request, index, reasoning)


def failure(events: Sequence[Event]) -> BackendError:
    last = events[-1]
    assert isinstance(last, Failed)
    assert not any(isinstance(event, Failed | Finished) for event in events[:-1])
    assert isinstance(last.error, BackendError)
    return last.error


def calls_of(events: Sequence[Event]) -> list[ToolCallDelta]:
    return [event for event in events if isinstance(event, ToolCallDelta)]


def call(name: str, call_id: str | None = None, **arguments: object) -> dict[str, Any]:
    made: dict[str, Any] = {"function": {"index": 0, "name": name, "arguments": arguments}}
    return made if call_id is None else {"id": call_id, **made}
