"""What the stand-in's models say: tokens, limits, structured replies and log probabilities, all of them repeatable."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fakes.script import Body, Call, Reply

_TOKEN = re.compile(r" ?\w{1,6}|[^\w\s]|\s")
_WRAPPING = 4
"""Tokens that a chat template puts around a message."""
_IMAGE = 256
"""Tokens of an image."""
_CALL = 8
"""Tokens of a tool call before its arguments."""


@lru_cache(maxsize=1024)
def tokenize(text: str) -> tuple[str, ...]:
    """Split the text; the pieces joined are the text."""
    return tuple(_TOKEN.findall(text))


def count_prompt(messages: Sequence[Mapping[str, Any]], tools: object = None) -> int:
    """Tokens of a prompt: of its messages, their images, and the tools."""
    total = 2 + (len(tokenize(json.dumps(tools))) if tools else 0)
    for message in messages:
        total += _WRAPPING + len(tokenize(message.get("content") or "")) + _IMAGE * len(message.get("images") or ())
        if calls := message.get("tool_calls"):
            total += len(tokenize(json.dumps(calls)))
    return total


def instance(schema: object, text: str, root: Mapping[str, Any] | None = None, depth: int = 0) -> object:
    """A value that the (simple) schema accepts; strings in it are ``text`` where that is allowed."""
    if not isinstance(schema, Mapping):
        return {"answer": text}
    root = schema if root is None else root
    if depth > _MAX_DEPTH:
        raise BadSchema("the schema has no end")
    if "$ref" in schema:
        return instance(_resolve(schema["$ref"], root), text, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return instance(choices[-1 if depth > _DEEP else 0], text, root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema or not schema else "string")
    make = _MAKERS.get(kind[0] if isinstance(kind, list) else kind)
    if make is None:
        raise BadSchema(f"unrecognized type {kind}")
    return make(schema, text, root, depth + 1)


def _resolve(reference: str, root: Mapping[str, Any]) -> object:
    found: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        if not isinstance(found, Mapping) or part not in found:
            raise BadSchema(f"cannot resolve $ref {reference}, {part} not found")
        found = found[part]
    return found


def _object(schema: Mapping[str, Any], text: str, root: Mapping[str, Any], depth: int) -> object:
    parts = schema.get("properties", {})
    wanted = schema.get("required", ()) if depth > _DEEP else parts
    return {name: instance(part, text, root, depth) for name, part in parts.items() if name in wanted}


def _array(schema: Mapping[str, Any], text: str, root: Mapping[str, Any], depth: int) -> object:
    first = [instance(part, text, root, depth) for part in schema.get("prefixItems", ())]
    length = max(len(first), schema.get("minItems", 0 if first or depth > _DEEP else 1))
    rest = range(len(first), min(length, schema.get("maxItems", length)))
    return first + [instance(schema.get("items", {"type": "string"}), text, root, depth) for _ in rest]


def _string(schema: Mapping[str, Any], text: str, *_: object) -> object:
    if schema.get("format") in _FORMATTED:
        return _FORMATTED[schema["format"]]
    return text[: schema.get("maxLength", len(text))].ljust(schema.get("minLength", 0), "x")


def _number(schema: Mapping[str, Any], *_: object) -> object:
    most = schema.get("maximum", schema.get("exclusiveMaximum", 3) - 1)
    least = schema.get("minimum", schema.get("exclusiveMinimum", min(0, most - 1)) + 1)
    step = schema.get("multipleOf", 1)
    return -(-least // step) * step


_DEEP, _MAX_DEPTH = 12, 100
"""From where on the smallest values are made, because a schema may contain itself, and where none is made any more."""
_FORMATTED = {
    "date": "2026-11-22",
    "date-time": "2026-11-22T15:35:30Z",
    "time": "15:35:30Z",
    "duration": "PT1H",
    "email": "somebody@example.com",
    "uri": "https://example.com/",
    "uuid": "3e4666bf-d5e5-4aa7-b8ce-cefe41c7568a",
    "ipv4": "192.0.2.1",
}
_MAKERS: dict[str, Callable[[Mapping[str, Any], str, Mapping[str, Any], int], object]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _number,
    "number": _number,
    "boolean": lambda *_: True,
    "null": lambda *_: None,
}


@dataclass(frozen=True)
class Speech:
    """What one request is answered with."""

    thinking: Sequence[str]
    content: Sequence[str]
    calls: Sequence[Call]
    done_reason: str
    num_evaluated: int
    num_prompt: int

    def pieces(self) -> Iterator[tuple[str, str]]:
        """The tokens with the field of the message they belong to."""
        for token in self.thinking:
            yield "thinking", token
        for token in self.content:
            yield "content", token


@dataclass(frozen=True)
class Limits:
    """Where a generation ends at the latest. With ``strict_calls`` one that ends within a tool call fails."""

    num_predict: int
    stop: Sequence[str]
    strict_calls: bool = True


class BadSchema(ValueError):
    """The format is a schema that llama-server does not understand."""


class CutCall(Exception):
    """The generation ended within the arguments of a tool call."""


def speak(reply: Reply, body: Body, last: str, *, thinks: bool, num_prompt: int, limits: Limits) -> Speech:
    """Say the reply as the request wants it said; ``last`` is the message it answers."""
    most = limits.num_predict
    thinking = tokenize(reply.thinking)[:most] if thinks else ()
    is_free = not body.get("format")  # a format leaves no room for calls
    if reply.calls and is_free and body.get("tools") and body["messages"][-1].get("role") != "tool":
        return _speak_with_calls(reply, thinking, num_prompt, limits)
    content = _content(reply, body.get("format"), last)
    pieces, stopped = _until_stop(content[: most - len(thinking)], limits.stop)
    if stopped is not None:
        return Speech(thinking, pieces, (), "stop", len(thinking) + stopped, num_prompt)
    return Speech(thinking, pieces, (), *_ending(len(thinking) + len(content), most), num_prompt)


def _speak_with_calls(reply: Reply, thinking: Sequence[str], num_prompt: int, limits: Limits) -> Speech:
    content = tokenize(reply.before)[: limits.num_predict - len(thinking)]
    num_before = len(thinking) + len(content)
    num_said = num_before + sum(_length(call) for call in reply.calls)
    complete = num_said <= limits.num_predict
    if not complete and limits.strict_calls and limits.num_predict - num_before > _CALL:
        raise CutCall(reply.calls[0].name)
    calls = tuple(reply.calls) if complete else ()
    return Speech(thinking, content, calls, *_ending(num_said, limits.num_predict), num_prompt)


def _ending(num_said: int, most: int) -> tuple[str, int]:
    """Why a generation ends, and after how many tokens: the end of the turn is one that has to fit as well."""
    return ("stop", num_said + 1) if num_said < most else ("length", most)


def _until_stop(tokens: Sequence[str], stops: Sequence[str]) -> tuple[Sequence[str], int | None]:
    """What is sent of the tokens, and how many there were until a stop string if there is one.

    Text that may become a stop string is held back; if it does not, it is sent as one piece.
    """
    if not stops:
        return tokens, None
    pieces: list[str] = []
    held = ""
    for number, token in enumerate(tokens, 1):
        held += token
        places = [place for stop in stops if (place := held.find(stop)) >= 0]
        if places:
            rest = held[: min(places)]
            return (*pieces, rest) if rest else pieces, number
        if not any(held.endswith(stop[:length]) for stop in stops for length in range(1, len(stop))):
            pieces.append(held)
            held = ""
    return (*pieces, held) if held else pieces, None


def _length(call: Call) -> int:
    return _CALL + len(tokenize(json.dumps(dict(call.arguments))))


def _content(reply: Reply, wanted: object, last: str) -> Sequence[str]:
    text = f"You said: {last}" if reply.text is None else reply.text
    if wanted and reply.text is None and reply.tokens is None:
        return tokenize(json.dumps(instance(wanted, last), ensure_ascii=False))
    return tokenize(text) if reply.tokens is None else reply.tokens


def log_probability(token: str, top: int) -> dict[str, Any]:
    """The entry for a token: it is always the likeliest."""
    entry = _entry(token, -0.125)
    if top:
        others = (f"{token}{rank}" for rank in range(1, top))
        entry["top_logprobs"] = [_entry(token, -0.125)] + [
            _entry(other, -2.5 - rank) for rank, other in enumerate(others)
        ]
    return entry


def _entry(token: str, probability: float) -> dict[str, Any]:
    return {"token": token, "logprob": probability} | ({"bytes": list(token.encode())} if token else {})
