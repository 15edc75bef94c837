"""The request schemas in ``/openapi.json``: handlers parse bodies themselves, so FastAPI cannot know them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from server.api.schemas import ChatCompletionBody, ModelActionBody, ModelActionOptions, WireModel

_BODIES: dict[str, type[WireModel]] = {
    "/v1/chat/completions": ChatCompletionBody,
    "/admin/models/{action}": ModelActionBody,
    "/admin/models/{spec}/{action}": ModelActionOptions,
}


def describe_bodies(app: FastAPI) -> None:
    """Add the request bodies to the OpenAPI document of ``app``, which is built when someone asks for it."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for path, model in _BODIES.items():
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
            reference = {"$ref": f"#/components/schemas/{model.__name__}"}
            document["paths"][path]["post"]["requestBody"] = {
                "required": any(field.is_required() for field in model.model_fields.values()),
                "content": {"application/json": {"schema": reference}},
            }
        return document

    app.openapi = openapi  # type: ignore[method-assign]
