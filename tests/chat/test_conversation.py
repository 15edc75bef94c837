from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from server.chat.capabilities import TemplateCapabilities
from server.chat.conversation import RESERVED, Adapter, Conversation
from server.chat.family_tools import tool_texts
from server.chat.generic_tools import CallText, GenericTools
from server.core.errors import InvalidRequest
from server.core.request import Message, ReasoningEffort, Role, Tool, ToolCall, ToolChoice, ToolChoiceMode

SYSTEM, USER = Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "Hi")
WEATHER = Tool("weather", "Tells it.", {"properties": {"city": {"type": "string"}}, "required": ["city"]})
PARIS = ToolCall("call_1", "weather", '{"city": "Paris"}')
ROME = ToolCall("call_2", "weather", '{"city": "Rome"}')
CALL_TEXT = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def calling(*calls: ToolCall, content: str = "", reasoning: str = "") -> Message:
    return Message(Role.ASSISTANT, content, tool_calls=calls, reasoning=reasoning)


def result(call: ToolCall, content: str) -> Message:
    return Message(Role.TOOL, content, tool_call_id=call.id)


def variables(*messages: Message, capabilities: Mapping[str, Any] | None = None, **others: Any) -> dict[str, Any]:  # noqa: ANN401
    adapter = Adapter(TemplateCapabilities(**capabilities or {}), GenericTools())
    return adapter.variables(Conversation(messages, **others), str)


def entries(*messages: Message, capabilities: Mapping[str, Any] | None = None, **others: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    found: list[dict[str, Any]] = variables(*messages, capabilities=capabilities, **others)["messages"]
    return found


def wire(call: ToolCall, **others: object) -> dict[str, object]:
    arguments = others.pop("arguments", json.loads(call.arguments))
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}, **others}


def test_a_template_that_takes_everything_gets_it_as_it_is() -> None:
    messages = (
        SYSTEM,
        Message(Role.USER, "Hi", name="Ada"),
        calling(ROME, PARIS, content="Let me see.", reasoning="Hm."),
        result(PARIS, "sunny"),
        result(ROME, "rainy"),
        Message(Role.ASSISTANT, "Both."),
    )
    found = variables(*messages, tools=(WEATHER,))
    assert found["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi", "name": "Ada"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "tool_calls": [wire(ROME), wire(PARIS)],
        },
        {"role": "tool", "content": "rainy", "name": "weather", "tool_call_id": "call_2"},
        {"role": "tool", "content": "sunny", "name": "weather", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "Both."},
    ]
    function = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", **WEATHER.parameters}}
    assert found["tools"] == [{"type": "function", "function": function}]
    assert found["add_generation_prompt"] is True


def test_a_tool_without_description_and_parameters_has_what_templates_look_at() -> None:
    (tool,) = variables(USER, tools=(Tool("f", None, {}),))["tools"]
    assert tool["function"] == {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}


def test_no_tools_are_none_or_an_empty_list() -> None:
    assert variables(USER)["tools"] is None
    assert variables(USER, capabilities={"empty_tools": True})["tools"] == []


def test_developer_is_system_unless_the_template_knows_it() -> None:
    message = Message(Role.DEVELOPER, "Be brief.")
    assert entries(message)[0]["role"] == "system"
    assert entries(message, capabilities={"developer": True})[0]["role"] == "developer"


def test_arguments_as_text_and_content_that_is_null() -> None:
    changed = {"arguments_are_text": True, "null_content": True}
    assert entries(USER, calling(PARIS), capabilities=changed)[1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [wire(PARIS, arguments='{"city": "Paris"}')],
    }


def test_ids_are_shortened_the_same_way_each_time_and_short_ones_stay() -> None:
    short = ToolCall("abcDEF123", "weather", "{}")
    messages = (USER, calling(PARIS, short), result(PARIS, "sunny"), result(short, "rainy"))
    _, assistant, first, second = entries(*messages, capabilities={"short_ids": True})
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert ids == [first["tool_call_id"], second["tool_call_id"]]
    assert ids[1] == "abcDEF123"
    assert len(ids[0]) == 9
    assert ids[0].isalnum()
    assert ids == [call["id"] for call in entries(*messages, capabilities={"short_ids": True})[1]["tool_calls"]]


