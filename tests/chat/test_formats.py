"""Every format: what its grammar allows, its parser reads as calls with valid arguments, however the text is cut."""

from __future__ import annotations

import json
from collections.abc import Sequence

import jsonschema_rs
import pytest
from answers import made_up, parse, parse_however_cut

from server.chat.answer_format import AnswerFormat, AnswerPlan, ReasoningStart
from server.chat.formats import FORMATS
from server.core.request import ChoiceFormat, JsonSchemaFormat, Tool
from server.grammar.schema import check_parameters

WEATHER = Tool(
    "get_weather",
    "Tell the weather.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
NESTED = Tool(
    "book-trip_2",
    None,
    {
        "type": "object",
        "properties": {
            "class": {"enum": ["first", "second"]},
            "legs": {"type": "array", "items": {"$ref": "#/$defs/leg"}, "minItems": 1, "maxItems": 2},
            "note": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}]},
            "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]$"},
            "refundable": {"type": "boolean"},
        },
        "required": ["class", "legs", "note"],
        "additionalProperties": False,
        "$defs": {
            "leg": {
                "type": "object",
                "properties": {
                    "to": {"type": "string", "maxLength": 4},
                    "km": {"type": "number", "minimum": 0, "maximum": 900},
                },
                "required": ["to"],
                "additionalProperties": False,
            }
        },
    },
)
NOTHING = Tool("ping", None, {"type": "object", "properties": {}})
TOOLS = (WEATHER, NESTED, NOTHING)
ODD = Tool(
    "odd",
    None,
    {
        "type": "object",
        "properties": {
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "either": {"type": ["string", "integer"]},
            "tree": {"$ref": "#/$defs/node"},
            "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
            "rows": {"type": "array", "items": {"type": "array", "items": {"enum": ["x", "y"]}}},
            "day": {"type": "string", "format": "date"},
            "any": {},
            "inner": {"type": "object", "properties": {"z": {"type": "string"}, "y": {"type": "null"}}},
        },
        "required": ["either", "any"],
        "additionalProperties": False,
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
                },
                "required": ["value"],
                "additionalProperties": False,
            }
        },
    },
)
SCHEMAS = {tool.name: tool.parameters for tool in (*TOOLS, ODD)}
SEEDS = range(3)


def check_calls(calls: Sequence[tuple[str, str]]) -> None:
    for name, arguments in calls:
        assert jsonschema_rs.is_valid(dict(SCHEMAS[name]), json.loads(arguments)), (name, arguments)


@pytest.mark.parametrize("are_control", [False, True], ids=["text", "control"])
@pytest.mark.parametrize("answer_format", FORMATS, ids=lambda each: each.name)
class TestFormat:
    def test_a_demanded_call_is_a_call(self, answer_format: AnswerFormat, *, are_control: bool) -> None:
        for seed in SEEDS:
            for is_parallel in (True, False):
                plan = AnswerPlan(TOOLS, must_call=True, is_parallel=is_parallel)
                text = made_up(answer_format, plan, seed, are_control=are_control)
                if text is None:
                    continue
                answer = parse(answer_format, plan, [text])
                assert answer.num_complete == len(answer.calls) >= 1, text
                assert is_parallel or len(answer.calls) == 1
                assert answer.content == "", text
                check_calls(answer.calls)

    def test_each_tool_can_be_demanded(self, answer_format: AnswerFormat, *, are_control: bool) -> None:
        for tool in TOOLS:
            plan = AnswerPlan((tool,), must_call=True, is_parallel=False)
            texts = [made_up(answer_format, plan, seed, are_control=are_control) for seed in SEEDS]
            finished = sorted(filter(None, texts), key=len)
            assert finished
            for text in finished:
                answer = parse(answer_format, plan, [text])
                assert [name for name, _ in answer.calls] == [tool.name], text
                check_calls(answer.calls)
            parse_however_cut(answer_format, plan, finished[0])

    def test_what_begins_as_a_call_becomes_one(self, answer_format: AnswerFormat, *, are_control: bool) -> None:
        num_calls = 0
        for seed in range(60):
            if num_calls and seed not in SEEDS:
                break
            plan = AnswerPlan(TOOLS)
            text = made_up(answer_format, plan, seed, are_control=are_control)
            if text is not None:
                answer = parse(answer_format, plan, [text])
                assert answer.num_complete == len(answer.calls), text
                check_calls(answer.calls)
                num_calls += len(answer.calls)
        assert num_calls

    def test_odd_schemas_are_kept(self, answer_format: AnswerFormat, *, are_control: bool) -> None:
        plan = AnswerPlan((ODD,), must_call=True, reasoning=ReasoningStart.POSSIBLE)
        texts = [made_up(answer_format, plan, seed, are_control=are_control) for seed in range(5)]
        assert any(texts)
        for text in filter(None, texts):
            answer = parse(answer_format, plan, [text])
            assert answer.num_complete == len(answer.calls) >= 1, text
            check_calls(answer.calls)


