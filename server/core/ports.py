"""The interfaces between layers that may not import each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self

from server.core.events import Event
from server.core.model_spec import BackendName
from server.core.request import ChatRequest


class ModelState(StrEnum):
    """Where a model stands between its file and memory."""

    COLD = "cold"
    LOADING = "loading"
    WARM = "warm"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that a backend can serve.

    ``model`` is the name without provider (``llama3.1:8b``); ``created`` is Unix time in seconds; ``size_bytes`` is the
    size on disk; ``context_length`` counts tokens of one sequence.
    """

    model: str
    backend: BackendName
    state: ModelState
    created: int
    size_bytes: int
    context_length: int | None
    capabilities: tuple[str, ...] = ("chat",)
    preload: bool = False


class EventStream(Protocol):
    """The events of one accepted request.

    Iteration yields batches: all the events that were ready together, never empty. It does not raise; a failure is a
    ``Failed`` event. ``aclose`` may be called at any time, in any state and more than once: it aborts what still runs.
    """

    def __aiter__(self) -> Self:
        """Return itself."""
        ...

    async def __anext__(self) -> Sequence[Event]:
        """Wait for the next batch of events."""
        ...

    async def aclose(self) -> None:
        """Abort the request if it still runs and free what it holds."""
        ...


class Backend(Protocol):
    """Something that runs models."""

    @property
    def name(self) -> BackendName:
        """The backend's name in model specs."""
        ...

    async def chat(self, request: ChatRequest) -> EventStream:
        """Admit a request and start it.

        Raises:
            LlmspellError: the request is refused. Everything that can be refused is refused here, before the first
                byte of an answer.

        """
        ...

    async def models(self) -> Sequence[ModelCard]:
        """List the models this backend can serve."""
        ...

    async def has_model(self, model: str) -> bool:
        """Whether ``model`` (name and variant, without provider) can be served."""
        ...
