"""``/admin/models``: which models are in memory, what they take, and the operator's say in it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from server.api.administration import Action, Administered, Administration, refuse_unknown_query
from server.api.answer import run_while_connected
from server.api.convert import parse_body
from server.api.middleware import note_access
from server.api.residency import device_entry, model_entry
from server.api.responses import JsonResponse
from server.api.schemas import ModelActionBody, ModelActionOptions
from server.core.errors import InvalidRequest, UnsupportedParameter

routes = APIRouter(prefix="/admin/models", tags=["Administration"])

_NO_OPTIONS = b"{}"
_FLAGS = {"true": True, "1": True, "false": False, "0": False}

ActionName = Annotated[str, Path(json_schema_extra={"enum": [*Action]})]


@routes.get("", response_class=Response)
async def list_models(administration: Administered) -> Response:
    """List the models of this process with the memory they take, and the devices that it is on."""
    devices = [device_entry(device) for device in administration.residency.devices()]
    return JsonResponse({"object": "list", "data": await administration.entries(), "devices": devices})


@routes.get("/{spec:path}", response_class=Response)
async def retrieve_model(administration: Administered, spec: str) -> Response:
    """Describe one model; any spec or alias that selects it will do."""
    return JsonResponse(model_entry(*await administration.find(spec)))


@routes.post("/{action}", response_class=Response)
async def act(request: Request, administration: Administered, action: ActionName) -> Response:
    """Load, unload, pin or unpin the model that the body names; answers when that is done."""
    kind = _action(action)
    body = parse_body(ModelActionBody, await request.body())
    return await _answer(request, administration, kind, body.model, body)


@routes.post("/{spec:path}/{action}", response_class=Response)
async def act_on(request: Request, administration: Administered, spec: str, action: ActionName) -> Response:
    """Load, unload, pin or unpin a model; answers when that is done."""
    kind = _action(action)
    options = parse_body(ModelActionOptions, await request.body() or _NO_OPTIONS)
    return await _answer(request, administration, kind, spec, options)


async def _answer(
    request: Request, administration: Administration, action: Action, text: str, options: ModelActionOptions
) -> Response:
    note_access(request.scope, model=repr(text[:256]))
    force = _force(request, options)
    if force is not None and action is not Action.UNLOAD:
        raise UnsupportedParameter("Unknown parameter: 'force'. Only unload can be forced.", param="force")
    # a client that goes away stops waiting; a load or unload that has begun goes on
    work = administration.act(action, text, force=bool(force))
    return JsonResponse(await run_while_connected(request.receive, work))


def _action(name: str) -> Action:
    try:
        return Action(name)
    except ValueError:
        raise HTTPException(404) from None


def _force(request: Request, options: ModelActionOptions) -> bool | None:
    refuse_unknown_query(request, "force")
    given = [options.force] if "force" in options.model_fields_set else []
    for text in request.query_params.getlist("force"):
        if text not in _FLAGS:
            raise InvalidRequest("Invalid value for 'force': supported values are true and false.", param="force")
        given.append(_FLAGS[text])
    return any(given) if given else None
