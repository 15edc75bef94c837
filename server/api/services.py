"""What the endpoints work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from fastapi import FastAPI, Request

from server.api.config import ApiConfig
from server.core.ports import Residency
from server.router import ModelRouter


@dataclass(frozen=True, slots=True)
class Services:
    """The collaborators of all endpoints, made once per application; without ``residency`` nothing is administered."""

    router: ModelRouter
    config: ApiConfig
    residency: Residency | None


def install_services(app: FastAPI, services: Services) -> None:
    """Make the services available to the endpoints of ``app``."""
    app.state.services = services


def services_of(request: Request) -> Services:
    """Return the services of the application that serves ``request``."""
    return cast("Services", request.app.state.services)
