"""What the endpoints work with."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

from fastapi import FastAPI, Request

from server.api.config import ApiConfig
from server.core.library import Loadable
from server.core.ports import Residency
from server.library import ModelLibrary
from server.router import ModelRouter


@dataclass(frozen=True, slots=True)
class Services:
    """The collaborators of all endpoints, made once per application.

    Attributes:
        router: where requests go.
        config: what the operator says about the HTTP surface.
        residency: the memory of this process; without it nothing is administered.
        library: the models on disk; without it there is no pulling, listing or deleting of them.
        daemon: the memory of the Ollama daemon; without it its models are not loaded and unloaded.
        started: when the application was made.

    """

    router: ModelRouter
    config: ApiConfig
    residency: Residency | None = None
    library: ModelLibrary | None = None
    daemon: Loadable | None = None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))


def install_services(app: FastAPI, services: Services) -> None:
    """Make the services available to the endpoints of ``app``."""
    app.state.services = services


def services_of(request: Request) -> Services:
    """Return the services of the application that serves ``request``."""
    return cast("Services", request.app.state.services)
