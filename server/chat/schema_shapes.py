"""What a JSON Schema says of a value, for syntaxes other than JSON whose grammar is made rule by rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.chat.typed_arguments import (
    ANNOTATIONS,
    OF_PLAIN_OBJECTS,
    Schema,
    as_schema,
    is_plain_text,
    listed_texts,
    resolved,
)
from server.core.subschemas import DEFINITIONS

_MOST_NESTED = 12
_MOST_VALUES = 400


@dataclass(frozen=True, slots=True)
class Text:
    """Any text, or one of some texts."""

    listed: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Items:
    """A list whose elements have one schema."""

    schema: Schema
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Members:
    """An object with these members and no other."""

    schemas: Mapping[str, Schema]
    required: frozenset[str]


@dataclass(frozen=True, slots=True)
class Other:
    """Anything else: what only JSON can be made to obey."""

    schema: Schema


class Shapes:
    """The shapes within one schema; after so many, or so deep, what is left is JSON, so that recursion ends."""

    def __init__(self, root: Schema) -> None:
        """Take the schema that references refer to."""
        self._root = root
        self._definitions: dict[str, Any] = {key: root[key] for key in DEFINITIONS if key in root}
        self._num_left = _MOST_VALUES

    def of(self, schema: Schema, depth: int = 0) -> Text | Items | Members | Other:
        """Return the shape of a value with a schema, at a depth within the whole."""
        self._num_left -= 1
        whole = resolved(schema, self._root)
        if is_plain_text(whole):
            texts = listed_texts(whole)
            return Text(None if texts is None else tuple(texts))
        said = set(whole) - ANNOTATIONS
        if depth < _MOST_NESTED and self._num_left > 0:
            if whole.get("type") == "array" and said <= {"type", "items", "minItems", "maxItems"}:
                items, least, most = whole.get("items"), whole.get("minItems", 0), whole.get("maxItems")
                is_possible = isinstance(least, int) and (
                    most is None or (isinstance(most, int) and most >= max(least, 1))
                )
                if isinstance(items, Mapping) and is_possible and least >= 0:
                    return Items(items, least, most)
            properties = whole.get("properties")
            if whole.get("type") == "object" and said <= OF_PLAIN_OBJECTS and isinstance(properties, Mapping):
                required = frozenset(whole.get("required") or ())
                schemas = {name: as_schema(each) for name, each in properties.items() if each is not False}
                if schemas and required <= schemas.keys() and not whole.get("additionalProperties"):
                    return Members(schemas, required)
        return Other(self.alone(whole))

    def alone(self, schema: Schema) -> Schema:
        """Return a schema that can stand alone: with the definitions that it may refer to."""
        return {**resolved(schema, self._root), **self._definitions}
