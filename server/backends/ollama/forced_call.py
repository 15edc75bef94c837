"""What the daemon cannot be asked for: calls that have to be made, and the choice between a call and JSON. Pure.

The daemon knows neither: it has no ``tool_choice``, and a ``format`` beside tools keeps the model from calling any
(https://github.com/ollama/ollama/issues/13750). So the functions are described in words, the daemon constrains the
completion to JSON that names one of them and its arguments, or that holds the answer, and this JSON becomes the call or
the content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.core.request import Tool

_NAME, _ARGUMENTS, _ANSWER = "name", "arguments", "answer"
_DEFINITIONS = ("$defs", "definitions")
_WHOLE = "the-whole"
_REFERENCE = re.compile(r"\A#(?:/(?P<keyword>\$defs|definitions)/|(?=/|\Z))")
_MAPS_OF_SCHEMAS = frozenset({"properties", "patternProperties", "dependentSchemas"})
_PLAIN_VALUES = frozenset({"const", "default", "enum", "examples"})


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call as the model wrote it; ``arguments`` is the JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """What the model said in place of a call: any JSON value."""

    value: object


def forced_call_format(tools: Sequence[Tool], answer: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Return the schema of a call of one of the functions, or of an answer that ``answer`` describes."""
    schemas = [_of_object(tool.parameters) for tool in tools] + ([] if answer is None else [dict(answer)])
    prefixes = [f"{index}_" for index in range(len(schemas))] if len(schemas) > 1 else [""]
    definitions: dict[str, dict[str, Any]] = {}
    parts = [_moved(schema, prefix, definitions) for schema, prefix in zip(schemas, prefixes, strict=True)]
    choices = [_call_schema(tool, part) for tool, part in zip(tools, parts, strict=False)]
    if answer is not None:
        choices.append(_object_schema({_ANSWER: parts[-1]}))
    return (choices[0] if len(choices) == 1 else {"anyOf": choices}) | definitions


def forced_call_instruction(tools: Sequence[Tool], answer: Mapping[str, object] | None = None) -> str:
    """Return what the model has to know to write what the format describes."""
    described = "\n".join(_describe(tool) for tool in tools)
    call = f'{{"{_NAME}": name of the function, "{_ARGUMENTS}": object with its arguments}}'
    if answer is None:
        return (
            "Answer by calling exactly one of these functions, each described as JSON with the schema of its "
            f"arguments:\n{described}\nWrite only one JSON object: {call}."
        )
    return (
        "You can call one of these functions, each described as JSON with the schema of its arguments:\n"
        f"{described}\nTo call one, write only one JSON object: {call}.\n"
        f'To answer instead, write only one JSON object: {{"{_ANSWER}": your answer}}, where your answer is described '
        f"by this schema:\n{json.dumps(answer, ensure_ascii=False)}"
    )


def parse_forced_call(
    text: str, tools: Sequence[Tool], *, may_answer: bool = False
) -> WrittenCall | WrittenAnswer | None:
    """Return the call or answer that a completion is; ``None`` if it is neither."""
    try:
        written = json.loads(text)
        if may_answer and isinstance(written, dict) and written.keys() == {_ANSWER}:
            return WrittenAnswer(written[_ANSWER])
        if not isinstance(written, dict) or not isinstance(written.get(_ARGUMENTS), dict):
            return None
        arguments = compact_json(written[_ARGUMENTS])
    except (ValueError, RecursionError):
        return None
    name = written.get(_NAME)
    return WrittenCall(name, arguments) if isinstance(name, str) and name in {tool.name for tool in tools} else None


def compact_json(value: object) -> str:
    """Write a value as JSON without spaces.

    Raises:
        ValueError: JSON has no such value: a number beyond all bounds, or half of a surrogate pair.

    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text.encode()
    return text


def _of_object(parameters: Mapping[str, object]) -> dict[str, Any]:
    return dict(parameters) if "type" in parameters or "$ref" in parameters else {"type": "object", **parameters}


def _moved(schema: Mapping[str, Any], prefix: str, definitions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a schema that is to be part of another one, and add to that one's definitions.

    References are relative to the root, which is another one then; and each schema has definitions of its own, under
    names that the others may have, too.
    """
    own = {keyword: schema[keyword] for keyword in _DEFINITIONS if isinstance(schema.get(keyword), dict)}
    rest = {keyword: value for keyword, value in schema.items() if keyword not in own}
    moved = _Mover(prefix)
    part: dict[str, Any] = moved.schema(rest)
    for keyword, each in own.items():
        definitions.setdefault(keyword, {}).update({prefix + name: moved.schema(value) for name, value in each.items()})
    if moved.refers_to_whole:
        definitions.setdefault(_DEFINITIONS[0], {})[prefix + _WHOLE] = part
    return part


class _Mover:
    """Rewrites the references in a schema."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.refers_to_whole = False

    def schema(self, schema: Any) -> Any:  # noqa: ANN401 - any JSON value
        if isinstance(schema, list):
            return [self.schema(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        return {keyword: self._value(keyword, value) for keyword, value in schema.items()}

    def _value(self, keyword: str, value: Any) -> Any:  # noqa: ANN401 - any JSON value
        if keyword == "$ref" and isinstance(value, str):
            return _REFERENCE.sub(self._reference, value)
        if keyword in _PLAIN_VALUES:
            return value
        if keyword in _MAPS_OF_SCHEMAS and isinstance(value, dict):
            return {name: self.schema(each) for name, each in value.items()}
        return self.schema(value)

    def _reference(self, match: re.Match[str]) -> str:
        if match["keyword"]:
            return f"#/{match['keyword']}/{self._prefix}"
        self.refers_to_whole = True
        return f"#/{_DEFINITIONS[0]}/{self._prefix}{_WHOLE}"


def _call_schema(tool: Tool, parameters: dict[str, Any]) -> dict[str, Any]:
    return _object_schema({_NAME: {"const": tool.name}, _ARGUMENTS: parameters})


def _object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _describe(tool: Tool) -> str:
    about = {_NAME: tool.name, "description": tool.description, "parameters": tool.parameters}
    return json.dumps({key: value for key, value in about.items() if value is not None}, ensure_ascii=False)
