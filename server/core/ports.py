"""The interfaces between layers that may not import each other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, Self

from server.core.errors import LlmspellError
from server.core.events import Event
from server.core.model_spec import BackendName, ModelSpec
from server.core.parameters import ParameterSupport
from server.core.pulling import PullEvent
from server.core.request import ChatRequest


class ModelState(StrEnum):
    """Where a model stands between its file and memory."""

    COLD = "cold"
    LOADING = "loading"
    WARM = "warm"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that a backend can serve.

    ``model`` is the name without provider (``llama3.1:8b``); ``created`` is Unix time in seconds; ``size_bytes`` is the
    size on disk; ``context_length`` counts tokens of one sequence; ``memory_bytes`` is what it takes in memory:
    ``None`` when it is not there, and for models of this process, of which ``Residency`` tells more.
    """

    model: str
    backend: BackendName
    state: ModelState
    created: int
    size_bytes: int
    context_length: int | None
    capabilities: tuple[str, ...] = ("chat",)
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PreloadedModel:
    """A model that is to be in memory from the start; ``is_ready`` says whether it has been, and has not failed since.

    One that made room for others later stays ready: the next request has it loaded again.
    """

    card: ModelCard
    is_ready: bool


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is that requests wait for.

    ``fraction`` is from 0 to 1; ``is_queued`` while it waits for memory; ``is_download`` while the model is not on this
    machine yet.
    """

    fraction: float
    is_queued: bool = False
    is_download: bool = False


class ModelFetcher(Protocol):
    """Gets models that requests name and that no backend has."""

    async def fetching_backend(self, spec: ModelSpec) -> BackendName | None:
        """Return the backend that would have the model afterwards; ``None`` if it is not known where to get it."""
        ...

    def pull(self, spec: ModelSpec) -> AsyncGenerator[PullEvent]:
        """Download a model; the last event is ``PullFinished``.

        Raises:
            LlmspellError: while iterating; it cannot be downloaded.

        """
        ...


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

    def preloaded(self) -> Sequence[PreloadedModel]:
        """List the models that must have been in memory before the server is ready."""
        ...

    def progress(self, model: str) -> LoadProgress | None:
        """Return how far the load of a model is; ``None`` if nobody has to wait for one, or if it is not known."""
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


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of one device, in bytes.

    Attributes:
        name: ``CPU`` for main memory, else ggml's name (``CUDA0``).
        description: what the device is.
        budget: what models may take there.
        taken: what models take there, as far as is known.

    """

    name: str
    description: str
    budget: int
    taken: int


@dataclass(frozen=True, slots=True)
class FirstTokenRecord:
    """How long the latest requests of a model waited for their first token.

    Attributes:
        count: requests that the figures are made of.
        median: seconds; ``None`` without requests.
        target: seconds that the operator aims at; ``None`` without a target.
        attainment: share of the requests that met the target, 0 to 1; ``None`` without requests or target.

    """

    count: int = 0
    median: float | None = None
    target: float | None = None
    attainment: float | None = None


@dataclass(frozen=True, slots=True)
class ResidencyStatus:
    """A model and the memory it takes.

    Attributes:
        model: name without provider.
        state: where it stands.
        is_pinned: whether it stays in memory once it is there.
        is_preloaded: whether it is loaded at start.
        predicted: bytes by device that were predicted for the latest load; empty before the first.
        measured: bytes by device that the latest load was measured to take; ``None`` before the first.
        num_leases: requests that use it.
        num_waiting: requests that wait for it to be loaded.
        last_use: Unix time of the latest use; ``None`` if there was none.
        keep_alive_until: Unix time at which it is unloaded if nobody uses it; ``None`` for never.
        context_length: tokens of one sequence; ``None`` before the first load.
        kv_cells: tokens of all sequences together; ``None`` before the first load.
        gpu_layers: layers that are on the GPU, the output matrix counted as one; ``None`` before the first load.
        num_saved: prompts of finished requests that are kept in main memory.
        saved_bytes: bytes that these take now.
        load_seconds: what the latest load took.
        progress: of the load that goes on.
        failure: why the latest load failed.
        first_token: of the requests since the server started.

    """

    model: str
    state: ModelState
    is_pinned: bool = False
    is_preloaded: bool = False
    predicted: Mapping[str, int] = field(default_factory=dict)
    measured: Mapping[str, int] | None = None
    num_leases: int = 0
    num_waiting: int = 0
    last_use: float | None = None
    keep_alive_until: float | None = None
    context_length: int | None = None
    kv_cells: int | None = None
    gpu_layers: int | None = None
    num_saved: int = 0
    saved_bytes: int = 0
    load_seconds: float | None = None
    progress: LoadProgress | None = None
    failure: str | None = None
    first_token: FirstTokenRecord = field(default_factory=FirstTokenRecord)


class Residency(Protocol):
    """Which models of this process are in memory, for operators. Models are named as for ``Backend``."""

    def devices(self) -> Sequence[DeviceMemory]:
        """List the devices that models can be in."""
        ...

    def statuses(self) -> Sequence[ResidencyStatus]:
        """List all models, in memory or not."""
        ...

    def status(self, model: str) -> ResidencyStatus | None:
        """Describe one model; ``None`` if it does not exist."""
        ...

    async def load(self, model: str) -> None:
        """Wait until a model is in memory, having it loaded if it is not.

        Raises:
            LlmspellError: it cannot be loaded, or does not exist.

        """
        ...

    async def unload(self, model: str, *, force: bool) -> None:
        """Wait until a model is out of memory.

        Requests that came before finish first; with ``force`` they end at once, with an error. Later ones have it
        loaded again. The call can be cancelled, the unload goes on.

        Raises:
            LlmspellError: it does not exist.

        """
        ...

    def pin(self, model: str, *, pinned: bool) -> None:
        """Keep a model in memory once it is there, or no longer.

        Raises:
            LlmspellError: it does not exist.

        """
        ...
