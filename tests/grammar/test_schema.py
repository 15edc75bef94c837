import contextlib
import json
import time
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from datetime import time as day_time
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
import toy_vocabulary as toy
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, HttpUrl, TypeAdapter

from server.chat.lark import LarkGrammar
from server.core.errors import InvalidRequest
from server.core.request import JsonSchemaFormat
from server.grammar.matcher import GrammarMatcher
from server.grammar.schema import check_parameters, check_schema, enforceable_parameters
from server.grammar.validation import validate

PARAM = "response_format.json_schema.schema"
COMPILER = toy.compiler()


def constraint(schema: Mapping[str, object], *, strict: bool = True) -> GrammarMatcher:
    grammar = LarkGrammar((), lambda _: None)
    checked = check_schema(schema, strict=strict, param=PARAM)
    return COMPILER.compile(grammar.build(grammar.content(JsonSchemaFormat(checked)))).start()


def refusal(schema: Any, *, strict: bool = True) -> str:  # noqa: ANN401 -- clients may send anything
    with pytest.raises(InvalidRequest) as refused:
        check_schema(schema, strict=strict, param=PARAM)
    assert refused.value.param == PARAM
    return refused.value.message.removeprefix(f"{PARAM}: ")


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    city: str = Field(description="the town", examples=["Paris"])
    zip: Annotated[str, Field(pattern=r"^\d{5}$")]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=0, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str = "Rex"


class Tree(BaseModel):
    value: int
    children: list["Tree"] = []


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid", title="somebody")
    name: Annotated[str, Field(min_length=1, max_length=20)]
    age: int | None = None
    address: Address
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    tags: Annotated[list[str], Field(max_length=3)] = []
    colour: Colour = Colour.RED


class Everything(BaseModel):
    born: date
    seen: AwareDatetime
    wakes: day_time
    lasts: timedelta
    id: UUID
    host: IPv4Address
    page: HttpUrl
    price: Decimal
    level: Level
    pair: tuple[int, str]
    counts: dict[str, int]
    mixed: int | str | list[float] | None
    some: Annotated[float, Field(gt=0, lt=1)]
    even: Annotated[int, Field(multiple_of=2)]
    flag: bool
    what: Any


ZOO: list[Any] = [
    Address,
    Person,
    Tree,
    Everything,
    Cat | Dog,
    list[Person],
    dict[str, Tree],
    Literal["a", 1] | None,
    Colour,
    Level,
]
ZOO += [int, Annotated[int, Field(gt=3, lt=6)], datetime, Annotated[str, Field(pattern="^[a-c]+$", max_length=4)], Any]


@pytest.mark.parametrize("kind", ZOO, ids=str)
def test_what_pydantic_describes_comes_out(kind: Any) -> None:  # noqa: ANN401 -- of any type
    adapter = TypeAdapter[Any](kind)
    schema = adapter.json_schema()
    if schema.get("format") == "date-time":
        adapter = TypeAdapter(AwareDatetime)
    num_finished = 0
    for seed in range(4):
        answer = toy.RandomModel(seed).answer(constraint(schema, strict=kind is not Everything))
        if answer is not None:
            assert validate(answer.decode(), schema) is None
            if kind is not Everything:  # the seconds of a timedelta
                adapter.validate_json(answer)
            num_finished += 1
    assert num_finished


def test_everything_that_is_said_is_enforced() -> None:
    person: dict[str, Any] = {
        "name": "Jörg",
        "age": None,
        "address": {"street": "a", "city": "b", "zip": "12345"},
        "pet": None,
    }
    person |= {"tags": ["x"], "colour": "green"}
    assert toy.takes(constraint(Person.model_json_schema()), json.dumps(person, ensure_ascii=False).encode())
    for wrong in (
        {"name": ""},
        {"name": "x" * 21},
        {"address": {**person["address"], "zip": "1234"}},
        {"pet": {"kind": "cow"}},
        {"tags": ["a"] * 4},
        {"colour": "blue"},
        {"age": 1.5},
        {"more": 1},
    ):
        changed = json.dumps({**person, **wrong}, ensure_ascii=False).encode()
        assert not toy.takes(constraint(Person.model_json_schema()), changed), wrong


