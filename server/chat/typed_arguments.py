"""Arguments that are written one parameter at a time, as text between tags: how they become a JSON object, and back.

The tool's schema decides what a text means: ``5`` is a number where a number is wanted and text where text is. Text
stands for itself, without quotes; what is neither plain text nor one of several texts is written as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, sequence
from server.chat.loose_json import as_json
from server.chat.scanner import Reading, Scanner
from server.core.errors import InvalidRequest
from server.core.request import Tool
from server.core.subschemas import DEFINITIONS, at, target_of

Schema = Mapping[str, Any]

_STRING_CONSTRAINTS = frozenset({"minLength", "maxLength", "pattern", "format", "not", "if", "allOf", "anyOf", "oneOf"})
ANNOTATIONS = frozenset(
    {
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "$schema",
        "$id",
        "$comment",
        *DEFINITIONS,
    }
)
OF_PLAIN_OBJECTS = ANNOTATIONS | {"type", "properties", "required", "additionalProperties"}
_ALL_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_TYPES_OF: Mapping[type, frozenset[str]] = {
    type(None): frozenset({"null"}),
    bool: frozenset({"boolean"}),
    int: frozenset({"integer", "number"}),
    str: frozenset({"string"}),
    list: frozenset({"array"}),
}
_SCALARS = _ALL_TYPES - {"object", "array"}
_IN_TAGS = frozenset("<>\"'&\n\r")
_UNIONS = ("anyOf", "oneOf")
_LONGEST_CHAIN = 32
_MOST_NESTED_UNIONS = 4


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a function, each with a schema of its own."""

    schemas: Mapping[str, Schema]
    required: frozenset[str]

    @classmethod
    def of(cls, tool: Tool) -> Parameters:
        """Take a function's schema apart.

        Raises:
            InvalidRequest: it says more than which parameters there are and what each may be.

        """
        root = resolved(tool.parameters, tool.parameters)
        if extra := sorted(set(root) - OF_PLAIN_OBJECTS):
            raise InvalidRequest(
                f"The parameters of the function {tool.name!r} use the keyword {extra[0]!r} at the top of their "
                "schema, which cannot be enforced in the way this model writes calls; move it into a property.",
                param="tools",
            )
        names = (*(root.get("properties") or {}), *(root.get("required") or ()))
        if unwritable := next((name for name in names if set(name) & _IN_TAGS), None):
            raise InvalidRequest(
                f"The function {tool.name!r} has the parameter {unwritable!r}, a name that cannot stand in the tags in "
                "which this model writes calls; use letters, digits and underscores.",
                param="tools",
            )
        definitions = {key: tool.parameters[key] for key in DEFINITIONS if key in tool.parameters}
        required = frozenset(root.get("required") or ())
        properties: dict[str, object] = dict(root.get("properties") or {})
        properties = {name: each for name, each in properties.items() if each is not False or name in required}
        properties |= {name: {} for name in sorted(required - properties.keys())}
        return cls({name: {**as_schema(each), **definitions} for name, each in properties.items()}, required)


def parameters_expression(
    grammar: LarkGrammar,
    tool: Tool,
    *,
    opening: Callable[[str, Schema], str],
    closing: str,
    text_closing: str = "",
    between: str = "",
) -> str:
    """Return an expression for a function's parameters, in the order of the schema, those not required optional.

    Args:
        grammar: where rules are added.
        tool: the function.
        opening: gives the text before the value of a parameter by its name and schema.
        closing: the text behind a value.
        text_closing: the text that ends a value which is plain text, where the parser takes a shorter one for its end;
            it occurs in no value.
        between: text that is added behind ``closing``.

    Raises:
        InvalidRequest: the schema cannot be enforced this way.

    """

    def expression(name: str, schema: Schema) -> str:
        value = value_expression(grammar, schema, closing, text_closing or closing)
        return sequence([grammar.literal(opening(name, schema)), value, grammar.literal(between)])

    return expression_of_each(grammar, tool, expression)


