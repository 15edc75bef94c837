"""``GET /admin/status``: the server at a glance."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from server import __version__
from server.api.administration import Administered, Stored, refuse_unknown_query
from server.api.residency import daemon_models, device_entry, is_in_memory, loaded_entry, own_models, readiness, utc
from server.api.responses import JsonResponse
from server.api.services import services_of
from server.core.library_json import active_pull_json, health_json

routes = APIRouter(prefix="/admin", tags=["Administration"])


@routes.get("/status", response_class=Response)
async def show_status(request: Request, administration: Administered, disk: Stored) -> Response:
    """Tell which backends are there, what is in memory, and what is being pulled; loads and starts nothing."""
    refuse_unknown_query(request)
    router, residency = administration.router, administration.residency
    backends, listed = await asyncio.gather(disk.library.health(), router.models())
    models = (*own_models(listed, residency.statuses()), *daemon_models(listed))
    return JsonResponse(
        {
            "object": "status",
            "version": __version__,
            "started": utc(services_of(request).started.timestamp()),
            "ready": readiness(router.preloaded().values()) == "ready",
            "backends": [health_json(each) for each in backends],
            "devices": [device_entry(each) for each in residency.devices()],
            "models": [loaded_entry(each, status) for each, status in models if is_in_memory(status)],
            "pulls": [active_pull_json(each) for each in disk.library.active()],
        }
    )
