"""The calls and results in a conversation: whether they belong together, and what the arguments are. Pure.

The rules are OpenAI's: each call is answered by one message of the role ``tool``, before anybody else speaks:
https://platform.openai.com/docs/guides/function-calling
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from server.core.errors import InvalidRequest
from server.core.request import Message, Role, ToolCall

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def check_history(messages: Sequence[Message]) -> None:
    """Check that calls and results belong together, and that arguments can be read.

    Raises:
        InvalidRequest: they do not; the message and ``param`` say where.

    """
    open_ids: dict[str, None] = {}
    answered: set[str] = set()
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if message.role is Role.TOOL:
            _check_result(message, path, open_ids, answered)
            continue
        _check_all_answered(open_ids, path)
        answered.clear()
        for number, call in enumerate(message.tool_calls):
            call_path = f"{path}.tool_calls[{number}]"
            call_arguments(call, call_path)
            if call.id in open_ids:
                raise InvalidRequest(
                    f"Two calls of the same message have the id {call.id!r}. Give each call an id of its own.",
                    param=f"{call_path}.id",
                )
            open_ids[call.id] = None
    _check_all_answered(open_ids, "messages")


def call_arguments(call: ToolCall, path: str) -> dict[str, object]:
    """Return the arguments of a call, read from JSON.

    Models and clients write no arguments as no text or ``null``, and some encode them twice: these are read as they are
    meant. What was cut off or is no object at all is not guessed at.

    Raises:
        InvalidRequest: they are not a JSON object; ``path`` names the call.

    """
    text = call.arguments
    try:
        value = json.loads(text, parse_constant=_refuse_constant) if text.strip() else {}
        if isinstance(value, str):
            value = json.loads(value, parse_constant=_refuse_constant) if value.strip() else {}
    except (ValueError, RecursionError) as error:
        raise _bad_arguments(call, path, f"they are not JSON ({_reason(error)})") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad_arguments(call, path, "they are JSON, and not an object")
    if "\\u" in text and _HALF_CHARACTER.search(json.dumps(value, ensure_ascii=False)):
        raise _bad_arguments(call, path, "they hold half of a character, which no text can")
    return value


def in_call_order(messages: Sequence[Message]) -> list[Message]:
    """Sort the results that follow a message with calls in the order of the calls; templates may rely on it."""
    return list(_sorted(messages))


def _sorted(messages: Sequence[Message]) -> Iterator[Message]:
    places: dict[str | None, int] = {}
    results: list[Message] = []
    for message in messages:
        if message.role is Role.TOOL:
            results.append(message)
            continue
        yield from sorted(results, key=lambda each: places.get(each.tool_call_id, len(places)))
        results = []
        places = {call.id: place for place, call in enumerate(message.tool_calls)}
        yield message
    yield from sorted(results, key=lambda each: places.get(each.tool_call_id, len(places)))


def _check_result(message: Message, path: str, open_ids: dict[str, None], answered: set[str]) -> None:
    call_id = message.tool_call_id or ""
    if call_id in answered:
        raise InvalidRequest(
            f"The call {call_id!r} has a result already. Send one message with role 'tool' for each call.",
            param=f"{path}.tool_call_id",
        )
    if call_id not in open_ids:
        known = f" They have the ids {_listed([*open_ids])}." if open_ids else ""
        raise InvalidRequest(
            "Messages with role 'tool' must be a response to a preceding message with 'tool_calls': "
            f"none of its calls has the id {call_id!r}.{known}",
            param=f"{path}.tool_call_id",
        )
    del open_ids[call_id]
    answered.add(call_id)


def _check_all_answered(open_ids: dict[str, None], path: str) -> None:
    if open_ids:
        raise InvalidRequest(
            "A message with 'tool_calls' must be followed by messages with role 'tool' that respond to each "
            f"'tool_call_id'. There is none for {_listed([*open_ids])}.",
            param=path,
        )


def _listed(ids: Sequence[str]) -> str:
    shown = ", ".join(repr(each) for each in ids[:5])
    return f"{shown} and {len(ids) - 5} more" if len(ids) > 5 else shown


def _bad_arguments(call: ToolCall, path: str, problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"The arguments of the call of {call.name!r} cannot be read: {problem}. Send a JSON object as text.",
        param=f"{path}.function.arguments",
    )


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return "they are nested too deeply" if isinstance(error, RecursionError) else str(error)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
