"""From events to what OpenAI's clients read: chunks of a stream, or one completion object. Pure."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from server import __version__
from server.api.errors import error_event
from server.api.responses import dump_json
from server.api.timings import wire_timings
from server.core.errors import BackendError, LlmspellError
from server.core.events import (
    ChoiceFinished,
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from server.core.model_spec import BackendName

STREAM_END = b"data: [DONE]\n\n"
_ENDED_EARLY = "The backend ended the answer without saying why; try again."
_MIN_LOGPROB = -9999.0
"""What OpenAI sends for a token that is all but impossible; JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class CompletionHead:
    """What all chunks of a completion have in common; ``model`` is what the client sent."""

    model: str
    system_fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def to_wire(self, kind: Literal["chat.completion", "chat.completion.chunk"]) -> dict[str, object]:
        """Build the fields that a completion object or chunk begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": self.system_fingerprint,
        }


def system_fingerprint(model: str) -> str:
    """Name what influences answers besides the request: this server's version and the model."""
    return "fp_" + hashlib.sha256(f"{__version__} {model}".encode()).hexdigest()[:10]


class ChunkEncoder:
    """Frames events as server-sent chunks; the constant parts of a chunk are serialized once per stream.

    Once nothing may follow, ``finished`` says what a complete answer took, or ``failure`` why there is none.
    """

    def __init__(
        self,
        head: CompletionHead,
        n: int,
        *,
        include_usage: bool,
        timings_of: Callable[[], BackendName] | None = None,
    ) -> None:
        """Take what the chunks have in common; ``timings_of`` names the backend if a chunk with timings is wanted."""
        self._start = b"data: " + dump_json(head.to_wire("chat.completion.chunk"))[:-1] + b',"choices":['
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._include_usage = include_usage
        self._timings_of = timings_of
        self._n = n
        self._text_starts = [b'%b{"index":%d,"delta":{"content":' % (self._start, index) for index in range(n)]
        self._text_end = b'},"logprobs":null,"finish_reason":null}' + self._end
        self.finished: Finished | None = None
        self.failure: LlmspellError | None = None

    @property
    def ended(self) -> bool:
        """Whether the last event has been framed."""
        return self.finished is not None or self.failure is not None

    def opening(self) -> bytes:
        """Frame the chunks that announce each choice."""
        delta = b'{"role":"assistant","content":"","refusal":null}'
        return b"".join(self._chunk(index, delta, b"null", b"null") for index in range(self._n))

    def encode(self, batch: Sequence[Event]) -> bytes:
        """Frame a batch of events; empty when they hold nothing for the client."""
        return b"".join([self._encode(event) for event in batch])

    def closing(self) -> bytes:
        """Frame what is missing when the events have ended: nothing, unless the backend broke its promise."""
        return b"" if self.ended else self._encode(Failed(BackendError(_ENDED_EARLY)))

    def _encode(self, event: Event) -> bytes:
        if isinstance(event, TextDelta):
            if not event.logprobs:
                return self._text_starts[event.index] + dump_json(event.text) + self._text_end
            delta = b'{"content":' + dump_json(event.text) + b"}"
            return self._chunk(event.index, delta, dump_json(_logprobs(event.logprobs)), b"null")
        if isinstance(event, Finished):
            self.finished = event
            return self._usage_chunk(event.usage) + self._timings_chunk(event) + STREAM_END
        if isinstance(event, Failed):
            self.failure = event.error
            return error_event(event.error)
        return self._encode_rare(event)

    def _encode_rare(self, event: Event) -> bytes:
        if isinstance(event, ChoiceFinished):
            return self._chunk(event.index, b"{}", b"null", dump_json(event.reason.value))
        if isinstance(event, ReasoningDelta):
            return self._chunk(event.index, dump_json(_reasoning(event.text)), b"null", b"null")
        if isinstance(event, ToolCallDelta):
            return self._chunk(event.index, dump_json({"tool_calls": [_call_delta(event)]}), b"null", b"null")
        return b""

    def _chunk(self, index: int, delta: bytes, logprobs: bytes, finish_reason: bytes) -> bytes:
        choice = b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (index, delta, logprobs, finish_reason)
        return self._start + choice + self._end

    def _usage_chunk(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return b""
        return self._start + b'],"usage":' + dump_json(_usage(usage)) + b"}\n\n"

    def _timings_chunk(self, finished: Finished) -> bytes:
        if self._timings_of is None:
            return b""
        # as in all chunks but that with the usage, the end says that there is none
        timings = dump_json(wire_timings(finished, self._timings_of()))
        return self._start + b'],"timings":' + timings + self._end.removeprefix(b"]")


class CompletionCollector:
    """Gathers events into one completion object."""

    def __init__(self, head: CompletionHead, n: int, *, logprobs: bool) -> None:
        self._head = head
        self._choices = [_Choice(index) for index in range(n)]
        self._logprobs = logprobs
        self._finished: Finished | None = None

    def add(self, batch: Sequence[Event]) -> None:
        """Take the next events.

        Raises:
            LlmspellError: the answer failed.

        """
        for event in batch:
            if isinstance(event, TextDelta):
                choice = self._choices[event.index]
                choice.texts.append(event.text)
                choice.logprobs.extend(event.logprobs)
            elif isinstance(event, ReasoningDelta):
                self._choices[event.index].reasoning.append(event.text)
            elif isinstance(event, ToolCallDelta):
                self._choices[event.index].add_call(event)
            elif isinstance(event, ChoiceFinished):
                self._choices[event.index].finish_reason = event.reason.value
            elif isinstance(event, Finished):
                self._finished = event
            elif isinstance(event, Failed):
                raise event.error

    def result(self) -> tuple[dict[str, object], Finished]:
        """Build the completion object once all events are in; with it comes what the answer took.

        Raises:
            BackendError: the events ended before the answer was complete.

        """
        if self._finished is None:
            raise BackendError(_ENDED_EARLY)
        choices = [choice.to_wire(with_logprobs=self._logprobs) for choice in self._choices]
        usage = _usage(self._finished.usage)
        return {**self._head.to_wire("chat.completion"), "choices": choices, "usage": usage}, self._finished


@dataclass(slots=True)
class _Choice:
    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, _Call] = field(default_factory=dict)
    finish_reason: str | None = None

    def add_call(self, delta: ToolCallDelta) -> None:
        call = self.calls.setdefault(delta.call, _Call())
        call.id = call.id if delta.id is None else delta.id
        call.name = call.name if delta.name is None else delta.name
        call.arguments.append(delta.arguments)

    def to_wire(self, *, with_logprobs: bool) -> dict[str, object]:
        return {
            "index": self.index,
            "message": self._message(),
            "logprobs": _logprobs(self.logprobs) if with_logprobs else None,
            "finish_reason": self.finish_reason,
        }

    def _message(self) -> dict[str, object]:
        text = "".join(self.texts)
        message: dict[str, object] = {
            "role": "assistant",
            "content": text if text or not self.calls else None,
            "refusal": None,
            "annotations": [],
        }
        if self.reasoning:
            message |= _reasoning("".join(self.reasoning))
        if self.calls:
            message["tool_calls"] = [call.to_wire() for _, call in sorted(self.calls.items())]
        return message


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def to_wire(self) -> dict[str, object]:
        return _function_call(self.id, self.name, "".join(self.arguments))


def _function_call(call_id: str, name: str, arguments: str) -> dict[str, object]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _call_delta(delta: ToolCallDelta) -> dict[str, object]:
    if delta.id is None or delta.name is None:
        return {"index": delta.call, "function": {"arguments": delta.arguments}}
    return {"index": delta.call, **_function_call(delta.id, delta.name, delta.arguments)}


def _reasoning(text: str) -> dict[str, object]:
    """Give reasoning under both names that clients look for: DeepSeek's and OpenRouter's."""
    return {"reasoning_content": text, "reasoning": text}


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, object]:
    content = [{**_token(token), "top_logprobs": [_token(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _token(token: TokenLogprob) -> dict[str, object]:
    return {
        "token": token.token,
        "logprob": max(token.logprob, _MIN_LOGPROB),
        "bytes": list(token.token_bytes),
    }


def _usage(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
