"""The interfaces between layers that may not import each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self

from server.core.errors import LlmspellError
from server.core.events import Event
from server.core.model_spec import BackendName, ModelSpec
from server.core.parameters import ParameterSupport
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
    """Something that runs models.

    Models are named by name and variant, without provider (``llama3.1:8b``); a backend also knows its models by the
    names that mean the same (``llama3.1:latest`` for ``llama3.1``).
    """

    @property
    def name(self) -> BackendName:
        """The backend's name in model specs."""
        ...

    @property
    def parameters(self) -> Mapping[str, ParameterSupport]:
        """What becomes of each parameter of a chat request; one that is missing is refused."""
        ...

    async def chat(self, request: ChatRequest) -> EventStream:
        """Admit a request and start it.

        Raises:
            LlmspellError: the request is refused. Everything that can be refused is refused here, before the first
                byte of an answer.

        """
        ...

    async def models(self) -> Sequence[ModelCard]:
        """List the models this backend can serve; of a backend that is down, none."""
        ...

    def preloaded(self) -> Sequence[ModelCard]:
        """List the models that must be in memory before the server is ready."""
        ...

    async def model(self, model: str) -> ModelCard | None:
        """Describe one model; ``None`` if it cannot be served."""
        ...

    async def has_model(self, spec: ModelSpec) -> bool:
        """Whether the model can be served, as far as is known without a wait that a request would feel."""
        ...

    async def look_again(self) -> bool:
        """Look whether a backend that seemed to be down is back; return whether ``has_model`` is worth asking again."""
        ...

    def refusal(self, spec: ModelSpec) -> LlmspellError | None:
        """Return why a model that is not served, but might be, is not: the backend is down, say."""
        ...
