"""Calls that the model has to make: what the daemon is asked for, and what its answer becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asking import CITY, TIME, WEATHER, asked
from fakes.described import complaints
from hypothesis import given
from hypothesis import strategies as st

from server.backends.ollama.forced_call import forced_call_format, forced_call_instruction, parse_forced_call
from server.core.request import ChatRequest, Tool, ToolChoice, ToolChoiceMode


def forced(*tools: Tool, name: str | None = None) -> ChatRequest:
    return asked(tools=tools, tool_choice=ToolChoice(ToolChoiceMode.REQUIRED, name))


def call_of(name: str, arguments: object) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def test_one_function_is_one_schema() -> None:
    assert forced_call_format(forced(WEATHER)) == call_of("weather", CITY)


def test_several_functions_are_alternatives() -> None:
    wanted = forced_call_format(forced(WEATHER, TIME))

    assert wanted == {"anyOf": [call_of("weather", CITY), call_of("time", TIME.parameters)]}


def test_the_named_function_is_the_only_one() -> None:
    request = forced(WEATHER, TIME, name="time")

    assert forced_call_format(request) == call_of("time", TIME.parameters)
    assert "weather" not in forced_call_instruction(request)


@pytest.mark.parametrize("keyword", ["$defs", "definitions"])
def test_definitions_move_to_the_root(keyword: str) -> None:
    def located(name: str) -> Tool:
        reference = {"$ref": f"#/{keyword}/{name}"}
        definition = {name: {"type": "string", "enum": [name]}}
        parameters = {"type": "object", "properties": {"a": reference}, "required": ["a"], keyword: definition}
        return Tool(f"call_{name}", None, parameters)

    for tools in ((located("x"),), (located("x"), located("y"), TIME)):
        wanted = forced_call_format(forced(*tools))

        prefixes = ("0_", "1_") if len(tools) > 1 else ("",)
        assert set(wanted[keyword]) == {prefix + name for prefix, name in zip(prefixes, ("x", "y"), strict=False)}
        call: dict[str, Any] = {"name": "call_x", "arguments": {"a": "x"}}
        assert not list(complaints(call, wanted, wanted))
        assert wanted[keyword][f"{prefixes[0]}x"] == {"type": "string", "enum": ["x"]}


def test_tools_do_not_mix_up_their_definitions() -> None:
    def tool(name: str, kind: str) -> Tool:
        parameters = {"properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"], "$defs": {"A": {"type": kind}}}
        return Tool(name, None, {"type": "object", **parameters})

    wanted = forced_call_format(forced(tool("f", "string"), tool("g", "integer")))

    assert wanted["$defs"] == {"0_A": {"type": "string"}, "1_A": {"type": "integer"}}
    arguments = [call["properties"]["arguments"]["properties"] for call in wanted["anyOf"]]
    assert arguments == [{"a": {"$ref": "#/$defs/0_A"}}, {"a": {"$ref": "#/$defs/1_A"}}]


@pytest.mark.parametrize("odd", [None, 5, [], "text"])
def test_definitions_that_are_none_are_left_alone(odd: object) -> None:
    assert forced_call_format(forced(Tool("f", None, {"$defs": odd})))["properties"]["arguments"] == {"$defs": odd}


def test_the_instruction_describes_the_functions() -> None:
    instruction = forced_call_instruction(forced(WEATHER, TIME))

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
    assert parse_forced_call(text, forced(WEATHER, TIME)) == ("weather", '{"city":"Zürich"}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_arguments_survive(arguments: dict[str, Any]) -> None:
    parsed = parse_forced_call(json.dumps({"name": "time", "arguments": arguments}), forced(TIME))

    assert parsed is not None
    assert json.loads(parsed[1]) == arguments


@given(
    st.text(max_size=30)
    | JSON.map(json.dumps)
    | st.builds(lambda a, b: json.dumps({"name": a, "arguments": b}), JSON, JSON)
)
def test_other_text_is_no_call(text: str) -> None:
    assert parse_forced_call(text, forced(WEATHER)) is None