def expression_of_each(grammar: LarkGrammar, tool: Tool, expression: Callable[[str, Schema], str]) -> str:
    """Return an expression for a function's parameters, given one for each by its name and schema.

    Raises:
        InvalidRequest: the schema cannot be enforced this way.

    """
    parameters = Parameters.of(tool)
    expressions = []
    for name, schema in parameters.schemas.items():
        parameter = grammar.rule(expression(name, schema))
        expressions.append(parameter if name in parameters.required else f"{parameter}?")
    return sequence(expressions)


def value_expression(grammar: LarkGrammar, schema: Schema, closing: str, text_closing: str = "") -> str:
    """Return an expression for a value and the text behind it, as ``TypedArguments.read`` reads it."""
    if (texts := listed_texts(schema)) is not None:
        return sequence([grammar.choice(texts), grammar.literal(closing)])
    if is_plain_text(schema) or takes_any_text(schema):
        return grammar.through(text_closing or closing)
    return sequence([grammar.json(schema), grammar.literal(closing)])


def is_plain_text(schema: Schema) -> bool:
    """Whether a value is a text that stands for itself."""
    whole = resolved(schema, schema)
    return listed_texts(schema) is not None or (
        whole.get("type") == "string" and not _STRING_CONSTRAINTS & whole.keys() and "const" not in whole
    )


def listed_texts(schema: Schema) -> Sequence[str] | None:
    """Return the texts that are allowed if the schema lists them, and nothing else."""
    whole = resolved(schema, schema)
    if set(whole) - ANNOTATIONS - {"type", "enum", "const"} or whole.get("type", "string") != "string":
        return None
    values = [whole["const"]] if "const" in whole else whole.get("enum")
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        return None
    return [str(value) for value in values]


def takes_any_text(schema: Schema) -> bool:
    """Whether every text is a value, though some mean something else: text or ``null``, or a number, none limited."""
    kinds = _unlimited_kinds(schema, schema)
    return kinds is not None and "string" in kinds


def _unlimited_kinds(schema: Schema, root: Schema, depth: int = 0) -> frozenset[str] | None:
    """Return the types that a schema allows if it says nothing but that, and all are words, numbers or text."""
    whole = resolved(schema, root)
    said = set(whole) - ANNOTATIONS
    if said == {"type"}:
        kinds = _types(whole, root)
        return kinds if kinds <= _SCALARS else None
    branches = next((whole[keyword] for keyword in _UNIONS if said == {keyword}), None)
    if not isinstance(branches, list) or depth > _MOST_NESTED_UNIONS:
        return None
    found = [_unlimited_kinds(as_schema(each), root, depth + 1) for each in branches]
    kinds = frozenset().union(*(each or () for each in found))
    is_ambiguous = sum(len(each or ()) for each in found) > len(kinds) or {"integer", "number"} <= kinds
    return None if None in found or (is_ambiguous and "oneOf" in said) else kinds


class TypedArguments:
    """Writes the arguments of one call while they are read."""

    def __init__(self, writer: AnswerWriter, tools: Sequence[Tool], name: str) -> None:
        """Begin with no arguments; what is not known of the function is guessed."""
        self._writer = writer
        self._num_written = 0
        tool = next((tool for tool in tools if tool.name == name), None)
        root = {} if tool is None else resolved(tool.parameters, tool.parameters)
        definitions = {key: tool.parameters[key] for key in DEFINITIONS if tool and key in tool.parameters}
        properties = root.get("properties") or {}
        self._schemas = {key: {**as_schema(each), **definitions} for key, each in properties.items()}

    def read(
        self, scanner: Scanner, name: str, closing: Sequence[str], *, is_text: bool | None = None
    ) -> Reading[str | None]:
        """Read the value of a parameter up to one of some texts, which is returned; ``None`` if none comes.

        ``is_text`` is what the model says of the value, which decides where the schema leaves it open.
        """
        schema = self.begin(name)
        if schema is not None and is_plain_text(schema):
            self._writer.arguments('"')
            marker = yield from scanner.until(closing, lambda text, _: self._writer.arguments(_escaped(text)))
            if marker is not None:
                self._writer.arguments('"')
            return marker
        if schema is not None and not takes_any_text(schema):
            is_text = None  # text that is limited may stand in quotes
        text, marker = yield from collect_value(scanner, closing, schema, is_text=is_text)
        if marker is not None:
            self._writer.arguments(json_value(text, schema, is_text=is_text))
        return marker

    def begin(self, name: str) -> Schema | None:
        """Write the name of a parameter, whose value is to follow, and return the schema of that if it is known."""
        self._writer.arguments(("{" if self._num_written == 0 else ", ") + json.dumps(name, ensure_ascii=False) + ": ")
        self._num_written += 1
        return self._schemas.get(name)

    def end(self) -> None:
        """Close the object."""
        self._writer.arguments("}" if self._num_written else "{}")


