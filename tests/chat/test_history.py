from __future__ import annotations

import pytest

from server.chat.history import call_arguments, check_history, in_call_order
from server.core.errors import InvalidRequest
from server.core.request import Message, Role, ToolCall

USER = Message(Role.USER, "Hi")


def calling(*ids: str, arguments: str = "{}") -> Message:
    return Message(Role.ASSISTANT, "", tool_calls=tuple(ToolCall(each, "f", arguments) for each in ids))


def result(call_id: str, content: str = "") -> Message:
    return Message(Role.TOOL, content, tool_call_id=call_id)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [USER, USER],
        [USER, calling("a"), result("a")],
        [USER, calling("a", "b"), result("b"), result("a"), USER],
        [USER, calling("a"), result("a"), calling("a"), result("a")],  # some clients count from zero in each turn
    ],
)
def test_calls_and_results_that_belong_together(messages: list[Message]) -> None:
    check_history(messages)


@pytest.mark.parametrize(
    ("messages", "said", "param"),
    [
        ([result("a")], "must be a response to a preceding message", "messages[0].tool_call_id"),
        ([USER, calling("a"), result("b")], "They have the ids 'a'", "messages[2].tool_call_id"),
        ([calling("a"), result("a"), result("a")], "has a result already", "messages[2].tool_call_id"),
        ([calling("a"), result("a"), USER, result("a")], "must be a response", "messages[3].tool_call_id"),
        ([calling("a", "b"), result("b"), USER], "none for 'a'", "messages[2]"),
        ([calling("a"), calling("b"), result("b")], "none for 'a'", "messages[1]"),
        ([calling("a")], "none for 'a'", "messages"),
        ([calling(*map(str, range(9)))], "'4' and 4 more", "messages"),
        ([calling("a", "a"), result("a")], "the same message have the id 'a'", "messages[0].tool_calls[1].id"),
        ([USER, calling("a", arguments="{")], "not JSON", "messages[1].tool_calls[0].function.arguments"),
    ],
)
def test_calls_and_results_that_do_not(messages: list[Message], said: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_history(messages)
    assert said in caught.value.message
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"a": [1, null]}', {"a": [1, None]}),
        ("", {}),
        (" \n", {}),
        ("null", {}),
        ('""', {}),
        ('"{\\"a\\": 1}"', {"a": 1}),
    ],
)
def test_arguments_are_read_as_they_are_meant(text: str, arguments: dict[str, object]) -> None:
    assert call_arguments(ToolCall("a", "f", text), "messages[0].tool_calls[0]") == arguments


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1',
        "{a: 1}",
        "[1]",
        "1",
        '"text"',
        '"[1]"',
        '{"a": NaN}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a":' * 100_000,
        "\ud800",
        '{"a": ["\\ud800"]}',
        '{"\\udfff": 1}',
        "```json\n{}\n```",
    ],
)
def test_arguments_that_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(InvalidRequest, match="arguments of the call of 'f' cannot be read") as caught:
        call_arguments(ToolCall("a", "f", text), "messages[3].tool_calls[1]")
    assert caught.value.param == "messages[3].tool_calls[1].function.arguments"


def test_results_are_sorted_as_they_were_called_and_nothing_else_moves() -> None:
    first, second = calling("a", "b"), calling("c", "d")
    messages = [USER, first, result("b"), result("a"), second, result("x"), result("d"), result("c")]
    expected = [USER, first, result("a"), result("b"), second, result("c"), result("d"), result("x")]
    assert in_call_order(messages) == expected
    assert in_call_order(expected) == expected
