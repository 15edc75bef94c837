"""Schemas in ``/openapi.json``: handlers parse bodies and build answers themselves, so FastAPI cannot know them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from server.api.admin_schemas import (
    AdministeredModel,
    AdministeredModels,
    CancelledPulls,
    DeletedModel,
    ErrorEnvelope,
    LibraryDetails,
    LibraryEntries,
    PullNoticeEvent,
    PullProgressEvent,
    PullSuccessEvent,
    ServerStatus,
)
from server.api.schemas import ChatCompletionBody, ModelActionBody, ModelActionOptions, PullBody, PullName, WireModel

_BODIES: dict[str, type[WireModel]] = {
    "/v1/chat/completions": ChatCompletionBody,
    "/admin/models/pull": PullBody,
    "/admin/models/pull/cancel": PullName,
    "/admin/models/{action}": ModelActionBody,
    "/admin/models/{spec}/{action}": ModelActionOptions,
}
_ANSWERS: dict[tuple[str, str], type[BaseModel]] = {
    ("/admin/status", "get"): ServerStatus,
    ("/admin/library", "get"): LibraryEntries,
    ("/admin/library/{spec}", "get"): LibraryDetails,
    ("/admin/models", "get"): AdministeredModels,
    ("/admin/models/{spec}", "get"): AdministeredModel,
    ("/admin/models/{spec}", "delete"): DeletedModel,
    ("/admin/models/pull", "post"): PullSuccessEvent,
    ("/admin/models/pull/cancel", "post"): CancelledPulls,
    ("/admin/models/{action}", "post"): AdministeredModel,
    ("/admin/models/{spec}/{action}", "post"): AdministeredModel,
}
_EVENTS: dict[tuple[str, str], tuple[type[BaseModel], ...]] = {
    ("/admin/models/pull", "post"): (PullProgressEvent, PullNoticeEvent, PullSuccessEvent, ErrorEnvelope),
}
_EVENTS_MEANING = "The data of each server-sent event; the last one is success, followed by [DONE], or an error."


def describe_schemas(app: FastAPI) -> None:
    """Add bodies, answers and events to the OpenAPI document of ``app``, which is built when someone asks for it."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        document = build()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for path, body in _BODIES.items():
            document["paths"][path]["post"]["requestBody"] = {
                "required": any(field.is_required() for field in body.model_fields.values()),
                "content": {"application/json": {"schema": _reference(schemas, body)}},
            }
        for (path, method), answer in _ANSWERS.items():
            operation = document["paths"][path][method]
            _content(operation)["application/json"] = {"schema": _reference(schemas, answer)}
        for (path, method), events in _EVENTS.items():
            references = [_reference(schemas, event) for event in events]
            schema = {"description": _EVENTS_MEANING, "oneOf": references}
            _content(document["paths"][path][method])["text/event-stream"] = {"schema": schema}
        _describe_errors(document, _reference(schemas, ErrorEnvelope))
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _describe_errors(document: dict[str, Any], envelope: dict[str, str]) -> None:
    """Put our errors in the place of FastAPI's, which says 422 and never comes."""
    answer = {"description": "An error", "content": {"application/json": {"schema": envelope}}}
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = answer
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _content(operation: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = operation["responses"]["200"].setdefault("content", {})
    return content


def _reference(schemas: dict[str, Any], model: type[BaseModel]) -> dict[str, str]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema
    return {"$ref": f"#/components/schemas/{model.__name__}"}
