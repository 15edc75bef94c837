"""What a backend says while it answers: the one event type for both backends.

A stream is ``Started (TextDelta | ReasoningDelta | ToolCallDelta | ChoiceFinished)* (Finished | Failed)``, or
``Failed`` alone when a request fails while it waits. Events carry the ``index`` of the choice they belong to; nothing
follows ``Finished`` or ``Failed``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from server.core.errors import LlmspellError


class FinishReason(StrEnum):
    """Why a choice ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural-log probability under the model, before temperature and filters."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The request left the queue and is being computed."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of one choice: whole UTF-8 characters, never part of a stop string."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """New text of what the model thinks before it answers."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a function call.

    ``call`` numbers the calls of the choice. The first part of a call carries ``id`` and ``name``; ``arguments`` is a
    piece of JSON text, and the pieces of one call make the whole.
    """

    index: int
    call: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """One choice is complete."""

    index: int
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of the whole request; the prompt counts once, whatever ``n`` is.

    ``reasoning_tokens`` are those of the completion that the model spent on thinking.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a request went, in seconds.

    Attributes:
        queued: waiting: for memory to load the model into, for a sequence and for KV cells.
        load: waiting for the model to be loaded.
        prompt: preparing and computing the prompt.
        first_token: from the arrival at the backend to the first token: all of the above.
        decode: from the first token to the last.

    """

    queued: float = 0.0
    load: float = 0.0
    prompt: float = 0.0
    first_token: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """All choices are complete."""

    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """The request cannot be completed; what was sent before stays valid."""

    error: LlmspellError


Event = Started | TextDelta | ReasoningDelta | ToolCallDelta | ChoiceFinished | Finished | Failed
