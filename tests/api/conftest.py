"""An application over a scripted backend: driven in memory, or served by uvicorn on a real port."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from api.scripted import ScriptedBackend, ScriptedResidency
from api.scripted_library import ScriptedDaemon, ScriptedLibrary
from api.serving import Served, client_of, serving
from server.api.application import create_api
from server.api.config import ApiConfig
from server.core.model_spec import BackendName
from server.library import ModelLibrary
from server.router import ModelRouter


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
def residency() -> ScriptedResidency:
    return ScriptedResidency()


@pytest.fixture
def disk() -> ScriptedLibrary:
    """The models of this process on disk."""
    return ScriptedLibrary()


@pytest.fixture
def daemon_disk() -> ScriptedLibrary:
    """The models of an Ollama daemon on disk."""
    return ScriptedLibrary(BackendName.OLLAMA, present=[])


@pytest.fixture
def library(disk: ScriptedLibrary, daemon_disk: ScriptedLibrary) -> ModelLibrary:
    return ModelLibrary([disk, daemon_disk], BackendName.OLLAMA)


@pytest.fixture
def daemon() -> ScriptedDaemon:
    """The memory of an Ollama daemon."""
    return ScriptedDaemon()


@pytest.fixture
def config() -> ApiConfig:
    """The configuration of ``app``; tests override it by parametrizing ``config`` directly."""
    return ApiConfig()


@pytest.fixture
def app(
    backend: ScriptedBackend,
    config: ApiConfig,
    residency: ScriptedResidency,
    library: ModelLibrary,
    daemon: ScriptedDaemon,
) -> FastAPI:
    router = ModelRouter([backend], {"gpt-4o-mini": "local/demo"})
    return create_api(router, config, residency=residency, library=library, daemon=daemon)


@pytest.fixture
async def local(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client that may administer."""
    async with client_of(app) as client:
        yield client


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
async def served(app: FastAPI) -> AsyncIterator[Served]:
    async with serving(app) as served:
        yield served