def test_calls_one_by_one_where_a_message_has_one() -> None:
    messages = (USER, calling(PARIS, ROME, content="Both."), result(ROME, "rainy"), result(PARIS, "sunny"))
    assert entries(*messages, capabilities={"parallel_calls": False})[1:] == [
        {"role": "assistant", "content": "Both.", "tool_calls": [wire(PARIS)]},
        {"role": "tool", "content": "sunny", "name": "weather", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "", "tool_calls": [wire(ROME)]},
        {"role": "tool", "content": "rainy", "name": "weather", "tool_call_id": "call_2"},
    ]


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (
            {"text_beside_calls": False},
            [
                {"role": "assistant", "content": "Well."},
                {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [wire(PARIS)]},
            ],
        ),
        (
            {"text_beside_calls": False, "text_before_calls": False, "null_content": True},
            [{"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [wire(PARIS)]}],
        ),
        (
            {"reasoning_field": "thinking", "reasoning_beside_text": False},
            [{"role": "assistant", "content": "Well.", "tool_calls": [wire(PARIS)]}],
        ),
        (
            {"reasoning_field": "thinking"},
            [{"role": "assistant", "content": "Well.", "thinking": "Hm.", "tool_calls": [wire(PARIS)]}],
        ),
        (
            {"calls": False},
            [{"role": "assistant", "content": f"Well.\n{CALL_TEXT}", "reasoning_content": "Hm."}],
        ),
    ],
)
def test_words_and_thoughts_beside_a_call(capabilities: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    message = calling(PARIS, content="Well.", reasoning="Hm.")
    assert entries(USER, message, capabilities=capabilities)[1:] == expected


def test_roles_in_a_row_become_one_message_where_they_must() -> None:
    messages = (USER, Message(Role.USER, "Hello?"), calling(PARIS), result(PARIS, "sunny"), calling(ROME))
    found = entries(*messages, capabilities={"roles_in_a_row": False})
    assert [entry["content"] for entry in found] == ["Hi\n\nHello?", "", "sunny", ""]
    assert len(entries(*messages)) == 5


@pytest.mark.parametrize(
    ("messages", "contents"),
    [
        ([SYSTEM, USER], ["Be brief.\n\nHi"]),
        ([USER, SYSTEM, USER], ["Hi", "Be brief.\n\nHi"]),
        ([USER, SYSTEM], ["Hi", "Be brief."]),
        ([SYSTEM, SYSTEM, USER], ["Be brief.\n\nBe brief.\n\nHi"]),
    ],
)
def test_the_system_speaks_through_the_user_where_there_is_none(messages: list[Message], contents: list[str]) -> None:
    found = entries(*messages, capabilities={"system": False})
    assert [entry["content"] for entry in found] == contents
    assert {entry["role"] for entry in found} == {"user"}


def test_content_in_parts() -> None:
    assert entries(USER, capabilities={"content_parts": True}) == [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    ]


def test_a_template_without_tools_gets_them_in_words() -> None:
    messages = (SYSTEM, USER, calling(PARIS, ROME), result(ROME, "rainy"), result(PARIS, "sunny"))
    found = variables(*messages, tools=(WEATHER,), capabilities={"tools": False})
    system, user, assistant, results = found["messages"]
    assert found["tools"] is None
    assert system["content"].startswith("Be brief.\n\n")
    assert json.dumps({"type": "string"}) in system["content"]
    assert user["content"] == "Hi"
    assert assistant == {"role": "assistant", "content": f"{CALL_TEXT}\n{CALL_TEXT.replace('Paris', 'Rome')}"}
    assert results == {
        "role": "user",
        "content": "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrainy\n</tool_response>",
    }
    # the history of a request without tools is as the template shows it
    assert "tool_calls" in entries(*messages, capabilities={"tools": False})[2]


def test_results_alone_in_words_and_the_instruction_without_a_system() -> None:
    messages = (USER, calling(PARIS), result(PARIS, "sunny"))
    assert entries(*messages, capabilities={"results": False})[2]["content"].startswith("<tool_response>\nsunny")
    first, *_ = entries(*messages, tools=(WEATHER,), capabilities={"tools": False})
    assert (first["role"], "<tools>" in first["content"]) == ("system", True)
    first, *_ = entries(*messages, tools=(WEATHER,), capabilities={"tools": False, "system": False})
    assert (first["role"], first["content"].endswith("\n\nHi")) == ("user", True)


def test_calls_in_the_words_of_families() -> None:
    arguments: dict[str, object] = {"a": "x\ny", "b": [1, 2.5, None], "c": {"d": True}}
    calls = [CallText("f", arguments), CallText("g", {})]
    assert tool_texts("<|tool_list_start|>").calls(calls) == (
        '<|tool_call_start|>[f(a="x\\ny", b=[1, 2.5, None], c={"d": True}), g()]<|tool_call_end|>'
    )
    assert (
        tool_texts("<|start_of_role|><|tool_call|>").calls(calls[1:]) == '<|tool_call|>[{"name": "g", "arguments": {}}]'
    )
    assert isinstance(tool_texts("<|tool_call|>"), GenericTools)


class NativeTools(GenericTools):
    is_native = True


def test_words_of_the_models_own_family_go_with_the_calls_of_its_template() -> None:
    adapter = Adapter(TemplateCapabilities(tools=False), NativeTools())
    found: Any = adapter.variables(Conversation((USER, calling(PARIS)), tools=(WEATHER,)), str)["messages"]
    assert "<tools>" in found[0]["content"]
    assert found[2]["tool_calls"] == [wire(PARIS)]


@pytest.mark.parametrize(
    ("choice", "is_parallel", "said"),
    [
        (ToolChoice(), True, "several of these blocks"),
        (ToolChoice(), False, "one call at a time"),
        (ToolChoice(ToolChoiceMode.NONE), True, "Do not call"),
        (ToolChoice(ToolChoiceMode.REQUIRED), True, "must call at least one"),
        (ToolChoice(ToolChoiceMode.REQUIRED, "weather"), True, 'must call the function "weather"'),
    ],
)
def test_what_is_demanded_is_said(choice: ToolChoice, is_parallel: bool, said: str) -> None:  # noqa: FBT001
    found = entries(USER, tools=(WEATHER,), tool_choice=choice, is_parallel=is_parallel, capabilities={"tools": False})
    assert said in found[0]["content"]
    assert len(entries(USER, tools=(WEATHER,), tool_choice=choice)) == 1


def test_arguments_that_cannot_be_read_name_their_call() -> None:
    with pytest.raises(InvalidRequest) as caught:
        entries(USER, calling(PARIS, ToolCall("x", "f", "{")))
    assert caught.value.param == "messages[1].tool_calls[1].function.arguments"


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_options_may_not_replace_what_the_server_sets(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        variables(USER, template_options={name: 1})
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_options_are_json_and_reach_the_template() -> None:
    options = {"a": [1, 2.5, None, True, {"b": "c"}], "self": "x"}
    found = variables(USER, template_options=options)
    assert {name: found[name] for name in options} == options
    with pytest.raises(InvalidRequest, match="is no JSON"):
        variables(USER, template_options={"a": {1, 2}})


def test_effort_is_said_in_the_templates_words_and_options_win() -> None:
    capabilities = {"efforts": {"reasoning_effort": {"high": "max"}, "thinking_effort": {}}}
    found = variables(USER, capabilities=capabilities, reasoning_effort=ReasoningEffort.HIGH)
    assert (found["reasoning_effort"], found["enable_thinking"], found["thinking"]) == ("max", True, True)
    assert "thinking_effort" not in found
    found = variables(
        USER,
        capabilities=capabilities,
        reasoning_effort=ReasoningEffort.NONE,
        template_options={"enable_thinking": True, "reasoning_effort": "some"},
    )
    assert (found["reasoning_effort"], found["enable_thinking"], found["thinking"]) == ("some", True, True)
    found = variables(USER, template_options={"enable_thinking": True, "thinking": False})
    assert (found["enable_thinking"], found["thinking"]) == (True, False)
    assert "enable_thinking" not in variables(USER)