@pytest.mark.parametrize("are_control", [False, True], ids=["text", "control"])
@pytest.mark.parametrize(
    "answer_format", [each for each in FORMATS if each.thinking_end is not None], ids=lambda each: each.name
)
def test_thinking_comes_first(answer_format: AnswerFormat, *, are_control: bool) -> None:
    for start in (ReasoningStart.OPEN, ReasoningStart.POSSIBLE):
        schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
        plan = AnswerPlan(response_format=JsonSchemaFormat({**schema, "additionalProperties": False}), reasoning=start)
        texts = [made_up(answer_format, plan, seed, are_control=are_control) for seed in SEEDS]
        finished = sorted(filter(None, texts), key=len)
        for text in finished:
            answer = parse(answer_format, plan, [text])
            assert isinstance(json.loads(answer.content)["a"], int), text
        parse_however_cut(answer_format, plan, finished[0])


PARAMETERS = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 9},
        "same": {"$ref": "#/properties/n"},
        "child": {"$ref": "#"},
    },
    "required": ["n", "same"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("answer_format", FORMATS, ids=lambda each: each.name)
def test_references_to_the_whole_schema(answer_format: AnswerFormat) -> None:
    tool = Tool("nested", None, check_parameters(PARAMETERS, strict=True, param="tools"))
    plan = AnswerPlan((tool,), must_call=True, is_parallel=False)
    texts = [made_up(answer_format, plan, seed) for seed in range(6)]
    answers = [parse(answer_format, plan, [text]) for text in texts if text is not None]
    assert answers
    for answer in answers:
        assert jsonschema_rs.is_valid(PARAMETERS, json.loads(answer.calls[0][1]))


@pytest.mark.parametrize("answer_format", FORMATS, ids=lambda each: each.name)
def test_what_needs_no_parser_is_not_changed_by_it(answer_format: AnswerFormat) -> None:
    text = 'Hello, {"name": "Paris"}!\n\nSo be it.'
    if answer_format.speaks_plainly:
        assert parse(answer_format, AnswerPlan(), [text]).content == text


@pytest.mark.parametrize("answer_format", FORMATS, ids=lambda each: each.name)
def test_thinking_can_be_ended_for_the_model(answer_format: AnswerFormat) -> None:
    closing = answer_format.thinking_closing(AnswerPlan())
    if closing is None:
        assert answer_format.thinking_end is None
        return
    parser = answer_format.parser(AnswerPlan(reasoning=ReasoningStart.OPEN))
    parser.push("I think, and think")
    assert parser.is_reasoning
    parser.push(closing)
    assert not parser.is_reasoning


@pytest.mark.parametrize("answer_format", FORMATS, ids=lambda each: each.name)
def test_the_beginning_of_a_demanded_call_is_no_content(answer_format: AnswerFormat) -> None:
    plan = AnswerPlan((WEATHER,), must_call=True, is_parallel=False)
    text = made_up(answer_format, plan, 1)
    assert text is not None
    for end in range(len(text)):
        assert parse(answer_format, plan, [text[:end]]).content == "", text[:end]


@pytest.mark.parametrize("answer_format", FORMATS, ids=lambda each: each.name)
def test_a_choice_is_said_with_nothing_around_it(answer_format: AnswerFormat) -> None:
    for tools in ((), (NOTHING,)):
        for start in ReasoningStart:
            plan = AnswerPlan(tools, response_format=ChoiceFormat(("yes", "no")), reasoning=start)
            for seed in SEEDS:
                text = made_up(answer_format, plan, seed)
                if text is None:
                    continue
                answer = parse(answer_format, plan, [text])
                assert answer.calls or answer.content in {"yes", "no"}, text
