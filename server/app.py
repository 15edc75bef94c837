"""The composition root: the only file that names the concrete classes of all layers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI

from server.api.application import create_api
from server.backends.llamacpp import LlamaCppBackend
from server.backends.ollama.backend import OllamaBackend
from server.config import Settings, cache_directory, inherited_environment
from server.core.model_spec import parse_model_spec
from server.core.ports import Backend, Residency
from server.pool.footprint_file import FootprintFile
from server.pool.pool import Pool
from server.router import ModelRouter


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
    pool = Pool(models, settings.llamacpp, footprints=footprints)
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

    return Application(create_api(router, settings.api, lifespan, residency=pool), pool.preload, router, pool)
