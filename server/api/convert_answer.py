"""From the wire to ``core.request``: which functions an answer may call, and what its content has to be. Pure.

Whether a schema can be enforced is for the backend to say; here is what holds for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from server.api.config import ApiConfig
from server.api.responses import dump_json
from server.api.schemas import (
    ChatCompletionBody,
    WireAllowedToolChoice,
    WireFunction,
    WireResponseFormat,
    WireToolChoice,
)
from server.core.errors import InvalidRequest
from server.core.request import (
    ChoiceFormat,
    GrammarFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)

_EXTENSIONS = ("grammar", "guided_regex", "guided_choice")


def to_tools(body: ChatCompletionBody, config: ApiConfig) -> tuple[tuple[Tool, ...], ToolChoice]:
    """Return the functions that may be called, and whether they have to be.

    Raises:
        InvalidRequest: there are too many, a name is there twice, a schema is too large or not one of an object, or the
            choice names a function that is not there.

    """
    given = body.tools or ()
    if len(given) > config.max_tools:
        raise InvalidRequest(
            f"Invalid value for 'tools': {len(given)} tools, at most {config.max_tools} are accepted.", param="tools"
        )
    tools = dict[str, Tool]()
    for index, each in enumerate(given):
        tool = _tool(each.function, f"tools[{index}].function", config)
        if tool.name in tools:
            raise InvalidRequest(
                f"Invalid value for 'tools': the function {tool.name!r} is there twice.", param=f"tools[{index}]"
            )
        tools[tool.name] = tool
    return _chosen(body, tools)


def to_response_format(body: ChatCompletionBody, config: ApiConfig) -> ResponseFormat | None:
    """Return what the content has to be; ``None`` for anything.

    Raises:
        InvalidRequest: several forms are demanded, one is incomplete, or too large.

    """
    wanted = _wanted_format(body.response_format)
    given = [name for name in _EXTENSIONS if getattr(body, name) is not None]
    if wanted is not None:
        given.insert(0, "response_format")
    if len(given) > 1:
        raise InvalidRequest(f"'{given[0]}' and '{given[1]}' exclude each other; send one of them.", param=given[1])
    if body.grammar is not None:
        return GrammarFormat(_short_enough(body.grammar, "grammar", config))
    if body.guided_regex is not None:
        return RegexFormat(_short_enough(body.guided_regex, "guided_regex", config))
    if body.guided_choice is not None:
        _short_enough("".join(body.guided_choice), "guided_choice", config)
        return ChoiceFormat(tuple(dict.fromkeys(body.guided_choice)))
    return None if wanted is None else _standard_format(wanted, config)


def check_finite(value: object, path: str) -> None:
    """Insist on a value that is JSON: the parser of bodies lets numbers pass that are not finite.

    Raises:
        InvalidRequest: there is such a number in it.

    """
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"Invalid value for '{path}': numbers must be finite.", param=path) from error


# --- tools ---


def _tool(function: WireFunction, path: str, config: ApiConfig) -> Tool:
    return Tool(
        function.name,
        function.description,
        _parameters(function.parameters, f"{path}.parameters", config),
        strict=bool(function.strict),
    )


def _parameters(given: Mapping[str, object] | None, path: str, config: ApiConfig) -> Mapping[str, object]:
    """Return the schema of arguments, which are an object whether it says so or not."""
    if not given:
        return _NO_ARGUMENTS
    kind = given.get("type", "object")
    if kind != "object":
        shown = dump_json(kind).decode()[:64]
        raise InvalidRequest(
            f"Invalid value for '{path}.type': arguments are an object, so it must be \"object\", and not {shown}.",
            param=f"{path}.type",
        )
    _check_schema_size(given, path, config)
    return {"type": "object", "properties": {}, **given}


_NO_ARGUMENTS: Mapping[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}


def _chosen(body: ChatCompletionBody, tools: Mapping[str, Tool]) -> tuple[tuple[Tool, ...], ToolChoice]:
    """Return the tools that the choice leaves, and the choice among these."""
    choice, all_tools = body.tool_choice, tuple(tools.values())
    if isinstance(choice, WireToolChoice):
        _require_known(choice.function.name, tools, "tool_choice.function.name")
        return all_tools, ToolChoice(ToolChoiceMode.REQUIRED, choice.function.name)
    if isinstance(choice, WireAllowedToolChoice):
        names = [each.function.name for each in choice.allowed_tools.tools]
        for index, name in enumerate(names):
            _require_known(name, tools, f"tool_choice.allowed_tools.tools[{index}].function.name")
        mode = ToolChoiceMode(choice.allowed_tools.mode)
        return tuple(tools[name] for name in dict.fromkeys(names)), ToolChoice(mode)
    mode = ToolChoiceMode(choice or "auto")
    if mode is ToolChoiceMode.REQUIRED and not tools:
        raise InvalidRequest("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
    return all_tools, ToolChoice(mode)


def _require_known(name: str, tools: Mapping[str, Tool], path: str) -> None:
    if name not in tools:
        raise InvalidRequest(
            f"Invalid value for '{path}': there is no function {name[:64]!r} in 'tools'.", param="tool_choice"
        )


# --- the form of the content ---


def _wanted_format(given: WireResponseFormat | None) -> WireResponseFormat | None:
    """Return the format if it demands anything."""
    if given is not None and given.json_schema is not None and given.type != "json_schema":
        path = "response_format.json_schema"
        raise InvalidRequest(f"'{path}' is only allowed when 'response_format.type' is json_schema.", param=path)
    return None if given is None or given.type == "text" else given


def _standard_format(wanted: WireResponseFormat, config: ApiConfig) -> JsonObjectFormat | JsonSchemaFormat:
    if wanted.type == "json_object":
        return JsonObjectFormat()
    described, path = wanted.json_schema, "response_format.json_schema"
    if described is None:
        raise InvalidRequest(f"Missing required parameter: '{path}'.", param=path)
    schema, path = described.schema_, f"{path}.schema"
    if schema is None:
        raise InvalidRequest(f"Missing required parameter: '{path}'.", param=path)
    _check_schema_size(schema, path, config)
    return JsonSchemaFormat(schema, strict=bool(described.strict))


def _check_schema_size(schema: Mapping[str, object], path: str, config: ApiConfig) -> None:
    _check_size(len(dump_json(schema)), path, config)  # first: the next line takes long for a schema of megabytes
    check_finite(schema, path)


def _short_enough(text: str, path: str, config: ApiConfig) -> str:
    _check_size(len(text.encode()), path, config)
    return text


def _check_size(num_bytes: int, path: str, config: ApiConfig) -> None:
    if num_bytes > config.max_schema_bytes:
        raise InvalidRequest(
            f"Invalid value for '{path}': {num_bytes} bytes, at most {config.max_schema_bytes} are accepted.",
            param=path,
        )
