"""The composition root: the only file that names the concrete classes of all layers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from server.api.application import create_api
from server.backends.llamacpp import LlamaCppBackend
from server.backends.ollama.backend import OllamaBackend
from server.config import Settings, cache_directory, inherited_environment
from server.config_sources import home_directory
from server.core.model_spec import parse_model_spec
from server.core.ports import Backend, Residency
from server.pool.footprint_file import FootprintFile
from server.pool.pool import Pool
from server.router import ModelRouter
from server.store.header_cache import HeaderCache
from server.store.model_index import ModelIndex
from server.store.places import Source, Surroundings, model_places, own_folder
from server.store.recommended import load_recommended

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Application:
    """The HTTP application, and ``preload``, which loads what the settings want in memory from the start.

    ``preload`` raises ``ModelLoadingFailed`` if a model cannot be loaded; requests may arrive meanwhile. ``router`` and
    ``residency`` are what is behind the HTTP application, for who uses it without HTTP, within the application's life.
    """

    api: FastAPI
    preload: Callable[[], Awaitable[None]]
    router: ModelRouter
    residency: Residency


def create_application(settings: Settings) -> Application:
    """Wire everything up; nothing is loaded yet.

    Raises:
        ConfigurationError: the settings contradict each other.

    """
    models = {parse_model_spec(spec).model: config for spec, config in settings.models.items()}
    footprints = FootprintFile(cache_directory() / "footprints.json")
    pool = Pool(models, settings.llamacpp, index=_index(settings), footprints=footprints)
    backends: list[Backend] = [LlamaCppBackend(pool)]
    ollama = OllamaBackend(settings.ollama, inherited_environment()) if settings.ollama.enabled else None
    if ollama is not None:
        backends.append(ollama)
    router = ModelRouter(backends, settings.aliases, settings.routing)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if ollama is not None:
            ollama.start()
        try:
            yield
        finally:
            await pool.close()
            if ollama is not None:
                await ollama.aclose()

    async def preload() -> None:
        await pool.preload()
        if ollama is None and not await pool.cards():
            _log.warning(
                "there is no model to serve yet; download one with `llmspell model pull`, put one into a folder of "
                "[llamacpp] model_dirs, or try the bundled one with `llmspell serve --demo`"
            )

    return Application(create_api(router, settings.api, lifespan, residency=pool), preload, router, pool)


def _index(settings: Settings) -> ModelIndex:
    surroundings = Surroundings(inherited_environment(), home_directory())
    store = settings.store
    recommended = load_recommended(Path(store.recommended) if store.recommended else None)
    own = Path(store.models_dir) if store.models_dir else own_folder(surroundings)
    places = model_places(own, settings.llamacpp.model_dirs, surroundings)
    if not store.discover:
        places = tuple(place for place in places if place.source in {Source.OWN, Source.FOLDER})
    return ModelIndex(places, HeaderCache(cache_directory() / "headers.json"), short_names=recommended.names_of)