OBJECT = {"type": "object"}
REFUSED: list[tuple[object, str, str]] = [
    ({"not": {"type": "string"}}, "'not'", "$"),
    ({**OBJECT, "properties": {"x": {"not": {"const": 1}}}}, "'not'", "$.properties.x"),
    ({"if": {"type": "string"}, "then": {"minLength": 2}}, "'if' and 'then'", "$"),
    ({"type": "array", "items": {"type": "array", "uniqueItems": True}}, "'uniqueItems'", "$.items"),
    ({"type": "array", "contains": {"const": 1}}, "'contains'", "$"),
    ({**OBJECT, "dependentRequired": {"a": ["b"]}}, "'dependentRequired'", "$"),
    ({**OBJECT, "dependencies": {"a": ["b"]}}, "'dependencies'", "$"),
    ({**OBJECT, "propertyNames": {"pattern": "^a"}}, "'propertyNames'", "$"),
    ({**OBJECT, "unevaluatedProperties": False}, "'unevaluatedProperties'", "$"),
    ({**OBJECT, "additionalProperties": {"type": "integer"}, "minProperties": 2}, "'minProperties'", "$"),
    ({**OBJECT, "patternProperties": {"^a": {}, "b$": {"type": "integer"}}}, "'patternProperties'", "$"),
    ({"type": "string", "format": "colour"}, "'format'", "$"),
    ({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^(?=a)b"}]}, "'pattern'", "$.anyOf[1]"),
    ({"type": "string", "pattern": r"(a)\1"}, "'pattern'", "$"),
    ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]}, "'oneOf'", "$"),
    ({"$ref": "http://elsewhere/schema"}, "'$ref'", "$"),
    ({**OBJECT, "properties": {"a": {"$ref": "#/$defs/none"}}}, "'$ref'", "$.properties.a"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"not": {}}, "type": "array"}}}, "'not'", "$.$defs.a.items"),
    (
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a", "type": "null"}]}}},
        "'$ref'",
        "$.$defs.a.anyOf[0]",
    ),
    ({"$dynamicRef": "#a"}, "'$dynamicRef'", "$"),
    ({"type": "array", "items": {"pattern": "^((a{1000}){1000}){1000}$"}}, "pattern", "$.items.pattern"),
    ({"const": 2**60}, "'const'", "$"),
    ({"enum": [{"a": [2**60]}]}, "'enum'", "$"),
    ({"type": "integer", "minimum": 10**30}, "'minimum'", "$"),
    ({"x-guidance": {"lenient": True}, "not": {"type": "string"}}, "'not'", "$"),
]


@pytest.mark.parametrize(
    ("schema", "keyword", "where"), REFUSED, ids=[f"{keyword} {str(s)[:40]}" for s, keyword, _ in REFUSED]
)
def test_what_cannot_be_enforced_is_refused_by_name(schema: object, keyword: str, where: str) -> None:
    message = refusal(schema)
    assert keyword in message
    assert f"at {where} " in message or f"at {where}," in message
    assert "cannot be enforced" in message or "not in the schema" in message or "is too large" in message


def test_one_of_two_faults_is_named() -> None:
    faulty = {"type": "array", "items": {"uniqueItems": True}}
    assert "'uniqueItems' at $.properties.a.items" in refusal({**OBJECT, "properties": {"a": faulty, "b": faulty}})


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ([], "is an object"),
        ("{}", "is an object"),
        ({"type": "strin"}, "not a JSON Schema: at $.type"),
        ({"properties": []}, "not a JSON Schema: at $.properties"),
        ({"type": "string", "minLength": -1}, "not a JSON Schema: at $.minLength"),
        ({"$schema": "https://example.org/mine"}, "'$schema' is"),
        ({"enum": ["x" * 600_000]}, "characters"),
        ({"const": float("nan")}, "cannot be written as JSON"),
        ({"const": "\ud800"}, "cannot be written as JSON"),
    ],
)
def test_what_is_no_schema_is_refused(schema: object, reason: str) -> None:
    assert reason in refusal(schema)


