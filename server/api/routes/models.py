"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.responses import JsonResponse
from server.api.services import services_of
from server.router import ListedModel

routes = APIRouter(tags=["Models"])


@routes.get("/v1/models", response_class=Response)
async def list_models(request: Request) -> Response:
    """List the models that can be named in requests."""
    listed = await services_of(request).router.models()
    return JsonResponse({"object": "list", "data": [_to_wire(model) for model in listed]})


@routes.get("/v1/models/{model_id:path}", response_class=Response)
async def retrieve_model(request: Request, model_id: str) -> Response:
    """Describe one model; any spec or alias that selects it will do."""
    return JsonResponse(_to_wire(await services_of(request).router.model(model_id)))


def _to_wire(model: ListedModel) -> dict[str, object]:
    card = model.card
    return {
        "id": model.id,
        "object": "model",
        "created": card.created,
        "owned_by": "llmspell",
        "backend": card.backend.value,
        "state": card.state.value,
        "size_bytes": card.size_bytes,
        "context_length": card.context_length,
        "capabilities": list(card.capabilities),
    }
