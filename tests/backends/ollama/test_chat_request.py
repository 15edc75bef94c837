"""The body that a chat request becomes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from asking import CITY, HELLO, TIME, WEATHER, asked
from hypothesis import given
from hypothesis import strategies as st

from server.api.schemas import ChatCompletionBody
from server.api.unsupported import HERE, MESSAGE_PARAMETERS, TOOL_PARAMETERS
from server.backends.ollama.answer_form import answer_form
from server.backends.ollama.chat_request import PARAMETERS, chat_body, seed_of_choice
from server.backends.ollama.forced_call import forced_call_format, forced_call_instruction
from server.core.errors import InvalidRequest, UnsupportedParameter
from server.core.parameters import Treatment
from server.core.request import (
    ChatRequest,
    ChoiceFormat,
    ImageInput,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    ReasoningEffort,
    Role,
    SamplingParameters,
    ToolCall,
    ToolChoice,
    ToolChoiceMode,
)

TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "How it is outside", "parameters": CITY}},
    {"type": "function", "function": {"name": "time", "parameters": dict(TIME.parameters)}},
]


def body_of(request: ChatRequest, keep_alive: str = "", **images: str) -> dict[str, Any]:
    return chat_body(request, answer_form(request), "demo:latest", images, keep_alive)


def messages_of(*messages: Message, **more: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - fields of a request
    found: list[dict[str, Any]] = body_of(asked(messages=messages, **more))["messages"]
    return found


def sampled(**given: Any) -> ChatRequest:  # noqa: ANN401 - fields of the parameters
    return asked(sampling=SamplingParameters(**given), given_sampling=frozenset(given))


def test_a_plain_request_leaves_everything_to_the_model() -> None:
    assert body_of(asked()) == {
        "model": "demo:latest",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": {},
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.0),
        ("temperature", 1.0),
        ("top_p", 1.0),
        ("top_k", 0),
        ("min_p", 0.0),
        ("frequency_penalty", -2.0),
        ("presence_penalty", 0.5),
        ("repeat_penalty", 1.0),
        ("seed", 7),
    ],
)
def test_sampling_parameters_that_are_given(name: str, value: float) -> None:
    assert body_of(sampled(**{name: value}))["options"] == {name: value}


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ({"max_tokens": 5}, {"num_predict": 5}),
        ({"stop": ("a", "b")}, {"stop": ["a", "b"]}),
        ({"num_ctx": 8192}, {"num_ctx": 8192}),
    ],
)
def test_other_options(more: dict[str, Any], options: dict[str, Any]) -> None:
    assert body_of(asked(**more))["options"] == options


@pytest.mark.parametrize(
    ("more", "fields"),
    [
        ({"top_logprobs": 0}, {"logprobs": True, "top_logprobs": 0}),
        ({"top_logprobs": 20}, {"logprobs": True, "top_logprobs": 20}),
        ({"response_format": JsonObjectFormat()}, {"format": "json"}),
        ({"response_format": JsonSchemaFormat(CITY)}, {"format": CITY}),
        ({"response_format": JsonSchemaFormat({})}, {"format": "json"}),
        ({"reasoning_effort": ReasoningEffort.NONE}, {"think": False}),
        ({"reasoning_effort": ReasoningEffort.MINIMAL}, {"think": "low"}),
        ({"reasoning_effort": ReasoningEffort.LOW}, {"think": "low"}),
        ({"reasoning_effort": ReasoningEffort.MEDIUM}, {"think": "medium"}),
        ({"reasoning_effort": ReasoningEffort.HIGH}, {"think": "high"}),
        ({"reasoning_effort": ReasoningEffort.XHIGH}, {"think": "max"}),
        ({"template_options": {"enable_thinking": True}}, {"think": True}),
        ({"template_options": {"thinking": False, "enable_thinking": None}}, {"think": False}),
        ({"template_options": {"thinking": False, "enable_thinking": False}}, {"think": False}),
        (
            {"template_options": {"enable_thinking": True}, "reasoning_effort": ReasoningEffort.HIGH},
            {"think": "high"},
        ),
        (
            {"template_options": {"enable_thinking": False}, "reasoning_effort": ReasoningEffort.NONE},
            {"think": False},
        ),
        ({"response_format": ChoiceFormat(("a", "b"))}, {"format": {"type": "string", "enum": ["a", "b"]}}),
        ({"keep_alive": "5m"}, {"keep_alive": "5m"}),
        ({"keep_alive": 0}, {"keep_alive": 0}),
        ({"keep_alive": -1.5}, {"keep_alive": -1.5}),
        ({"tools": (WEATHER, TIME)}, {"tools": TOOLS}),
        ({"tools": (WEATHER,), "tool_choice": ToolChoice(ToolChoiceMode.NONE)}, {}),
        ({"n": 3}, {}),
        ({"parallel_tool_calls": False}, {}),
    ],
)
def test_fields(more: dict[str, Any], fields: dict[str, Any]) -> None:
    assert body_of(asked(**more)) == body_of(asked()) | fields


@pytest.mark.parametrize(
    ("options", "effort", "kind", "param"),
    [
        ({"strftime_now": "x"}, None, UnsupportedParameter, "chat_template_kwargs.strftime_now"),
        ({"enable_thinking": "yes"}, None, InvalidRequest, "chat_template_kwargs.enable_thinking"),
        ({"thinking": 1}, None, InvalidRequest, "chat_template_kwargs.thinking"),
        ({"enable_thinking": True, "thinking": False}, None, InvalidRequest, "chat_template_kwargs.thinking"),
        ({"enable_thinking": True}, ReasoningEffort.NONE, InvalidRequest, "reasoning_effort"),
        ({"enable_thinking": False}, ReasoningEffort.LOW, InvalidRequest, "reasoning_effort"),
    ],
)
def test_variables_of_templates_that_cannot_be(
    options: dict[str, object], effort: ReasoningEffort | None, kind: type[Exception], param: str
) -> None:
    with pytest.raises(kind) as caught:
        body_of(asked(template_options=options, reasoning_effort=effort))

    assert type(caught.value) is kind
    assert getattr(caught.value, "param", None) == param


def test_stop_strings_do_not_cut_json_that_stands_for_something_else() -> None:
    stopped = asked(stop=("}",), tools=(WEATHER,))

    for request in (
        replace(stopped, tool_choice=ToolChoice(ToolChoiceMode.REQUIRED)),
        replace(stopped, response_format=JsonObjectFormat()),
        replace(stopped, tools=(), response_format=ChoiceFormat(("a}", "b"))),
    ):
        assert body_of(request)["options"] == {}
    for request in (stopped, replace(stopped, tools=(), response_format=JsonObjectFormat())):
        assert body_of(request)["options"] == {"stop": ["}"]}


def test_tools_and_a_form_of_the_answer_are_one_format() -> None:
    request = asked(tools=(WEATHER,), response_format=JsonSchemaFormat(CITY))

    body = body_of(request)

    assert "tools" not in body
    assert body["format"] == forced_call_format((WEATHER,), CITY)
    assert body["messages"][0] == {"role": "system", "content": forced_call_instruction((WEATHER,), CITY)}


@pytest.mark.parametrize("mode", [ToolChoiceMode.REQUIRED, ToolChoiceMode.NONE])
def test_where_there_is_no_choice_the_form_is_the_answers_or_the_calls(mode: ToolChoiceMode) -> None:
    request = asked(tools=(WEATHER,), tool_choice=ToolChoice(mode), response_format=JsonObjectFormat())

    wanted = forced_call_format((WEATHER,)) if mode is ToolChoiceMode.REQUIRED else "json"
    assert body_of(request)["format"] == wanted


def test_the_operators_keep_alive_holds_where_the_client_says_none() -> None:
    assert body_of(asked(), "1h")["keep_alive"] == "1h"
    assert body_of(asked(keep_alive=0), "1h")["keep_alive"] == 0


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 127))
def test_seeds_fit_into_31_bits_and_differ(seed: int, index: int) -> None:
    sampling = SamplingParameters(seed=seed)
    found = seed_of_choice(sampling, index)

    assert found is not None
    assert 0 <= found < 2**31
    assert found == seed_of_choice(sampling, index)
    assert found != seed_of_choice(sampling, index + 1)


@pytest.mark.parametrize(("seed", "index", "found"), [(0, 0, 0), (42, 0, 42), (42, 3, 45), (-1, 0, 2**31 - 2)])
def test_small_seeds_stay(seed: int, index: int, found: int) -> None:
    assert seed_of_choice(SamplingParameters(seed=seed), index) == found


def test_no_seed_is_random() -> None:
    assert seed_of_choice(SamplingParameters(), 3) is None


# --- messages ---


def test_roles() -> None:
    roles = [Role.SYSTEM, Role.DEVELOPER, Role.USER, Role.ASSISTANT]

    assert [message["role"] for message in messages_of(*(Message(role, "a") for role in roles))] == [
        "system",
        "system",
        "user",
        "assistant",
    ]


def test_names_of_participants_are_left_out() -> None:
    assert messages_of(Message(Role.USER, "Hi", name="Ann")) == [{"role": "user", "content": "Hi"}]


def test_reasoning_is_sent_back() -> None:
    assert messages_of(Message(Role.ASSISTANT, "Yes", reasoning="Hm")) == [
        {"role": "assistant", "content": "Yes", "thinking": "Hm"}
    ]


def test_a_history_of_tools() -> None:
    calls = (ToolCall("call_1", "weather", '{"city": "Zürich", "n": [1, null]}'), ToolCall("call_2", "time", ""))

    assert messages_of(
        *HELLO,
        Message(Role.ASSISTANT, "", tool_calls=calls),
        Message(Role.TOOL, "rain", tool_call_id="call_1"),
        Message(Role.TOOL, "noon", tool_call_id="call_2"),
        Message(Role.TOOL, "what?", tool_call_id="call_3"),
    )[1:] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_1",
                    "function": {"index": 0, "name": "weather", "arguments": {"city": "Zürich", "n": [1, None]}},
                },
                {"id": "call_2", "function": {"index": 1, "name": "time", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "call_1", "tool_name": "weather"},
        {"role": "tool", "content": "noon", "tool_call_id": "call_2", "tool_name": "time"},
        {"role": "tool", "content": "what?", "tool_call_id": "call_3"},
    ]


def test_an_id_that_is_used_again_means_the_call_before_the_result() -> None:
    turns = [
        message
        for name in ("weather", "time")
        for message in (
            Message(Role.ASSISTANT, "", tool_calls=(ToolCall("call_0", name, "{}"),)),
            Message(Role.TOOL, "a", tool_call_id="call_0"),
        )
    ]

    assert [message.get("tool_name") for message in messages_of(*turns)] == [None, "weather", None, "time"]


@pytest.mark.parametrize("arguments", ["[]", "5", "null", '"{}"', "{", "not JSON", '{"a":', "[" * 100_000])
def test_arguments_that_are_no_object(arguments: str) -> None:
    calls = (ToolCall("a", "time", "{}"), ToolCall("b", "time", arguments))

    with pytest.raises(InvalidRequest) as caught:
        messages_of(*HELLO, Message(Role.ASSISTANT, "", tool_calls=calls))

    assert caught.value.param == "messages[1].tool_calls[1].function.arguments"


def test_images() -> None:
    images = (ImageInput("http://a/", "first"), ImageInput("data:,", "second"))
    message = Message(Role.USER, "What is this?", images=images)

    assert body_of(asked(messages=(message,)), first="AAAA", second="BBBB")["messages"] == [
        {"role": "user", "content": "What is this?", "images": ["AAAA", "BBBB"]}
    ]


# --- calls that have to be made ---

FORCED = asked(tools=(WEATHER, TIME), tool_choice=ToolChoice(ToolChoiceMode.REQUIRED))


def test_a_forced_call_is_a_format() -> None:
    body = body_of(FORCED)

    assert "tools" not in body
    assert [call["properties"]["name"] for call in body["format"]["anyOf"]] == [{"const": "weather"}, {"const": "time"}]


def test_a_named_call_is_a_format_of_one() -> None:
    body = body_of(replace(FORCED, tool_choice=ToolChoice(ToolChoiceMode.REQUIRED, "time")))

    assert body["format"]["properties"]["name"] == {"const": "time"}


def test_the_instruction_becomes_a_system_message() -> None:
    assert body_of(FORCED)["messages"] == [
        {"role": "system", "content": forced_call_instruction(FORCED.tools)},
        {"role": "user", "content": "Hi"},
    ]


@pytest.mark.parametrize("role", [Role.SYSTEM, Role.DEVELOPER])
def test_the_instruction_joins_the_system_message(role: Role) -> None:
    request = replace(FORCED, messages=(Message(role, "Be brief."), *HELLO))

    assert body_of(request)["messages"] == [
        {"role": "system", "content": f"Be brief.\n\n{forced_call_instruction(FORCED.tools)}"},
        {"role": "user", "content": "Hi"},
    ]


# --- the table ---


def test_every_parameter_has_a_treatment() -> None:
    assert set(PARAMETERS) | set(HERE) == {
        *ChatCompletionBody.model_fields,
        *MESSAGE_PARAMETERS,
        *TOOL_PARAMETERS,
    }


@pytest.mark.parametrize("name", ["logit_bias", "ignore_eos", "grammar", "guided_regex", "thinking_budget"])
def test_what_the_daemon_lacks_is_refused(name: str) -> None:
    assert PARAMETERS[name].treatment is Treatment.REFUSED