def test_deep_schemas_are_refused_and_not_so_deep_ones_are_not() -> None:
    def nested(depth: int) -> dict[str, object]:
        schema: dict[str, object] = {"type": "string"}
        for _ in range(depth):
            schema = {**OBJECT, "properties": {"a": schema}}
        return schema

    assert "levels deep" in refusal(nested(60))
    assert "levels deep" in refusal(nested(5_000)) or "JSON" in refusal(nested(5_000))
    constraint(nested(40))


ENDLESS = {**OBJECT, "properties": {"self": {"$ref": "#"}}, "required": ["self"]}
PAIR = {"type": "array", "items": False, "minItems": 2}
PING = {**OBJECT, "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]}
PONG = {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "integer", "minimum": 8, "maximum": 13, "multipleOf": 7},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "integer", "enum": ["a"]},
        {"type": "string", "pattern": "^a{5}$", "maxLength": 3},
        {**OBJECT, "properties": {"a": False}, "required": ["a"]},
        {**OBJECT, "required": ["a"], "additionalProperties": False},
        {"type": "array", "minItems": 2, "maxItems": 1, "items": {"type": "string"}},
        {"enum": []},
        ENDLESS,
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, PAIR]}}},
        {"$defs": {"a": PING, "b": PONG}, "$ref": "#/$defs/a"},
        {**OBJECT, "$defs": {"a": PING, "b": PONG}, "properties": {"trap": {"$ref": "#/$defs/a"}}},
    ],
    ids=str,
)
def test_a_schema_without_values_is_refused(schema: object) -> None:
    assert "no value satisfies" in refusal(schema)


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        (
            {**OBJECT, "properties": {"c": {"type": "array", "items": {"$ref": "#"}}}},
            '{"c": [{"c": []}, {}]}',
            '{"c": 1}',
        ),
        ({"type": "array", "uniqueItems": False, "items": {"type": "integer"}}, "[1, 1]", '["a"]'),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, "-5", "1.5"),
        ({"type": "string", "format": "date"}, '"2024-02-29"', '"2023-02-29"'),
        ({"type": "string", "format": "date", "pattern": "^2"}, '"2024-02-29"', '"1924-02-29"'),
        ({"type": "string", "format": "date-time"}, '"2024-02-29T10:00:00Z"', '"2024-02-29T24:00:00Z"'),
        ({"type": "string", "format": "email"}, '"jo.x+y@example.org"', '"jo.example.org"'),
        ({"type": "string", "format": "hostname"}, '"a-1.example.org"', '"-a.org"'),
        ({"$defs": {"a/b": {"type": "null"}}, "$ref": "#/$defs/a~1b"}, "null", "1"),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, "1", "true"),
        ({**OBJECT, "properties": {"title": {"type": "string"}}, "required": ["title"]}, '{"title": "x"}', "{}"),
        ({**OBJECT, "minProperties": 1, "additionalProperties": {"type": "integer"}}, '{"x": 1}', "{}"),
        ({"enum": [f"value-{number}" for number in range(5_000)]}, '"value-4999"', '"value-5000"'),
        ({"type": "null", "$defs": {"unused": {"$ref": "#/$defs/unused"}}}, "null", "1"),
        ({}, '[{"a": null}]', "nul"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_can_be_enforced_is(schema: Mapping[str, object], taken: str, refused: str) -> None:
    assert toy.takes(constraint(schema), taken.encode())
    assert not toy.takes(constraint(schema), refused.encode())
    assert validate(taken, schema) is None
    assert validate(refused, schema) is not None


def test_formats_that_nobody_knows_are_remarks_unless_strict() -> None:
    schema = {"type": "string", "format": "binary"}
    assert toy.takes(constraint(schema, strict=False), b'"x"')
    assert "'binary'" in refusal(schema, strict=True)


def test_arguments_are_an_object() -> None:
    for parameters in ({}, {"properties": {"a": {"type": "string"}}}):
        assert check_parameters(parameters, strict=False, param="p")["type"] == "object"
    with pytest.raises(InvalidRequest, match="p: the arguments of a function are an object"):
        check_parameters({"type": "string"}, strict=False, param="p")


def test_one_fault_among_thousands_is_found() -> None:
    properties: dict[str, object] = {f"name{number}": {"anyOf": [{"type": "string"}]} for number in range(500)}
    properties["name777"] = {"anyOf": [{"type": "null"}, {"uniqueItems": True}]}
    assert "'uniqueItems' at $.properties.name777.anyOf[1]" in refusal({**OBJECT, "properties": properties})


def test_a_schema_is_checked_once() -> None:
    schema = {**OBJECT, "properties": {f"name{number}": {"type": "string"} for number in range(1_000)}}
    first = check_schema(schema, strict=True, param="a")
    assert check_schema(dict(schema), strict=True, param="b") is first


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"anyOf": [{"const": [i, j]} for j in range(3)]} for i in range(14)]},
        {
            "allOf": [
                {"anyOf": [{"type": "string", "pattern": f"^a{{{i}}}b{{{j}}}"} for j in range(2)]} for i in range(20)
            ]
        },
        {
            "$ref": "#/$defs/0",
            "$defs": {str(i): {"allOf": [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(25)} | {"25": {}},
        },
        {"type": "string", "allOf": [{"pattern": f".*(a|b)c{{{i}}}.*"} for i in range(2, 16)]},
        {
            **OBJECT,
            "allOf": [{"properties": {"a": {"type": "string", "pattern": f".*(a|b)c{{{i}}}.*"}}} for i in range(2, 16)],
        },
        {
            "$ref": "#/$defs/2",
            "$defs": {
                str(i): {"pattern": f".*(a|b)c{{{i}}}.*", "anyOf": [{"$ref": f"#/$defs/{i + 1}"}, {"maxLength": 9}]}
                for i in range(2, 16)
            }
            | {"16": {}},
        },
        {**OBJECT, "patternProperties": {f"^a{i}b": {} for i in range(150)}},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer"}, "minItems": 10_000},
            "minItems": 10_000,
        },
    ],
    ids=lambda schema: str(schema)[:60],
)
def test_explosive_schemas_take_a_moment_or_are_refused(schema: Mapping[str, object]) -> None:
    before = time.process_time()
    with contextlib.suppress(InvalidRequest):
        constraint(schema)
    assert time.process_time() - before < 10


