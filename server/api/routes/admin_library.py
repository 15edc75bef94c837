"""``/admin/library`` and ``/admin/models/pull``: the models on disk, getting more of them, deleting them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from server.api.administration import Disk, Stored, refuse_unknown_query
from server.api.answer import run_while_connected
from server.api.convert import parse_body
from server.api.middleware import note_access
from server.api.pull_stream import PullListener, PullStream, ended_early
from server.api.responses import JsonResponse
from server.api.schemas import PullBody, PullName
from server.api.services import services_of
from server.core.errors import InvalidRequest
from server.core.library_json import deleted_json, details_json, installed_json, pull_event_json
from server.core.model_spec import BackendName, ModelSpec
from server.core.pulling import PullEvent, PullFinished

routes = APIRouter(prefix="/admin", tags=["Administration"])

Backend = Annotated[str | None, Query(json_schema_extra={"enum": [*BackendName]})]


@routes.get("/library", response_class=Response)
async def list_library(request: Request, disk: Stored, backend: Backend = None) -> Response:
    """List the models on disk, those that cannot be used included; of a daemon that is down, none."""
    refuse_unknown_query(request, "backend")
    models = await disk.models(None if backend is None else _backend(backend))
    return JsonResponse({"object": "list", "data": [installed_json(model) for model in models]})


@routes.get("/library/{spec:path}", response_class=Response)
async def show_model(request: Request, disk: Stored, spec: str) -> Response:
    """Tell all about a model on disk; any spec or alias that selects it will do."""
    refuse_unknown_query(request)
    return JsonResponse(details_json(await disk.details(spec)))


@routes.post("/models/pull", response_class=Response)
async def pull_model(request: Request, disk: Stored) -> Response:
    """Download what is missing of a model, telling how far it is; the same request again goes on where it stopped."""
    body = parse_body(PullBody, await request.body())
    events = disk.library.pull(*_pull_of(request, disk, body))
    if body.stream:
        return PullStream(PullListener(events), services_of(request).config)
    return await run_while_connected(request.receive, _outcome(events))


@routes.post("/models/pull/cancel", response_class=Response)
async def cancel_pull(request: Request, disk: Stored) -> Response:
    """End a pull for everybody who waits for it; what has come is kept."""
    body = parse_body(PullName, await request.body())
    return JsonResponse({"cancelled": disk.library.cancel(*_pull_of(request, disk, body))})


@routes.delete("/models/{spec:path}", response_class=Response)
async def delete_model(request: Request, disk: Stored, spec: str) -> Response:
    """Delete a model from the disk, and from memory if nobody uses it there."""
    refuse_unknown_query(request)
    note_access(request.scope, model=repr(spec[:256]))
    return JsonResponse(deleted_json(await disk.delete(spec)))


def _backend(name: str) -> BackendName:
    try:
        return BackendName(name)
    except ValueError:
        known = " and ".join(repr(each.value) for each in BackendName)
        raise InvalidRequest(f"Invalid value for 'backend': supported values are {known}.", param="backend") from None


def _pull_of(request: Request, disk: Disk, body: PullName) -> tuple[ModelSpec, str | None]:
    note_access(request.scope, model=repr(body.model[:256]))
    return disk.administration.router.spec(body.model), body.quantization


async def _outcome(events: AsyncGenerator[PullEvent]) -> Response:
    """Wait for the end of a pull; who goes away leaves it."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, PullFinished):
                return JsonResponse(pull_event_json(event))
    raise ended_early()
