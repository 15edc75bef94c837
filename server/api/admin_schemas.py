"""What ``/admin`` answers, as types for ``/openapi.json``.

The answers are built by ``server.api.residency`` and ``server.core.library_json``; tests hold them against these types.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["cold", "loading", "warm", "draining", "failed"]
Backend = Literal["ollama", "llamacpp"]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Shown(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ErrorObject(Shown):
    """What went wrong, and what to do about it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(Shown):
    """An error, as an answer or as the last event of a stream."""

    error: ErrorObject


class DeviceEntry(Shown):
    """A device that models of this process can be in; ``CPU`` is main memory."""

    name: str
    description: str
    budget_bytes: int = Field(description="What models may take there.")
    taken_bytes: int = Field(description="What models take there, as far as is known.")
    free_bytes: int


class PredictedAndMeasured(Shown):
    """Bytes that a model takes on a device."""

    predicted: int
    measured: int | None


class SavedPrompts(Shown):
    """Prompts of finished requests that are kept in main memory."""

    count: int
    bytes: int


class FirstTokenTimes(Shown):
    """How long the latest requests of a model waited for their first token."""

    count: int
    median_ms: float | None
    target_ms: float | None
    attainment: Fraction | None


class AdministeredModel(Shown):
    """A model and the memory it takes; of a model of the daemon, little is known."""

    id: str
    object: Literal["model"]
    backend: Backend
    state: State
    size_bytes: int
    memory_bytes: int | None
    pinned: bool
    preload: bool
    bytes: dict[str, PredictedAndMeasured] = Field(description="By device.")
    leases: int = Field(description="Requests that use it.")
    waiting: int = Field(description="Requests that wait for it to be loaded.")
    last_use: Time | None
    keep_alive_until: Time | None
    context_length: int | None
    kv_cells: int | None
    gpu_layers: int | None
    saved_prompts: SavedPrompts
    load_seconds: float | None
    progress: Fraction | None
    failure: str | None
    ttft: FirstTokenTimes


class AdministeredModels(Shown):
    """The models of this process, and the devices that they are on."""

    object: Literal["list"]
    data: list[AdministeredModel]
    devices: list[DeviceEntry]


class BackendEntry(Shown):
    """Whether a backend is there."""

    name: Backend
    up: bool
    version: str | None
    url: str | None
    reason: str | None = Field(description="Why it is not up.")


class LoadedModel(Shown):
    """A model that is in memory, on its way there, or on its way out; ``null`` is what the daemon does not tell."""

    id: str
    backend: Backend
    state: State
    size_bytes: int
    memory_bytes: int | None
    leases: int | None
    waiting: int | None
    keep_alive_until: Time | None
    progress: Fraction | None


class ActivePullEntry(Shown):
    """A pull that goes on; figures are missing as long as nothing is known."""

    model: str
    quantization: str | None
    backend: Backend
    status: str
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_second: int = 0
    seconds_left: float | None = None


class ServerStatus(Shown):
    """The server at a glance."""

    object: Literal["status"]
    version: str
    started: Time
    ready: bool = Field(description="Whether all models that are loaded at start have been.")
    backends: list[BackendEntry]
    devices: list[DeviceEntry]
    models: list[LoadedModel]
    pulls: list[ActivePullEntry]


class LibraryEntry(Shown):
    """A model on disk."""

    id: str | None = Field(description="A spec that selects it; null for a file that has no name.")
    object: Literal["model"]
    name: str | None
    backend: Backend
    source: str = Field(description="own, folder, config, ollama, huggingface, lmstudio or daemon.")
    state: State | None
    size_bytes: int
    modified: Time | None
    path: str | None
    quantization: str | None
    parameters: str | None
    context_length: int | None
    capabilities: list[str]
    digest: str | None
    other_names: list[str]
    copies: list[str]
    problem: str | None = Field(description="Why it cannot be used.")


class LibraryEntries(Shown):
    """The models on disk."""

    object: Literal["list"]
    data: list[LibraryEntry]


class TemplateEntry(Shown):
    """Where the chat template comes from, and what it can express."""

    source: str | None
    capabilities: list[str]


class MemoryEntry(Shown):
    """What the model would take with one sequence of that many tokens."""

    context_length: int
    bytes: int


class LibraryDetails(LibraryEntry):
    """All that is known of a model on disk."""

    architecture: str | None
    title: str | None
    licence: str | None
    template: TemplateEntry
    files: list[str]
    projectors: list[str]
    system: str | None
    defaults: dict[str, Any]
    memory: list[MemoryEntry]
    notes: list[str]


class DeletedModel(Shown):
    """What was deleted."""

    id: str
    object: Literal["model"]
    deleted: Literal[True]
    paths: list[str]
    freed_bytes: int


class CancelledPulls(Shown):
    """How many pulls were ended."""

    cancelled: int


class PullProgressEvent(Shown):
    """How far a pull is."""

    status: Literal["queued", "waiting", "checking", "downloading", "done"]
    done_bytes: int
    total_bytes: int
    bytes_per_second: int
    seconds_left: float | None


class PullNoticeEvent(Shown):
    """Something that whoever waits should know."""

    status: Literal["notice"]
    message: str


class PullSuccessEvent(Shown):
    """The model is here; the last event before ``[DONE]``, and the whole answer without a stream."""

    status: Literal["success"]
    id: str
    paths: list[str]
