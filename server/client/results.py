"""What the client returns, where ``core.library`` has nothing that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from server.core.library import ActivePull, BackendHealth
from server.core.model_spec import BackendName
from server.core.ports import DeviceMemory, ModelState


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, as far as memory is concerned.

    Attributes:
        id: a spec that selects it.
        backend: whose it is.
        state: where it stands.
        size_bytes: of its files.
        memory_bytes: what it takes in memory; ``None`` if it is not there, or if that is not known.
        num_leases: requests that use it; like the next one ``None`` for a model of the daemon, which does not say it.
        num_waiting: requests that wait for it to be loaded.
        keep_alive_until: when it is unloaded if nobody uses it; ``None`` for never, or if it is not known.
        progress: of the load that goes on, from 0 to 1; ``None`` without one.

    """

    id: str
    backend: BackendName
    state: ModelState
    size_bytes: int
    memory_bytes: int | None = None
    num_leases: int | None = None
    num_waiting: int | None = None
    keep_alive_until: datetime | None = None
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What a server says of itself.

    Attributes:
        version: of the server.
        started: when it was started.
        is_ready: whether everything that it preloads has been loaded.
        backends: whether each is there.
        devices: memory that models of the server's own process can be in.
        models: those that are in memory, on their way in, or on their way out.
        pulls: downloads that go on.
        document: all of it as JSON values, as the server sent it.

    """

    version: str
    started: datetime | None
    is_ready: bool
    backends: tuple[BackendHealth, ...] = ()
    devices: tuple[DeviceMemory, ...] = ()
    models: tuple[LoadedModel, ...] = ()
    pulls: tuple[ActivePull, ...] = ()
    document: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)
