"""The models on this machine's disks, in memory or not: what there is, getting more of it, deleting it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from server.core.model_spec import BackendName, ModelSpec
from server.core.ports import ModelState
from server.core.pulling import PullEvent, PullProgress


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model that a backend has, or would have if nothing were wrong with it.

    Attributes:
        model: name without provider, with which a spec selects it on ``backend``; empty for a file that has no name.
        backend: whose it is.
        source: whose folder it is in: ``own``, ``folder`` (configured), ``config`` (a file that the configuration
            names), ``ollama``, ``huggingface``, ``lmstudio``; ``daemon`` for a model of the Ollama daemon.
        size_bytes: of the weights.
        modified: Unix time in seconds; 0 if it is not known.
        path: the file that it is loaded by; ``None`` for a model of the daemon.
        quantization: as ``Q4_K_M``; like the next ones ``None`` while nothing is known of it: a list reads no files.
        parameters: as ``8.0B``.
        context_length: tokens that it was trained for.
        capabilities: ``chat``, ``tools``, ``vision``, ``thinking``, ``embedding``; empty while nothing is known.
        digest: SHA-256 of the weights, or the daemon's digest of the model.
        other_names: further names that mean it, those of copies in other places included.
        copies: where the same weights are once more.
        problem: why it cannot be used; ``None`` if nothing is known to be wrong.
        state: whether it is in memory; ``None`` if that is not known, because no server was asked.

    """

    model: str
    backend: BackendName
    source: str
    size_bytes: int
    modified: int = 0
    path: Path | None = None
    quantization: str | None = None
    parameters: str | None = None
    context_length: int | None = None
    capabilities: tuple[str, ...] = ()
    digest: str | None = None
    other_names: tuple[str, ...] = ()
    copies: tuple[Path, ...] = ()
    problem: str | None = None
    state: ModelState | None = None


@dataclass(frozen=True, slots=True)
class PredictedMemory:
    """What a model would take with one sequence of ``context_length`` tokens, all on one device, in bytes."""

    context_length: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """All that is known of a model.

    Attributes:
        installed: what a list says.
        architecture: as ``llama``; ``None`` if it is not known.
        name: what its maker calls it.
        licence: its name, or the beginning of its text.
        template: where the chat template comes from (``file``, ``manifest``, ``config``, ``default``, ``daemon``).
        template_capabilities: what the template can express: ``system``, ``tools``, ``thinking``, ``images``.
        files: all files, projectors excluded.
        projectors: encoders for images and sound that go with it.
        system: the system message that it brings along.
        defaults: sampling parameters that it brings along.
        memory: predictions at several context lengths; none where nothing can be predicted.
        notes: what an operator should know: differences from Ollama, parameters that are ignored.

    """

    installed: InstalledModel
    architecture: str | None = None
    name: str | None = None
    licence: str | None = None
    template: str | None = None
    template_capabilities: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    projectors: tuple[Path, ...] = ()
    system: str | None = None
    defaults: Mapping[str, object] = field(default_factory=dict)
    memory: tuple[PredictedMemory, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deleted:
    """What was deleted.

    Attributes:
        model: its name without provider.
        backend: whose it was.
        paths: the files that are gone; none for a model of the daemon.
        freed_bytes: what their disk has more now, as far as is known.

    """

    model: str
    backend: BackendName
    paths: tuple[Path, ...] = ()
    freed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ActivePull:
    """A pull that goes on in this process, with the spec that was asked for."""

    spec: ModelSpec
    quantization: str | None
    backend: BackendName
    progress: PullProgress | None


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """Whether a backend is there.

    Attributes:
        name: the backend.
        is_up: whether it can be asked for something now.
        version: the daemon's, or llama.cpp's if that is known.
        url: where the daemon is; ``None`` for what runs in this process.
        reason: why it is not up.

    """

    name: BackendName
    is_up: bool
    version: str | None = None
    url: str | None = None
    reason: str | None = None


class Library(Protocol):
    """The models that one backend has on disk. Names are without provider, and mean what they mean to ``Backend``."""

    @property
    def backend(self) -> BackendName:
        """The backend that runs these models."""
        ...

    async def health(self) -> BackendHealth:
        """Look whether the backend is there; quickly, and without starting anything."""
        ...

    async def models(self) -> Sequence[InstalledModel]:
        """List the models, those that cannot be used included; of a daemon that is down, none."""
        ...

    async def find(self, name: str) -> InstalledModel | None:
        """Return the model that a name means."""
        ...

    async def details(self, name: str) -> ModelDetails:
        """Find out all about a model.

        Raises:
            ModelNotFound: there is no such model.
            LlmspellError: it cannot be found out.

        """
        ...

    def can_pull(self, spec: ModelSpec) -> bool:
        """Whether a name stands for something that ``pull`` would look for, without asking anybody."""
        ...

    def pull(self, spec: ModelSpec, quantization: str | None = None) -> AsyncGenerator[PullEvent]:
        """Download what is missing of a model; the last event is ``PullFinished``.

        Who asks for what is being downloaded already joins in. The download ends when the last one has closed the
        generator; what has come by then is kept, and the next pull continues it.

        Raises:
            LlmspellError: while iterating; it cannot be downloaded or stored.

        """
        ...

    async def delete(self, name: str) -> Deleted:
        """Delete a model from the disk.

        Raises:
            ModelNotFound: there is no such model.
            LlmspellError: it is in use, belongs to somebody else, or cannot be deleted.

        """
        ...


class Loadable(Protocol):
    """The memory of a backend that is a program of its own: the Ollama daemon's. Names are as for ``Library``."""

    async def load(self, name: str, keep_alive: str | float | None = None) -> None:
        """Have a model loaded and wait until it is in memory.

        Args:
            name: the model.
            keep_alive: how long it stays there without use: seconds, or a duration such as ``5m``; negative for ever,
                ``None`` for what the backend thinks right.

        Raises:
            LlmspellError: it cannot be loaded, does not exist, or the backend is down.

        """
        ...

    async def unload(self, name: str) -> None:
        """Have a model removed from memory; one that is not there is fine.

        Raises:
            LlmspellError: it does not exist, or the backend is down.

        """
        ...
