"""Checks of what not every model can: tools, structured answers, thinking, images."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

from server.cli.conformance_answers import (
    as_object,
    assembled_message,
    check_done,
    check_events,
    check_finish,
    check_tool_calls,
    expect,
    parsed,
    text_of,
)
from server.cli.conformance_suite import Check, Subject

WEATHER = "What is the weather in Paris? Use the tool."
_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": name, "description": f"Get the current {name[4:]} of a city.", "parameters": _CITY},
    }
    for name in ("get_weather", "get_time")
]
_NAMES = frozenset({"get_weather", "get_time"})
_NAMED = {"type": "function", "function": {"name": "get_time"}}
_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}
_ROOM = 256
_CUT_SHORT = "the answer was cut short, so that it could not be checked"
_IMAGE_SIDE = 64


async def tools_auto(subject: Subject) -> str | None:
    """Check that tools may be called, in a way that clients can read."""
    choice = (await subject.ask(WEATHER, tools=_TOOLS, max_tokens=_room(subject)))["choices"][0]
    if choice["message"].get("tool_calls"):
        check_tool_calls(choice["message"], _NAMES)
        expect(choice["finish_reason"] == "tool_calls", "finish_reason tool_calls", choice["finish_reason"])
        return None
    expect(choice["finish_reason"] != "tool_calls", "tool calls, as finish_reason says", choice)
    return "the model answered in words"


async def tools_required(subject: Subject) -> str | None:
    """Check that a tool must be called."""
    body = await subject.ask(WEATHER, tools=_TOOLS, tool_choice="required", max_tokens=_room(subject))
    return _called(body["choices"][0], _NAMES)


async def tools_named(subject: Subject) -> str | None:
    """Check that one tool must be called."""
    body = await subject.ask(WEATHER, tools=_TOOLS, tool_choice=_NAMED, max_tokens=_room(subject))
    return _called(body["choices"][0], frozenset({"get_time"}))


def _called(choice: dict[str, Any], names: frozenset[str]) -> str | None:
    if choice["finish_reason"] == "length":
        return _CUT_SHORT
    check_tool_calls(choice["message"], names)
    # OpenAI says stop where a named function is called
    reason = choice["finish_reason"]
    expect(reason in {"tool_calls", "stop"}, "finish_reason tool_calls", reason)
    return None


async def tools_streamed(subject: Subject) -> str | None:
    """Check that the parts of a call come in a way that clients can put together."""
    streamed = await subject.stream(WEATHER, tools=_TOOLS, tool_choice="required", max_tokens=_room(subject))
    check_events(streamed)
    reasons = check_finish(streamed)
    check_done(streamed)
    if reasons[0] == "length":
        return _CUT_SHORT
    check_tool_calls(assembled_message(streamed), _NAMES)
    return None


async def tools_results(subject: Subject) -> str | None:
    """Check that results of tools can be sent back."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
    }
    messages = [
        {"role": "user", "content": WEATHER},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"weather":"sunny"}'},
    ]
    choice = (await subject.ask(messages=messages, tools=_TOOLS, max_tokens=_room(subject)))["choices"][0]
    message = choice["message"]
    expect(message["content"] or message.get("tool_calls"), "an answer to the result", choice)
    return None


async def json_object(subject: Subject) -> str | None:
    """Check that an answer can be made JSON."""
    prompt = "Describe Paris as a JSON object with the keys city and country."
    body = await subject.ask(prompt, response_format={"type": "json_object"}, max_tokens=_room(subject))
    if body["choices"][0]["finish_reason"] == "length":
        return _CUT_SHORT
    as_object(parsed(text_of(body)), "a text that is a JSON object")
    return None


async def json_schema(subject: Subject) -> str | None:
    """Check that an answer follows a schema."""
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": _SCHEMA, "strict": True}}
    body = await subject.ask("Where is the Eiffel Tower?", response_format=wanted, max_tokens=_room(subject))
    if body["choices"][0]["finish_reason"] == "length":
        return _CUT_SHORT
    answer = as_object(parsed(text_of(body)), "a text that is a JSON object")
    expect(set(answer) == {"city", "country"}, "the keys city and country, as the schema says", answer)
    expect(all(isinstance(value, str) for value in answer.values()), "texts, as the schema says", answer)
    return None


async def reasoning(subject: Subject) -> str | None:
    """Check that thoughts are kept apart from the answer."""
    body = await subject.ask("What is 17 times 3?", reasoning_effort="low", max_tokens=_room(subject))
    message = body["choices"][0]["message"]
    expect("<think>" not in text_of(body), "no thoughts in the answer", text_of(body))
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    if not thoughts:
        return "the model did not think"
    expect(isinstance(thoughts, str), "reasoning_content that is text", thoughts)
    streamed = await subject.stream("What is 17 times 3?", reasoning_effort="low", max_tokens=_room(subject))
    check_events(streamed)
    deltas = [choice["delta"] for chunk in streamed.chunks for choice in chunk["choices"]]
    has_thoughts = any(delta.get("reasoning_content") or delta.get("reasoning") for delta in deltas)
    expect(has_thoughts, "reasoning_content in the deltas", "none")
    return None


async def images(subject: Subject) -> str | None:
    """Check that messages may hold images."""
    url = "data:image/png;base64," + base64.b64encode(_red_square()).decode()
    content = [
        {"type": "text", "text": "Which colour is this?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    body = await subject.ask(messages=[{"role": "user", "content": content}])
    expect(text_of(body).strip(), "text about the image", body["choices"][0])
    return None


def _red_square() -> bytes:
    """Return a picture in the PNG format."""
    rows = (b"\0" + b"\xff\0\0" * _IMAGE_SIDE) * _IMAGE_SIDE
    header = struct.pack(">IIBBBBB", _IMAGE_SIDE, _IMAGE_SIDE, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _room(subject: Subject) -> int:
    return max(subject.room, _ROOM)


FEATURE_CHECKS = (
    Check("tools: auto", tools_auto),
    Check("tools: required", tools_required),
    Check("tools: named", tools_named),
    Check("tools: streamed", tools_streamed),
    Check("tools: results", tools_results),
    Check("response_format: json_object", json_object),
    Check("response_format: json_schema", json_schema),
    Check("reasoning", reasoning),
    Check("images", images),
)
