"""Checks of what not every model can: tools, thinking, images."""

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
    check_usage,
    expect,
    parsed,
    text_of,
)
from server.cli.conformance_suite import CUT_SHORT, Check, Subject

WEATHER = "What is the weather in Paris? Use the tool."
_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 40}},
    "required": ["city"],
    "additionalProperties": False,
}
_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": name, "description": f"Get the current {name[4:]} of a city.", "parameters": _CITY},
    }
    for name in ("get_weather", "get_time")
]
_NAMES = frozenset({"get_weather", "get_time"})
_NAMED = {"type": "function", "function": {"name": "get_time"}}
_STRICT_TOOLS = [{**tool, "function": {**tool["function"], "strict": True}} for tool in _TOOLS]
_IMAGE_SIDE = 64


async def tools_auto(subject: Subject) -> str | None:
    """Check that tools may be called, in a way that clients can read."""
    choice = (await subject.ask(WEATHER, tools=_TOOLS, max_tokens=subject.ample_room))["choices"][0]
    if choice["message"].get("tool_calls"):
        check_tool_calls(choice["message"], _NAMES)
        expect(choice["finish_reason"] == "tool_calls", "finish_reason tool_calls", choice["finish_reason"])
        return None
    expect(choice["finish_reason"] != "tool_calls", "tool calls, as finish_reason says", choice)
    return "the model answered in words"


async def tools_required(subject: Subject) -> str | None:
    """Check that a tool must be called."""
    body = await subject.ask(WEATHER, tools=_TOOLS, tool_choice="required", max_tokens=subject.ample_room)
    return _called(body["choices"][0], _NAMES)


async def tools_named(subject: Subject) -> str | None:
    """Check that one tool must be called."""
    body = await subject.ask(WEATHER, tools=_TOOLS, tool_choice=_NAMED, max_tokens=subject.ample_room)
    return _called(body["choices"][0], frozenset({"get_time"}))


def _called(choice: dict[str, Any], names: frozenset[str]) -> str | None:
    if choice["finish_reason"] == "length":
        return CUT_SHORT
    check_tool_calls(choice["message"], names)
    # OpenAI says stop where a named function is called
    reason = choice["finish_reason"]
    expect(reason in {"tool_calls", "stop"}, "finish_reason tool_calls", reason)
    return None


async def tools_none(subject: Subject) -> str | None:
    """Check that no tool is called where none may be."""
    body = await subject.ask(WEATHER, tools=_TOOLS, tool_choice="none", max_tokens=subject.ample_room)
    choice = body["choices"][0]
    expect(not choice["message"].get("tool_calls"), "no tool calls", choice)
    expect(choice["finish_reason"] != "tool_calls", "an end in words", choice["finish_reason"])
    return None


async def tools_one_at_a_time(subject: Subject) -> str | None:
    """Check that calls come one at a time where that is wanted."""
    prompt = "What are the weather and the time in Paris and Rome? Use the tools."
    wanted = {"tools": _TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    choice = (await subject.ask(prompt, **wanted, max_tokens=subject.ample_room))["choices"][0]
    if choice["finish_reason"] == "length":
        return CUT_SHORT
    calls = check_tool_calls(choice["message"], _NAMES)
    expect(len(calls) == 1, "one call", calls)
    return None


async def tools_strict(subject: Subject) -> str | None:
    """Check that arguments are as the schema says."""
    body = await subject.ask(WEATHER, tools=_STRICT_TOOLS, tool_choice="required", max_tokens=subject.ample_room)
    choice = body["choices"][0]
    if choice["finish_reason"] == "length":
        return CUT_SHORT
    for call in check_tool_calls(choice["message"], _NAMES):
        arguments = as_object(parsed(call["function"]["arguments"]), "arguments")
        is_valid = arguments.keys() == {"city"} and isinstance(arguments["city"], str) and len(arguments["city"]) <= 40
        expect(is_valid, "a city of at most 40 characters and nothing else, as the schema says", arguments)
    return None


async def tools_streamed(subject: Subject) -> str | None:
    """Check that the parts of a call come in a way that clients can put together."""
    streamed = await subject.stream(WEATHER, tools=_TOOLS, tool_choice="required", max_tokens=subject.ample_room)
    check_events(streamed)
    reasons = check_finish(streamed)
    check_done(streamed)
    if reasons[0] == "length":
        return CUT_SHORT
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
    choice = (await subject.ask(messages=messages, tools=_TOOLS, max_tokens=subject.ample_room))["choices"][0]
    message = choice["message"]
    expect(message["content"] or message.get("tool_calls"), "an answer to the result", choice)
    return None


async def tools_loop(subject: Subject) -> str | None:
    """Check that a call can be sent back as it came, with its result."""
    wanted: dict[str, Any] = {"tools": _TOOLS, "max_tokens": subject.ample_room}
    choice = (await subject.ask(WEATHER, **wanted, tool_choice="required"))["choices"][0]
    if choice["finish_reason"] == "length":
        return CUT_SHORT
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": '{"weather":"sunny"}'}
        for call in check_tool_calls(choice["message"], _NAMES)
    ]
    messages = [{"role": "user", "content": WEATHER}, choice["message"], *results]
    message = (await subject.ask(messages=messages, **wanted))["choices"][0]["message"]
    expect(message["content"] or message.get("tool_calls"), "an answer to the result", message)
    return None


async def reasoning(subject: Subject) -> str | None:
    """Check that thoughts are kept apart from the answer."""
    body = await subject.ask("What is 17 times 3?", reasoning_effort="low", max_tokens=subject.ample_room)
    message = body["choices"][0]["message"]
    expect("<think>" not in text_of(body), "no thoughts in the answer", text_of(body))
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    if not thoughts:
        return "the model did not think"
    expect(isinstance(thoughts, str), "reasoning_content that is text", thoughts)
    streamed = await subject.stream("What is 17 times 3?", reasoning_effort="low", max_tokens=subject.ample_room)
    check_events(streamed)
    deltas = [choice["delta"] for chunk in streamed.chunks for choice in chunk["choices"]]
    has_thoughts = any(delta.get("reasoning_content") or delta.get("reasoning") for delta in deltas)
    expect(has_thoughts, "reasoning_content in the deltas", "none")
    return None


async def reasoning_usage(subject: Subject) -> str | None:
    """Check that tokens of thoughts are counted."""
    body = await subject.ask("What is 17 times 3?", reasoning_effort="low", max_tokens=subject.ample_room)
    message, usage = body["choices"][0]["message"], check_usage(body.get("usage"))
    count = as_object(usage.get("completion_tokens_details"), "completion_tokens_details").get("reasoning_tokens")
    has_thought = bool(message.get("reasoning_content") or message.get("reasoning"))
    expect(isinstance(count, int), "a number of reasoning_tokens", dict(usage))
    expect(bool(count) == has_thought, f"reasoning_tokens {'above' if has_thought else 'of'} 0", dict(usage))
    expect(usage["completion_tokens"] >= int(count or 0), "reasoning_tokens among the completion_tokens", dict(usage))
    return None if has_thought else "the model did not think"


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


FEATURE_CHECKS = (
    Check("tools: auto", tools_auto),
    Check("tools: required", tools_required),
    Check("tools: named", tools_named),
    Check("tools: none", tools_none),
    Check("tools: one at a time", tools_one_at_a_time),
    Check("tools: strict", tools_strict),
    Check("tools: streamed", tools_streamed),
    Check("tools: results", tools_results),
    Check("tools: call, result, answer", tools_loop),
    Check("reasoning", reasoning),
    Check("reasoning: usage", reasoning_usage),
    Check("images", images),
)
