"""Probes for orchestrators and load balancers, and a signpost at ``/``."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.residency import readiness
from server.api.responses import JsonResponse
from server.api.services import services_of

routes = APIRouter(tags=["Health"])


@routes.api_route("/health/live", methods=["GET", "HEAD"], response_class=Response, include_in_schema=False)
async def live() -> Response:
    """Answer 200 as long as the process serves requests at all."""
    return JsonResponse({"status": "live"})


@routes.api_route("/health", methods=["GET", "HEAD"], response_class=Response, include_in_schema=False)
@routes.api_route("/health/ready", methods=["GET", "HEAD"], response_class=Response, include_in_schema=False)
async def ready(request: Request) -> Response:
    """Answer 200 when all preloaded models have been loaded, else 503 with their states."""
    models = services_of(request).router.preloaded()
    status = readiness(models.values())
    states = {name: model.card.state.value for name, model in models.items()}
    code = HTTPStatus.OK if status == "ready" else HTTPStatus.SERVICE_UNAVAILABLE
    return JsonResponse({"status": status, "models": states}, code)


@routes.get("/", response_class=Response, include_in_schema=False)
async def signpost() -> Response:
    """Say where things are."""
    return JsonResponse({"name": "llmspell", "models": "/v1/models", "documentation": "/docs"})
