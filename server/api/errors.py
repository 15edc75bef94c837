"""The one table from errors to HTTP answers, and the sentences for what pydantic and Starlette refuse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from server.api.responses import JsonResponse, dump_json
from server.api.schemas import UNION_TAGS
from server.core import errors as core

INVALID_REQUEST_ERROR = "invalid_request_error"
RATE_LIMIT_ERROR = "rate_limit_error"
SERVER_ERROR = "server_error"

_RESTART_SECONDS = 5.0
_REPAIR_SECONDS = 60
"""When to look again for a model whose file is unusable: somebody has to do something first."""
_MAX_NAME_LEN = 256

_TABLE: dict[type[core.LlmspellError], tuple[HTTPStatus, str]] = {
    core.InvalidRequest: (HTTPStatus.BAD_REQUEST, INVALID_REQUEST_ERROR),
    core.Forbidden: (HTTPStatus.FORBIDDEN, INVALID_REQUEST_ERROR),
    core.ModelNotFound: (HTTPStatus.NOT_FOUND, INVALID_REQUEST_ERROR),
    core.ModelInUse: (HTTPStatus.CONFLICT, INVALID_REQUEST_ERROR),
    core.RequestTooLarge: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, INVALID_REQUEST_ERROR),
    core.QueueFull: (HTTPStatus.TOO_MANY_REQUESTS, RATE_LIMIT_ERROR),
    core.Unavailable: (HTTPStatus.SERVICE_UNAVAILABLE, SERVER_ERROR),
    core.BackendError: (HTTPStatus.BAD_GATEWAY, SERVER_ERROR),
    core.TimedOut: (HTTPStatus.GATEWAY_TIMEOUT, SERVER_ERROR),
    core.PullFailed: (HTTPStatus.BAD_GATEWAY, SERVER_ERROR),
    core.HubDenied: (HTTPStatus.FORBIDDEN, INVALID_REQUEST_ERROR),
    core.HubBusy: (HTTPStatus.SERVICE_UNAVAILABLE, SERVER_ERROR),
    core.CannotStore: (HTTPStatus.INSUFFICIENT_STORAGE, SERVER_ERROR),
    core.LlmspellError: (HTTPStatus.INTERNAL_SERVER_ERROR, SERVER_ERROR),
}


def status_and_type(error: core.LlmspellError) -> tuple[int, str]:
    """Look an error up in the table; a class that is not listed answers as its nearest base."""
    for base in type(error).__mro__:
        if base in _TABLE:
            return _TABLE[base]
    raise AssertionError  # LlmspellError itself is in the table


def envelope(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """Build OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_envelope(error: core.LlmspellError) -> dict[str, object]:
    """Build the error object of an error of ours."""
    return envelope(error.message, status_and_type(error)[1], param=error.param, code=error.code)


def error_event(error: core.LlmspellError) -> bytes:
    """Frame an error as the last event of a stream whose status line is already sent."""
    return b"data: " + dump_json(error_envelope(error)) + b"\n\n"


def error_response(error: core.LlmspellError) -> Response:
    """Answer with an error, and say when or whether a retry can help."""
    status, _ = status_and_type(error)
    return JsonResponse(error_envelope(error), status, _retry_headers(error, status))


def internal_error(request_id: str) -> core.LlmspellError:
    """Build the error for an exception that nobody foresaw; the traceback is in the log under ``request_id``."""
    return core.LlmspellError(f"The server failed on this request; its log has the details under {request_id}.")


def draining() -> core.Draining:
    """Build the error for a request that is still running when the server's time to shut down is over."""
    return core.Draining("The server is shutting down; try again in a moment.", retry_after=_RESTART_SECONDS)


def http_error_response(error: HTTPException, method: str, path: str) -> Response:
    """Answer for what the router refuses before any of our code runs: unknown paths and methods."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"Unknown request URL: {method} {path}. The endpoints are listed at /docs and in /openapi.json."
        body = envelope(message, INVALID_REQUEST_ERROR, code="unknown_url")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{method} is not allowed on {path}; use {allowed}."
        body = envelope(message, INVALID_REQUEST_ERROR, code="method_not_supported")
    else:
        kind = INVALID_REQUEST_ERROR if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR else SERVER_ERROR
        body = envelope(str(error.detail), kind)
    return JsonResponse(body, error.status_code, error.headers)


def invalid_body(error: ValidationError) -> core.InvalidRequest:
    """Turn the first of pydantic's complaints into a sentence that names the field."""
    return describe_error(error.errors(include_url=False)[0])


def describe_error(details: Mapping[str, Any]) -> core.InvalidRequest:
    """Turn one of pydantic's error records into a sentence that names the field."""
    param = field_path(details["loc"])
    kind, context = str(details["type"]), details.get("ctx", {})
    if kind == "json_invalid":
        return core.InvalidRequest(f"The request body is not valid JSON: {context['error']}.")
    if kind == "extra_forbidden":
        shown = param[:_MAX_NAME_LEN]
        return core.UnsupportedParameter(f"Unknown parameter: '{shown}'. Leave it out.", param=shown)
    if not param:
        return core.InvalidRequest("The request body must be a JSON object.")
    if kind == "missing":
        return core.InvalidRequest(f"Missing required parameter: '{param}'.", param=param)
    if expected := _expected_type(kind, details):
        got = _type_name(details["input"])
        return core.InvalidRequest(f"Invalid type for '{param}': expected {expected}, but got {got}.", param=param)
    return core.InvalidRequest(f"Invalid value for '{param}': {_constraint(kind, context, details)}.", param=param)


def field_path(location: Iterable[int | str]) -> str:
    """Write a location as OpenAI does: ``messages[0].content``."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in UNION_TAGS:
            path += f".{part}" if path else part
    return path


_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
}


def _expected_type(kind: str, details: Mapping[str, Any]) -> str | None:
    return str(details["msg"]) if kind == "wrong_type" else _EXPECTED.get(kind)


_CONSTRAINTS = {
    "greater_than_equal": "expected a value >= {ge}",
    "less_than_equal": "expected a value <= {le}",
    "finite_number": "expected a finite number",
    "literal_error": "supported values are {expected}",
    "too_short": "expected an array with at least 1 element, but got an empty array",
    "string_too_short": "expected a string that is not empty",
}


def _constraint(kind: str, context: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    return _CONSTRAINTS[kind].format_map(context) if kind in _CONSTRAINTS else str(details["msg"])


_TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    str: "a string",
    list: "an array",
}


def _type_name(value: object) -> str:
    return _TYPE_NAMES.get(type(value), "an object")


def _retry_headers(error: core.LlmspellError, status: int) -> dict[str, str]:
    if error.retry_after is not None:
        return {
            "retry-after": str(max(1, math.ceil(error.retry_after))),
            "retry-after-ms": str(math.ceil(error.retry_after * 1000)),
        }
    # SDKs retry 429 and 5xx by themselves; without a time to come back, only a broken connection to a daemon may heal
    if status < HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(error, core.BackendError | core.TimedOut):
        return {}
    later = {"retry-after": str(_REPAIR_SECONDS)} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return {"x-should-retry": "false"} | later
