"""The composition root: the only file that names the concrete classes of all layers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI

from server.api.application import create_api
from server.app_library import create_library
from server.backends.llamacpp import LlamaCppBackend
from server.backends.ollama.backend import OllamaBackend
from server.config import Settings, cache_directory, inherited_environment
from server.config_sources import home_directory
from server.core.model_spec import BackendName, equivalent_names, parse_model_spec
from server.core.ports import Backend, Residency
from server.core.request import ReasoningOutput
from server.pool.config import ModelConfig
from server.pool.footprint_file import FootprintFile
from server.pool.pool import Pool
from server.router import ModelRouter
from server.store.places import Surroundings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Application:
    """The HTTP application, and ``preload``, which loads what the settings want in memory from the start.

    ``preload`` raises ``ModelLoadingFailed`` if a model cannot be loaded; requests may arrive meanwhile. ``wind_down``
    is called when a shutdown begins: it ends what is not worth waiting for, because it goes on later. ``router`` and
    ``residency`` are what is behind the HTTP application, for who uses it without HTTP, within the application's life.
    """

    api: FastAPI
    preload: Callable[[], Awaitable[None]]
    wind_down: Callable[[], object]
    router: ModelRouter
    residency: Residency


def create_application(settings: Settings) -> Application:
    """Wire everything up; nothing is loaded yet.

    Raises:
        ConfigurationError: the settings contradict each other.

    """
    models = {parse_model_spec(spec).model: config for spec, config in settings.models.items()}
    footprints = FootprintFile(cache_directory() / "footprints.json")
    disk = create_library(
        settings.store,
        settings.llamacpp,
        settings.ollama,
        models,
        settings.routing.prefer,
        Surroundings(inherited_environment(), home_directory()),
        cache_directory(),
    )
    pool = Pool(models, settings.llamacpp, index=disk.index, footprints=footprints)
    backends: list[Backend] = [LlamaCppBackend(pool)]
    ollama = _ollama(settings, models)
    if ollama is not None:
        backends.append(ollama)
    fetcher = disk.library if settings.store.auto_pull else None
    router = ModelRouter(backends, settings.aliases, settings.routing, fetcher)

    async def take_notice(backend: BackendName) -> None:
        if backend is BackendName.LLAMACPP:
            await pool.take_notice()
        elif ollama is not None:
            await ollama.take_notice()

    disk.library.watch(take_notice)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if ollama is not None:
            ollama.start()
        try:
            yield
        finally:
            await pool.close()
            await disk.library.aclose()
            if ollama is not None:
                await ollama.aclose()

    async def preload() -> None:
        await pool.preload()
        if ollama is None and not await pool.cards():
            _log.warning(
                "there is no model to serve yet; download one with `llmspell model pull`, put one into a folder of "
                "[llamacpp] model_dirs, or try the bundled one with `llmspell serve --demo`"
            )

    api = create_api(router, settings.api, lifespan, pool, disk.library, disk.ollama)
    return Application(api, preload, disk.library.end_pulls, router, pool)


def _ollama(settings: Settings, models: Mapping[str, ModelConfig]) -> OllamaBackend | None:
    if not settings.ollama.enabled:
        return None

    def reasoning(model: str) -> ReasoningOutput:
        return next((models[name] for name in equivalent_names(model) if name in models), ModelConfig()).reasoning

    return OllamaBackend(settings.ollama, inherited_environment(), reasoning=reasoning)
