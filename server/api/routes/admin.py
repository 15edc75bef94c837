"""``/admin/models``: which models are in memory, what they take, and the operator's say in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from server.api import local_only
from server.api.answer import run_while_connected
from server.api.convert import parse_body
from server.api.middleware import note_access
from server.api.residency import device_entry, model_entry
from server.api.responses import JsonResponse
from server.api.schemas import ModelActionBody, ModelActionOptions
from server.api.services import services_of
from server.core.errors import InvalidRequest, LocalOnly, UnsupportedParameter
from server.core.model_spec import BackendName
from server.core.ports import Residency, ResidencyStatus
from server.router import ModelRouter

routes = APIRouter(prefix="/admin/models", tags=["Administration"])

_NO_OPTIONS = b"{}"
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


class Action(StrEnum):
    """What can be done with a model."""

    LOAD = "load"
    UNLOAD = "unload"
    PIN = "pin"
    UNPIN = "unpin"


@dataclass(frozen=True, slots=True)
class Administration:
    """What the endpoints work with, once a request may use them."""

    residency: Residency
    router: ModelRouter

    async def status(self, text: str) -> ResidencyStatus:
        """Return the status of the model that a spec or alias selects.

        Raises:
            InvalidRequest: the text is no spec, or the model is not one of this process.
            ModelNotFound: no backend has the model.

        """
        spec = self.router.spec(text)
        if spec.backend is not BackendName.OLLAMA:
            status = self.residency.status(spec.model)
            if status is not None:
                return status
            await self.router.route(text)  # says what there is to say of a model that nobody has
        raise InvalidRequest(
            f"The model {text!r} is one of the Ollama daemon's, which manages its own models (see `ollama ps`); only "
            "models that run in this process can be administered here.",
            param="model",
        )

    async def entry(self, text: str) -> dict[str, object]:
        """Describe the model that a spec or alias selects."""
        status = await self.status(text)
        own = replace(self.router.spec(text), backend=BackendName.LLAMACPP)
        return model_entry((await self.router.model(str(own))).id, status)

    async def entries(self) -> list[dict[str, object]]:
        """Describe all models of this process."""
        listed = await self.router.models()
        ids = {each.card.model: each.id for each in listed if each.card.backend is BackendName.LLAMACPP}
        statuses = self.residency.statuses()
        return [model_entry(ids.get(each.model, f"local/{each.model}@llamacpp"), each) for each in statuses]

    async def act(self, action: Action, model: str, *, force: bool) -> None:
        """Do something with a model, and wait until it is done."""
        if action is Action.LOAD:
            await self.residency.load(model)
        elif action is Action.UNLOAD:
            await self.residency.unload(model, force=force)
        else:
            self.residency.pin(model, pinned=action is Action.PIN)


async def _administration(request: Request) -> Administration:
    services = services_of(request)
    if services.residency is None:
        raise HTTPException(404)
    client = None if request.client is None else request.client.host
    if (reason := local_only.refusal(client, request.headers.items())) is not None:
        raise LocalOnly(
            f"Only requests from the machine that the server runs on may administer it, and {reason}. Send it from "
            "there, to localhost."
        )
    return Administration(services.residency, services.router)


Administered = Annotated[Administration, Depends(_administration)]
ActionName = Annotated[str, Path(json_schema_extra={"enum": [*Action]})]


@routes.get("", response_class=Response)
async def list_models(administration: Administered) -> Response:
    """List the models of this process with the memory they take, and the devices that it is on."""
    devices = [device_entry(device) for device in administration.residency.devices()]
    return JsonResponse({"object": "list", "data": await administration.entries(), "devices": devices})


@routes.get("/{spec:path}", response_class=Response)
async def retrieve_model(administration: Administered, spec: str) -> Response:
    """Describe one model; any spec or alias that selects it will do."""
    return JsonResponse(await administration.entry(spec))


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
    status = await administration.status(text)
    # a client that goes away stops waiting; a load or unload that has begun goes on
    work = administration.act(action, status.model, force=bool(force))
    await run_while_connected(request.receive, work)
    return JsonResponse(await administration.entry(text))


def _action(name: str) -> Action:
    try:
        return Action(name)
    except ValueError:
        raise HTTPException(404) from None


def _force(request: Request, options: ModelActionOptions) -> bool | None:
    if unknown := sorted(request.query_params.keys() - {"force"}):
        raise UnsupportedParameter(f"Unknown parameter: {unknown[0][:64]!r}.", param=unknown[0][:64])
    given = [options.force] if "force" in options.model_fields_set else []
    for text in request.query_params.getlist("force"):
        if text not in _FLAGS:
            raise InvalidRequest("Invalid value for 'force': supported values are true and false.", param="force")
        given.append(_FLAGS[text])
    return any(given) if given else None
