"""An application over a scripted backend: driven in memory, or served by uvicorn on a real port."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from api.scripted import ScriptedBackend, ScriptedResidency
from api.serving import Served, serving
from server.api.application import create_api
from server.api.config import ApiConfig
from server.router import ModelRouter


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
def residency() -> ScriptedResidency:
    return ScriptedResidency()


@pytest.fixture
def config() -> ApiConfig:
    """The configuration of ``app``; tests override it by parametrizing ``config`` directly."""
    return ApiConfig()


@pytest.fixture
def app(backend: ScriptedBackend, config: ApiConfig, residency: ScriptedResidency) -> FastAPI:
    return create_api(ModelRouter([backend], {"gpt-4o-mini": "local/demo"}), config, residency=residency)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
async def served(app: FastAPI) -> AsyncIterator[Served]:
    async with serving(app) as served:
        yield served
