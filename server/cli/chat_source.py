"""Who answers in ``llmspell chat``, seen from the terminal: a running server, or the models of this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How is answered; ``None`` leaves it to the model and its backend."""

    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the answer waits for: ``loading 42%``."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete.

    Attributes:
        reason: why it ended, in OpenAI's words.
        timings: where the time went, as ``stream_options.include_timings`` says it.

    """

    reason: str | None
    timings: Mapping[str, object] = field(default_factory=dict)


Piece = Text | Reasoning | Waiting | Ended


class ChatSource(Protocol):
    """Something that answers with one model."""

    @property
    def spec(self) -> str:
        """The spec or alias that is asked."""
        ...

    @property
    def place(self) -> str:
        """Where the model runs, as the end of a sentence."""
        ...

    async def check(self) -> str:
        """Return the spec of the model that will answer.

        Raises:
            LlmspellError: there is no such model, or nobody who has it.

        """
        ...

    def answer(self, messages: Sequence[ChatMessage], options: ChatOptions) -> AsyncGenerator[Piece]:
        """Answer a conversation; the last piece is ``Ended``. Closing the generator ends the answer.

        Raises:
            LlmspellError: while iterating; there is no answer, or no more of it.

        """
        ...

    async def aclose(self) -> None:
        """Give everything back."""
        ...
