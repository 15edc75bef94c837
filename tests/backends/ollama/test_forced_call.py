"""Calls that the model has to make: what the daemon is asked for, and what its answer becomes."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from asking import CITY, TIME, WEATHER
from fakes.described import complaints
from hypothesis import given
from hypothesis import strategies as st

from server.backends.ollama.forced_call import (
    WrittenAnswer,
    WrittenCall,
    forced_call_format,
    forced_call_instruction,
    parse_forced_call,
)
from server.core.request import Tool


def call_of(name: str, arguments: object) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def test_one_function_is_one_schema() -> None:
    assert forced_call_format([WEATHER]) == call_of("weather", CITY)


def test_several_functions_are_alternatives() -> None:
    wanted = forced_call_format([WEATHER, TIME])

    assert wanted == {"anyOf": [call_of("weather", CITY), call_of("time", TIME.parameters)]}


@pytest.mark.parametrize("keyword", ["$defs", "definitions"])
def test_definitions_move_to_the_root(keyword: str) -> None:
    def located(name: str) -> Tool:
        reference = {"$ref": f"#/{keyword}/{name}"}
        definition = {name: {"type": "string", "enum": [name]}}
        parameters = {"type": "object", "properties": {"a": reference}, "required": ["a"], keyword: definition}
        return Tool(f"call_{name}", None, parameters)

    for tools in ((located("x"),), (located("x"), located("y"), TIME)):
        wanted = forced_call_format([*tools])

        prefixes = ("0_", "1_") if len(tools) > 1 else ("",)
        assert set(wanted[keyword]) == {prefix + name for prefix, name in zip(prefixes, ("x", "y"), strict=False)}
        call: dict[str, Any] = {"name": "call_x", "arguments": {"a": "x"}}
        assert not list(complaints(call, wanted, wanted))
        assert wanted[keyword][f"{prefixes[0]}x"] == {"type": "string", "enum": ["x"]}


def test_tools_do_not_mix_up_their_definitions() -> None:
    def tool(name: str, kind: str) -> Tool:
        parameters = {"properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"], "$defs": {"A": {"type": kind}}}
        return Tool(name, None, {"type": "object", **parameters})

    wanted = forced_call_format([tool("f", "string"), tool("g", "integer")])

    assert wanted["$defs"] == {"0_A": {"type": "string"}, "1_A": {"type": "integer"}}
    arguments = [call["properties"]["arguments"]["properties"] for call in wanted["anyOf"]]
    assert arguments == [{"a": {"$ref": "#/$defs/0_A"}}, {"a": {"$ref": "#/$defs/1_A"}}]


@pytest.mark.parametrize("odd", [None, 5, [], "text"])
def test_definitions_that_are_none_are_left_alone(odd: object) -> None:
    assert forced_call_format([Tool("f", None, {"$defs": odd})])["properties"]["arguments"] == {
        "type": "object",
        "$defs": odd,
    }


def test_a_schema_that_refers_to_itself_stays_itself() -> None:
    """References to the root of a schema that is not the root any more."""
    leaf = {"type": "object", "properties": {"down": {"$ref": "#"}, "beside": {"$ref": "#/properties/down"}}}
    node = {"type": "object", "properties": {"next": {"$ref": "#"}, "n": {"type": "integer"}}, "required": ["n"]}
    wanted = forced_call_format([Tool("f", None, leaf), Tool("g", None, node)])

    assert wanted["anyOf"][1]["properties"]["arguments"]["properties"]["next"] == {"$ref": "#/$defs/1_the-whole"}
    assert jsonschema_rs.is_valid(wanted, {"name": "g", "arguments": {"n": 1, "next": {"n": 2}}})
    assert not jsonschema_rs.is_valid(wanted, {"name": "g", "arguments": {"n": 1, "next": {"next": {}}}})
    beside = wanted["anyOf"][0]["properties"]["arguments"]["properties"]["beside"]
    assert beside == {"$ref": "#/$defs/0_the-whole/properties/down"}


def test_what_only_looks_like_a_keyword_is_left_alone() -> None:
    properties = {
        "definitions": {"type": "object", "properties": {"$ref": {"type": "string"}}},
        "default": {"$ref": "#/$defs/A"},
        "plain": {"const": {"$ref": "#/$defs/A"}},
    }
    tool = Tool("f", None, {"type": "object", "properties": properties, "$defs": {"A": {"type": "null"}}})

    call = forced_call_format([TIME, tool])["anyOf"][1]

    assert call["properties"]["arguments"]["properties"] == {**properties, "default": {"$ref": "#/$defs/1_A"}}


def test_an_answer_is_one_more_alternative() -> None:
    answer = {"$ref": "#/$defs/A", "$defs": {"A": {"type": "null"}}}

    wanted = forced_call_format([WEATHER], answer)

    assert wanted == {
        "anyOf": [
            call_of("weather", CITY),
            {
                "type": "object",
                "properties": {"answer": {"$ref": "#/$defs/1_A"}},
                "required": ["answer"],
                "additionalProperties": False,
            },
        ],
        "$defs": {"1_A": {"type": "null"}},
    }
    assert json.dumps(answer) in forced_call_instruction([WEATHER], answer)


def test_the_instruction_describes_the_functions() -> None:
    instruction = forced_call_instruction([WEATHER, TIME])

    described = [json.loads(line) for line in instruction.splitlines() if line.startswith("{")]
    assert described == [
        {"name": "weather", "description": "How it is outside", "parameters": CITY},
        {"name": "time", "parameters": TIME.parameters},
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"name":"weather","arguments":{"city":"Zürich"}}',
        ' {"arguments": {"city": "Z\\u00fcrich"},\n "name": "weather"}\n',
    ],
)
def test_a_call(text: str) -> None:
    assert parse_forced_call(text, [WEATHER, TIME]) == WrittenCall("weather", '{"city":"Zürich"}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_arguments_survive(arguments: dict[str, Any]) -> None:
    parsed = parse_forced_call(json.dumps({"name": "time", "arguments": arguments}), [TIME])

    assert isinstance(parsed, WrittenCall)
    assert json.loads(parsed.arguments) == arguments


@given(
    st.text(max_size=30)
    | JSON.map(json.dumps)
    | st.builds(lambda a, b: json.dumps({"name": a, "arguments": b}), JSON, JSON)
)
def test_other_text_is_no_call(text: str) -> None:
    assert parse_forced_call(text, [WEATHER]) is None


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('{"answer": null}', WrittenAnswer(None)),
        ('{"answer": {"name": "time", "arguments": {}}}', WrittenAnswer({"name": "time", "arguments": {}})),
        ('{"name": "time", "arguments": {"answer": 1}}', WrittenCall("time", '{"answer":1}')),
        ('{"answer": 1, "name": "other"}', None),
        ('{"name": "time", "arguments": {"n": 1e999}}', None),
        ('{"name": "time", "arguments": {"n": NaN}}', None),
        (r'{"name": "time", "arguments": {"half": "\ud83d"}}', None),
    ],
)
def test_a_call_or_an_answer(text: str, written: object) -> None:
    assert parse_forced_call(text, [TIME], may_answer=True) == written
    if isinstance(written, WrittenAnswer):
        assert parse_forced_call(text, [TIME]) is None
