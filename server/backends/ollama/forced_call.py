"""Function calls that the model has to make, which the daemon does not know: a JSON schema takes their place. Pure.

The functions are described in words, the daemon constrains the completion to JSON that names one of them and its
arguments, and this JSON becomes the call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from server.core.request import ChatRequest, Tool

_NAME, _ARGUMENTS = "name", "arguments"
_DEFINITIONS = ("$defs", "definitions")
_REFERENCE = re.compile(r"\A#/(\$defs|definitions)/")


def forced_call_format(request: ChatRequest) -> dict[str, Any]:
    """Return the schema of a call of one of the functions that the request allows."""
    parameters = [dict(tool.parameters) for tool in _allowed(request)]
    if len(parameters) > 1:  # each with definitions of its own, under names that another one may have, too
        parameters = [_with_own_definitions(each, f"{index}_") for index, each in enumerate(parameters)]
    calls = [_call_schema(tool, each) for tool, each in zip(_allowed(request), parameters, strict=True)]
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    for keyword in _DEFINITIONS:
        # references in the schemas of arguments are relative to the root, which is another one now
        definitions: dict[str, Any] = {}
        for each in parameters:
            if isinstance(own := each.get(keyword), dict):
                definitions |= own
        if definitions:
            schema = {**schema, keyword: definitions}
    return schema


def _with_own_definitions(schema: Any, prefix: str) -> Any:  # noqa: ANN401 - any JSON value
    """Copy a schema with a prefix for the names of its definitions and in the references to them."""
    if isinstance(schema, list):
        return [_with_own_definitions(item, prefix) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _DEFINITIONS and isinstance(value, dict):
            copy[key] = {prefix + name: _with_own_definitions(each, prefix) for name, each in value.items()}
        elif key == "$ref" and isinstance(value, str):
            copy[key] = _REFERENCE.sub(lambda match: match[0] + prefix, value)
        else:
            copy[key] = _with_own_definitions(value, prefix)
    return copy


def forced_call_instruction(request: ChatRequest) -> str:
    """Return what the model has to know to make the call."""
    described = "\n".join(_describe(tool) for tool in _allowed(request))
    return (
        "Answer by calling exactly one of these functions, each described as JSON with the schema of its arguments:\n"
        f"{described}\n"
        f'Write only one JSON object: {{"{_NAME}": name of the function, "{_ARGUMENTS}": object with its arguments}}.'
    )


def parse_forced_call(text: str, request: ChatRequest) -> tuple[str, str] | None:
    """Return name and arguments (as JSON text) of the call that a completion is; ``None`` if it is none."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get(_ARGUMENTS), dict):
        return None
    name = call.get(_NAME)
    if name not in [tool.name for tool in _allowed(request)]:
        return None
    return str(name), json.dumps(call[_ARGUMENTS], ensure_ascii=False, separators=(",", ":"))


def _allowed(request: ChatRequest) -> Sequence[Tool]:
    named = request.tool_choice.name
    return [tool for tool in request.tools if named is None or tool.name == named]


def _call_schema(tool: Tool, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {_NAME: {"const": tool.name}, _ARGUMENTS: parameters},
        "required": [_NAME, _ARGUMENTS],
        "additionalProperties": False,
    }


def _describe(tool: Tool) -> str:
    about = {_NAME: tool.name, "description": tool.description, "parameters": tool.parameters}
    return json.dumps({key: value for key, value in about.items() if value is not None}, ensure_ascii=False)