def collect_value(
    scanner: Scanner, closing: Sequence[str], schema: Schema | None, *, is_text: bool | None = None
) -> Reading[tuple[str, str | None]]:
    """Read a value that is no plain text up to one of some texts, which do not end it within JSON; return both."""
    if is_text is not False and (schema is None or takes_any_text(schema)):
        return (yield from scanner.collect(closing))
    pieces: list[str] = []
    yield from scanner.skip_space()
    if (yield from scanner.next_character()) in {'"', "{", "["}:
        yield from scanner.json_value(lambda text, _: pieces.append(text))
    rest, marker = yield from scanner.collect(closing)
    return "".join(pieces) + rest, marker


def json_value(text: str, schema: Schema | None, *, is_text: bool | None = None) -> str:
    """Return what a text means as a value of a parameter, as JSON."""
    types = _ALL_TYPES if schema is None else _types(schema, schema)
    if is_text is not True or "string" not in types:
        for read in (_as_json, as_json):
            try:
                found, value = read(text.strip())
            except (ValueError, RecursionError):
                continue
            if _type_of(value) & types or "string" not in types:
                return found
    return json.dumps(text, ensure_ascii=False)


def _as_json(text: str) -> tuple[str, object]:
    """Return JSON as it is, with its value as far as its type shows.

    Raises:
        ValueError: it is not JSON.

    """
    return text, json.loads(text, parse_int=lambda _: 0, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def allowed_types(schema: Schema, root: Schema | None = None) -> frozenset[str]:
    """Return the types that a schema within another allows, as far as it tells at its top."""
    return _types(schema, schema if root is None else root)


def _types(schema: Schema, root: Schema, depth: int = 0) -> frozenset[str]:
    """Return the types that a schema allows, as far as it tells at its top."""
    whole = resolved(schema, root)
    branches = next((whole[keyword] for keyword in _UNIONS if isinstance(whole.get(keyword), list)), None)
    if branches is not None and depth <= _MOST_NESTED_UNIONS:
        return frozenset().union(*(_types(as_schema(each), root, depth + 1) for each in branches))
    listed = [whole["const"]] if "const" in whole else whole.get("enum")
    if isinstance(listed, list):
        return frozenset().union(*map(_type_of, listed))
    kind = whole.get("type")
    if isinstance(kind, str):
        return frozenset({kind})
    return frozenset(kind) if isinstance(kind, list) else _ALL_TYPES


def _type_of(value: object) -> frozenset[str]:
    if isinstance(value, float):
        return frozenset({"number", "integer"} if value.is_integer() else {"number"})
    return _TYPES_OF.get(type(value), frozenset({"object"}))


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def as_schema(value: object) -> Schema:
    """Return a schema that may be one word as an object."""
    if isinstance(value, Mapping):
        return value
    return {"not": {}} if value is False else {}


def resolved(schema: Schema, root: Schema) -> Schema:
    """Follow references within the schema; what is beside one stays."""
    for _ in range(_LONGEST_CHAIN):
        reference = schema.get("$ref")
        path = target_of(reference, root) if isinstance(reference, str) else None
        target = None if path is None else at(root, path)
        if not isinstance(target, Mapping):
            return schema
        schema = {**{key: value for key, value in schema.items() if key != "$ref"}, **target}
    return schema
