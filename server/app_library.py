"""The composition root of what is on disk: for the server, and for commands that work without one.

It imports nothing that takes long: what speaks HTTP is imported when something is asked over the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.backends.llamacpp_library import LlamaCppLibrary
from server.backends.ollama.config import OllamaConfig
from server.backends.ollama.library import OllamaLibrary
from server.core.library import Library
from server.core.model_spec import BackendName
from server.library import ModelLibrary
from server.pool.config import ModelConfig, PoolConfig
from server.store.config import StoreConfig
from server.store.header_cache import HeaderCache
from server.store.lookout import real_folder
from server.store.model_index import ModelIndex
from server.store.places import Place, Surroundings, model_places, own_folder
from server.store.recommended import RecommendedModels, load_recommended

if TYPE_CHECKING:
    from server.store.download import Downloads
    from server.store.hub import Hub

_HEADERS_FILE = "headers.json"


@dataclass(frozen=True, slots=True)
class LibraryParts:
    """What is known of models on disk.

    Attributes:
        library: all backends' models; ``aclose`` it in the end.
        index: the files on this machine, by name.
        recommended: models worth trying.
        own: the folder for what is downloaded.
        ollama: the daemon's models, which can also be loaded and unloaded; ``None`` where it is switched off.

    """

    library: ModelLibrary
    index: ModelIndex
    recommended: RecommendedModels
    own: Path
    ollama: OllamaLibrary | None


def create_library(
    store: StoreConfig,
    llamacpp: PoolConfig,
    ollama: OllamaConfig,
    models: Mapping[str, ModelConfig],
    prefer: BackendName,
    surroundings: Surroundings,
    cache: Path,
) -> LibraryParts:
    """Wire everything up; no folder is looked into, and nothing is asked over the network.

    Args:
        store: section ``[store]``.
        llamacpp: section ``[llamacpp]``.
        ollama: section ``[ollama]``.
        models: the tables ``[models."local/…"]``, by name or spec.
        prefer: which backend a spec means that names none.
        surroundings: the environment and the home folder.
        cache: the folder for what can be found out again.

    Raises:
        ConfigurationError: the file with recommended models, or the daemon's URL, cannot be used.

    """
    own = surroundings.expanded(store.models_dir) if store.models_dir else own_folder(surroundings)
    recommended = load_recommended(surroundings.expanded(store.recommended) if store.recommended else None)
    headers = HeaderCache(cache / _HEADERS_FILE)
    places = _places(store, llamacpp, own, surroundings)
    index = ModelIndex(places, headers, short_names=recommended.names_of)
    hub = _LazyHub(own, surroundings)
    files = LlamaCppLibrary(index, headers, own, recommended, models, hub.downloads)
    daemon = OllamaLibrary(ollama, surroundings.environ) if ollama.enabled else None
    libraries: list[Library] = [files] if daemon is None else [files, daemon]
    closers = [hub.aclose] if daemon is None else [hub.aclose, daemon.aclose]
    return LibraryParts(ModelLibrary(libraries, prefer, closers), index, recommended, own, daemon)


def _places(store: StoreConfig, llamacpp: PoolConfig, own: Path, surroundings: Surroundings) -> tuple[Place, ...]:
    places = model_places(own, llamacpp.model_dirs, surroundings)
    if store.discover:
        return places
    wanted = {real_folder(path) for path in (own, *map(surroundings.expanded, llamacpp.model_dirs))}
    return tuple(place for place in places if real_folder(place.path) in wanted)


class _LazyHub:
    """The hub and what downloads from it, made for the first pull."""

    def __init__(self, own: Path, surroundings: Surroundings) -> None:
        self._own = own
        self._surroundings = surroundings
        self._hub: Hub | None = None

    def downloads(self) -> Downloads:
        from server.store.download import Downloads  # noqa: PLC0415 - httpx takes longer to import than all the rest
        from server.store.hub import Hub  # noqa: PLC0415
        from server.store.hub_settings import hub_settings  # noqa: PLC0415

        self._hub = Hub(hub_settings(self._surroundings.environ, self._surroundings.home))
        return Downloads(self._hub, self._own)

    async def aclose(self) -> None:
        if self._hub is not None:
            self._hub.close()
