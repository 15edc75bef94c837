"""What the daemon makes of a request's body: Go's complaints about types, durations and options."""

from __future__ import annotations

import base64
import binascii
import json
import re
import string
from collections.abc import Callable, Mapping
from typing import Any

FOR_EVER = float("inf")

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_AMOUNT = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_BASE64 = string.ascii_letters + string.digits + "+/"
_LEVELS = ("high", "medium", "low", "max")
_THINK = '"high", "medium", "low", "max", true, or false'

_CHAT = {
    "model": "string",
    "messages": "[]api.Message",
    "stream": "bool",
    "keep_alive": "",
    "tools": "api.Tools",
    "options": "map[string]interface {}",
    "think": "",
    "truncate": "bool",
    "shift": "bool",
    "logprobs": "bool",
    "top_logprobs": "int",
}
_GENERATE = {name: kind for name, kind in _CHAT.items() if name not in {"messages", "tools"}} | {
    "prompt": "string",
    "suffix": "string",
    "system": "string",
    "template": "string",
    "raw": "bool",
    "images": "[]api.ImageData",
}
_MESSAGE = {
    "role": "string",
    "content": "string",
    "thinking": "string",
    "images": "[]api.ImageData",
    "tool_calls": "[]api.ToolCall",
    "tool_name": "string",
    "tool_call_id": "string",
}
_SHOW = {"model": "string", "name": "string", "system": "string", "verbose": "bool", "options": _CHAT["options"]}

_PULL = {"model": "string", "name": "string", "insecure": "bool", "stream": "bool"}
_DELETE = {"model": "string", "name": "string"}
_STRUCTS = {
    "ChatRequest": _CHAT,
    "GenerateRequest": _GENERATE,
    "ShowRequest": _SHOW,
    "PullRequest": _PULL,
    "DeleteRequest": _DELETE,
}

_OPTIONS = {
    "integer": "num_keep seed num_predict top_k repeat_last_n num_ctx num_batch num_gpu main_gpu num_thread "
    "draft_num_predict",
    "float32": "top_p min_p typical_p temperature repeat_penalty presence_penalty frequency_penalty",
    "boolean": "use_mmap",
    "array": "stop",
}
_OPTION_TYPES = {name: kind for kind, names in _OPTIONS.items() for name in names.split()}


class Refused(Exception):
    """The daemon answers with an error; a ``late`` one comes when a stream, if one is wanted, has been prepared."""

    def __init__(self, status: int, error: str, *, late: bool = False, **more: str) -> None:
        super().__init__(error)
        self.status = status
        self.body = {"error": error} | more
        self.late = late


def read(raw: bytes, struct: str) -> dict[str, Any]:
    """Read the body of a request of one of the kinds in ``_STRUCTS``."""
    if not raw.strip():
        raise Refused(400, "missing request body")
    try:
        body, _ = json.JSONDecoder().raw_decode(raw.decode(errors="replace").lstrip())
    except json.JSONDecodeError as error:
        raise Refused(400, _complaint(error)) from None
    known = _STRUCTS[struct]
    if not isinstance(body, dict):
        raise Refused(400, f"json: cannot unmarshal {_kind(body)} into Go value of type api.{struct}")
    _check(body, known, struct)
    for message in body.get("messages") or []:
        _check(message, _MESSAGE, "ChatRequest.messages")
        _check_images(message.get("images"))
        _check_calls(message.get("tool_calls"))
    _check_images(body.get("images"))
    _check_think(body.get("think"))
    body["keep_alive"] = duration(body.get("keep_alive"))
    return {name: value for name, value in body.items() if value is not None}


def duration(value: object) -> float | None:
    """The seconds of a ``keep_alive``; negative ones mean for ever."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return FOR_EVER if value < 0 else float(value)
    if not isinstance(value, str):
        kind = {"bool": "bool", "array": "[]interface {}", "object": "map[string]interface {}"}[_kind(value)]
        raise Refused(400, f"Unsupported type: '{kind}'")
    sign, rest = (-1, value[1:]) if value.startswith("-") else (1, value.removeprefix("+"))
    if rest == "0":
        return 0.0
    amounts = _AMOUNT.findall(rest)
    if not amounts or "".join(number + unit for number, unit in amounts) != rest:
        missing = re.fullmatch(r"\d+\.?\d*", rest)
        raise Refused(400, f'time: {"missing unit in" if missing else "invalid"} duration "{value}"')
    seconds = sign * sum(float(number) * _UNITS[unit] for number, unit in amounts)
    return FOR_EVER if seconds < 0 else seconds


def check_options(options: Mapping[str, Any]) -> None:
    """Complain of options of the wrong type, as the daemon does before it loads the model."""
    tests: dict[str, Callable[[object], bool]] = {
        "integer": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
        "float32": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
        "boolean": lambda value: isinstance(value, bool),
        "array": lambda value: isinstance(value, list),
    }
    for name, value in options.items():
        kind = _OPTION_TYPES.get(name)
        if kind is None or value is None:
            continue
        if not tests[kind](value):
            raise Refused(500, f'option "{name}" must be of type {kind}')
        if kind == "array" and not all(isinstance(item, str) for item in value):
            raise Refused(500, f'option "{name}" must be of an array of strings')


def _check(value: object, known: Mapping[str, str], path: str) -> None:
    if not isinstance(value, dict):
        raise Refused(400, f"json: cannot unmarshal {_kind(value)} into Go struct field {path} of type api.Message")
    for name, kind in known.items():
        found = value.get(name)
        wanted = {"string": "string", "bool": "bool", "int": "number", "map": "object"}.get(
            kind.partition("[")[0], "array"
        )
        if kind and found is not None and _kind(found) != wanted:
            raise Refused(
                400, f"json: cannot unmarshal {_kind(found)} into Go struct field {path}.{name} of type {kind}"
            )


def _check_images(images: list[Any] | None) -> None:
    for image in images or []:
        try:
            base64.b64decode(image, validate=True)
        except (binascii.Error, TypeError, ValueError):
            place = 0 if not isinstance(image, str) else len(image) - len(image.lstrip(_BASE64))
            raise Refused(400, f"illegal base64 data at input byte {place}") from None


def _check_calls(calls: list[Any] | None) -> None:
    for call in calls or []:
        if isinstance(call, dict) and isinstance(call.get("function", {}).get("arguments"), str):
            raise Refused(400, "Value looks like object, but can't find closing '}' symbol")


def _check_think(think: object) -> None:
    if isinstance(think, str) and think not in _LEVELS:
        raise Refused(400, f'invalid think value: "{think}" (must be {_THINK})')
    if think is not None and not isinstance(think, str | bool):
        raise Refused(400, f"think must be a boolean or string ({_THINK})")


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    names = {str: "string", int: "number", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")


def _complaint(error: json.JSONDecodeError) -> str:
    """Go's words for JSON that is none; only the common cases are told apart."""
    if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated"):
        return "unexpected EOF"
    wanted = "object key string" if "property name" in error.msg else "value"
    return f"invalid character {error.doc[error.pos]!r} looking for beginning of {wanted}"
