import socket
import time

import pytest

from server.core.errors import InvalidRequest
from server.grammar.validation import check_validatable, validate

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "born": {"type": "string", "format": "date"}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"name": "x"}', None),
        ('{"name": "x", "born": "2024-02-29"}', None),
        ('{"name": "x", "born": "2023-02-29"}', "date"),
        ('{"name": ""}', "shorter"),
        ("{}", "name"),
        ('{"name": "x", "more": 1}', "more"),
        ('{"name": "x"', "not JSON"),
        ("", "not JSON"),
        ('{"name": NaN}', "not JSON"),
        ("1e99999999999999999999", "too large"),
        ("[" * 100_000, "not JSON"),
        ("9" * 10_000, "not JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_wrong_is_told(text: str, fault: str | None) -> None:
    said = validate(text, PERSON)
    assert said is None if fault is None else (said is not None and fault in said)


def test_keywords_that_no_grammar_can_enforce_are_validated() -> None:
    schema = {"type": "array", "items": {"not": {"const": 1}}, "uniqueItems": True}
    assert validate("[2, 3]", schema) is None
    assert validate("[2, 2]", schema) is not None
    assert validate("[1]", schema) is not None
    assert validate("1.10", {"multipleOf": 0.01}) is None
    assert validate("1e400", {"type": "number"}) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strin"},
        {"pattern": "(?=a)b"},
        {"pattern": r"(a)\1"},
        {"pattern": "((a{1000}){1000}){1000}"},
        {"$ref": "#/$defs/none"},
        {"$schema": "http://127.0.0.1:9/mine"},
    ],
    ids=str,
)
def test_a_schema_that_cannot_be_used_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=r"^p: "):
        check_validatable(schema, param="p")


def test_nothing_is_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)  # noqa: FBT003
        with pytest.raises(InvalidRequest):
            check_validatable({"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/schema"}, param="p")
        with pytest.raises(BlockingIOError):  # nobody came
            server.accept()


def test_patterns_match_in_linear_time() -> None:
    before = time.process_time()
    assert validate('"' + "a" * 50_000 + '!"', {"pattern": "^(a|a|aa)*$"}) is not None
    assert validate('"' + "a" * 50_000 + '!"', {"pattern": "^(a+)+$"}) is not None
    assert time.process_time() - before < 5


def _doubled(reference: str, **names: str) -> dict[str, object]:
    levels = [{"allOf": [{"$ref": reference.format(number + 1)}] * 2} for number in range(40)]
    anchored = [
        {**{key: name.format(number) for key, name in names.items()}, **level} for number, level in enumerate(levels)
    ]
    last = {key: name.format(40) for key, name in names.items()}
    return {"$ref": reference.format(0), "$defs": {str(n): each for n, each in enumerate([*anchored, last])}}


@pytest.mark.parametrize(
    "schema", [_doubled("#/$defs/{}"), _doubled("#a{}", **{"$anchor": "a{}"})], ids=["path", "anchor"]
)
def test_schemas_that_double_themselves_are_refused(schema: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="too long"):
        check_validatable(schema, param="a")


def test_recursive_schemas_are_not_too_large() -> None:
    node = {"properties": {"kind": {"enum": ["a", "b"]}, "left": {"$ref": "#"}, "right": {"$ref": "#"}}}
    tree = {"anyOf": [{**node, "required": [name]} for name in ("left", "right", "kind")]}
    assert validate('{"left": {"left": {"kind": "a"}}, "right": {"kind": "b"}}', tree) is None
