"""A check of values against the schemas of an API description, for the part of JSON Schema that it uses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


def complaints(value: object, schema: Mapping[str, Any], whole: Mapping[str, Any], place: str = "$") -> Iterator[str]:
    """What is wrong with the value, in words; references are looked up in ``whole``."""
    schema = resolved(schema, whole)
    if choices := schema.get("oneOf") or schema.get("anyOf"):
        if not any(not list(complaints(value, choice, whole, place)) for choice in choices):
            yield f"{place}: {value!r} is none of what is allowed"
        return
    kind = schema.get("type")
    if kind and not _is_a(value, kind):
        yield f"{place}: {value!r} is no {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is not one of {schema['enum']}"
    if schema.get("format") == "date-time" and not _TIME.fullmatch(str(value)):
        yield f"{place}: {value!r} is no time"
    if isinstance(value, dict):
        yield from _in_object(value, schema, whole, place)
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from complaints(item, schema.get("items", {}), whole, f"{place}[{index}]")


def resolved(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a reference means."""
    while "$ref" in schema:
        found: Any = whole
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def _in_object(
    value: Mapping[str, Any], schema: Mapping[str, Any], whole: Mapping[str, Any], place: str
) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{place}: without {name}"
    for name, part in schema.get("properties", {}).items():
        if name in value:
            yield from complaints(value[name], part, whole, f"{place}.{name}")


def _is_a(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])