def test_patterns_that_never_meet_may_be_many() -> None:
    named: dict[str, object] = {f"name{i}": {"type": "string", "pattern": f"^a{{{i}}}$"} for i in range(1, 30)}
    inherited: object = {"properties": {"id": {"type": "string", "format": "uuid", "pattern": "^[0-9a-f-]*$"}}}
    tree: dict[str, object] = {**OBJECT, "allOf": [inherited], "properties": {**named, "child": {"$ref": "#"}}}
    either = {"anyOf": [{"type": "string", "pattern": f"^b{{{i}}}$"} for i in range(1, 30)]}
    schemas: list[dict[str, object]] = [tree, {**OBJECT, "properties": {"a": either}}]
    for schema in schemas:
        assert check_schema(schema, strict=True, param="a")


@pytest.mark.parametrize(
    ("schema", "enforced"),
    [
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, {"properties": {"a": {"type": "array"}}}),
        ({"properties": {"a": {"pattern": "(?=b)b", "type": "string"}}}, {"properties": {"a": {"type": "string"}}}),
        ({"properties": {"a": {"$ref": "https://example.com/a"}}}, {"properties": {"a": {}}}),
        ({"properties": {"a": {}}, "if": {"required": ["a"]}, "then": {"required": ["b"]}}, {"properties": {"a": {}}}),
        ({"properties": {"a": {"not": {}}, "b": {"const": 1}}}, {"properties": {"a": {}, "b": {"const": 1}}}),
        ({"properties": 5}, {}),
        ({"x-guidance": {"lenient": True}, "minProperties": 5}, {}),
    ],
)
def test_of_arguments_that_nobody_demands_what_can_be_is_enforced(
    schema: dict[str, object], enforced: dict[str, object]
) -> None:
    assert enforceable_parameters(schema, param="tools[0].function.parameters") == {"type": "object", **enforced}
