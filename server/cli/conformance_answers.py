"""The shapes that OpenAI's clients read: completion objects, chunks of a stream, usage, errors. Pure.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from server.cli.conformance_wire import DONE, Mismatch, Reply, Streamed

FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter"})
_MOST_SHOWN = 160


def expect(condition: object, expected: str, got: object) -> None:
    """Insist on a condition.

    Raises:
        Mismatch: it does not hold.

    """
    if not condition:
        raise _mismatch(expected, got)


def _mismatch(expected: str, got: object) -> Mismatch:
    shown = got if isinstance(got, str) else json.dumps(got, ensure_ascii=False, default=str)
    return Mismatch(f"expected {expected}; got {shown if len(shown) <= _MOST_SHOWN else shown[:_MOST_SHOWN] + '…'}")


def as_object(value: object, expected: str) -> dict[str, Any]:
    """Return a value that must be a JSON object.

    Raises:
        Mismatch: it is none.

    """
    if isinstance(value, dict):
        return value
    raise _mismatch(expected, value)


def as_list(value: object, expected: str) -> list[Any]:
    """Return a value that must be a list.

    Raises:
        Mismatch: it is none.

    """
    if isinstance(value, list):
        return value
    raise _mismatch(f"a list of {expected}", value)


def described(reply: Reply) -> str:
    """Say what an answer is, in a line."""
    message = reply.error.get("message")
    return f"HTTP {reply.status}: {message if isinstance(message, str) else reply.text.strip()}"


def parsed(text: object) -> object:
    """Return what a text is as JSON, else the text itself."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


# --- whole answers ---


def check_completion(body: object, num_choices: int = 1) -> dict[str, Any]:
    """Check a completion object.

    Raises:
        Mismatch: a client could not read it.

    """
    completion = as_object(body, "a JSON object")
    kind = completion.get("object")
    expect(kind == "chat.completion", 'object "chat.completion"', kind)
    _check_head(completion)
    choices = [as_object(each, "choices that are objects") for each in as_list(completion.get("choices"), "choices")]
    indices = [choice.get("index") for choice in choices]
    expect(indices == list(range(num_choices)), f"choices with the indices 0 to {num_choices - 1}", indices)
    for choice in choices:
        _check_choice(choice)
    return completion


def _check_choice(choice: Mapping[str, Any]) -> None:
    message = as_object(choice.get("message"), "a message in the choice")
    expect(message.get("role") == "assistant", 'role "assistant"', message.get("role"))
    content = message.get("content")
    expect("content" in message and (content is None or isinstance(content, str)), "content, text or null", message)
    reason = choice.get("finish_reason")
    expect(reason in FINISH_REASONS, f"finish_reason of {', '.join(sorted(FINISH_REASONS))}", reason)


def check_usage(usage: object) -> Mapping[str, int]:
    """Check that a usage object is there and adds up.

    Raises:
        Mismatch: it is not, or does not.

    """
    counts = as_object(usage, "a usage object")
    prompt, completion, total = (counts.get(f"{name}_tokens") for name in ("prompt", "completion", "total"))
    expect(all(_is_count(each) for each in (prompt, completion, total)), "three numbers of tokens", counts)
    expect(prompt, "prompt_tokens above 0", counts)
    expect(total == counts["prompt_tokens"] + counts["completion_tokens"], "a total that is the sum", counts)
    return counts


def text_of(body: Mapping[str, Any], index: int = 0) -> str:
    """Return the text of a choice of a completion object that has been checked."""
    return body["choices"][index]["message"]["content"] or ""


def check_tool_calls(message: Mapping[str, Any], names: frozenset[str]) -> list[dict[str, Any]]:
    """Check that a message calls tools, of these names, with arguments that are JSON objects.

    Raises:
        Mismatch: it does not, or not in a way that a client could read.

    """
    calls = [as_object(each, "tool calls") for each in message.get("tool_calls") or ()]
    expect(calls, "tool calls", dict(message))
    for call in calls:
        expect(call.get("type") == "function", 'a call of type "function"', call)
        expect(isinstance(call.get("id"), str) and call["id"], "an id of the call", call)
        function = as_object(call.get("function"), "a function in the call")
        expect(function.get("name") in names, f"a call of {' or '.join(sorted(names))}", call)
        as_object(parsed(function.get("arguments")), "arguments that are the text of a JSON object")
    ids = [call["id"] for call in calls]
    expect(len(set(ids)) == len(ids), "an id of its own for each call", ids)
    return calls


def check_error(reply: Reply, statuses: frozenset[int], param: str | None = None, code: str | None = None) -> None:
    """Check that an answer is an error object with one of these statuses, and with this parameter and code if given.

    Raises:
        Mismatch: it is none, or another one.

    """
    wanted = " or ".join(str(each) for each in sorted(statuses))
    expect(reply.status in statuses, f"HTTP {wanted}", described(reply))
    error = reply.error
    expect(isinstance(error.get("message"), str) and error["message"], "an error object with a message", reply.text)
    expect(isinstance(error.get("type"), str), "an error object with a type", error)
    expect("param" in error and "code" in error, "an error object with param and code, which may be null", error)
    if param is not None:
        expect(error["param"] == param, f"an error that names the parameter {param}", error)
    if code is not None:
        expect(error["code"] == code, f"an error with the code {code}", error)


# --- streams ---


def check_events(streamed: Streamed) -> None:
    """Check that a stream is one of chunks that belong together.

    Raises:
        Mismatch: it is not.

    """
    expect(not streamed.flaws, "server-sent events with JSON in UTF-8", "; ".join(streamed.flaws[:3]))
    check_no_failure(streamed)
    expect(streamed.chunks, "chunks", "none")
    for chunk in streamed.chunks:
        expect(chunk.get("object") == "chat.completion.chunk", 'object "chat.completion.chunk"', chunk)
        _check_head(chunk)
        expect(isinstance(chunk.get("choices"), list), "a list of choices in each chunk", chunk)
        for choice in chunk["choices"]:
            is_choice = isinstance(choice, dict) and _is_count(choice.get("index"))
            expect(is_choice and isinstance(choice.get("delta"), dict), "choices with index and delta", choice)
    heads = {(chunk["id"], chunk["created"], chunk["model"]) for chunk in streamed.chunks}
    expect(len(heads) == 1, "the same id, time and model in all chunks", sorted(heads))


def check_no_failure(streamed: Streamed) -> None:
    """Check that a stream did not end with an error.

    Raises:
        Mismatch: it did.

    """
    error = next((chunk["error"] for chunk in streamed.chunks if chunk.get("error")), None)
    expect(error is None, "a stream without an error", error)


def check_roles(streamed: Streamed) -> None:
    """Check that each choice begins with its role.

    Raises:
        Mismatch: one does not.

    """
    seen = dict[int, Any]()
    for choice in _choices(streamed):
        seen.setdefault(choice["index"], choice["delta"].get("role"))
    expect(seen, "choices in the chunks", "none")
    expect(set(seen.values()) == {"assistant"}, 'role "assistant" in the first delta of each choice', seen)


def check_texts(streamed: Streamed) -> dict[int, str]:
    """Check that deltas hold text, and return it by choice.

    Raises:
        Mismatch: they hold something else, or none has any.

    """
    texts = dict[int, str]()
    num_pieces = 0
    for choice in _choices(streamed):
        content = choice["delta"].get("content")
        expect(content is None or isinstance(content, str), "content that is text", choice)
        num_pieces += bool(content)
        texts[choice["index"]] = texts.get(choice["index"], "") + (content or "")
    expect(num_pieces > 0, "deltas with text", "none")
    return texts


def check_finish(streamed: Streamed) -> dict[int, str]:
    """Check that each choice ends once, with a reason, and with nothing after it; return the reasons by choice.

    Raises:
        Mismatch: one does not.

    """
    reasons = dict[int, str]()
    begun = set[int]()
    for choice in _choices(streamed):
        index, reason = choice["index"], choice.get("finish_reason")
        expect(index not in reasons, "nothing of a choice after its finish_reason", choice)
        begun.add(index)
        if reason is not None:
            expect(reason in FINISH_REASONS, f"finish_reason of {', '.join(sorted(FINISH_REASONS))}", reason)
            reasons[index] = reason
    expect(begun and begun == reasons.keys(), "a finish_reason for each choice", reasons)
    return reasons


def check_done(streamed: Streamed) -> None:
    """Check that a stream ends as it must.

    Raises:
        Mismatch: it does not.

    """
    expect(streamed.is_done, f"{DONE} at the end", _last(streamed))
    expect(streamed.num_late == 0, f"nothing after {DONE}", f"{streamed.num_late} events")


def check_streamed_usage(streamed: Streamed, *, is_wanted: bool) -> Mapping[str, int] | None:
    """Check that the usage comes last, alone, and only if it is wanted.

    Raises:
        Mismatch: it is not so.

    """
    with_usage = [number for number, chunk in enumerate(streamed.chunks) if chunk.get("usage") is not None]
    empty = [number for number, chunk in enumerate(streamed.chunks) if not chunk.get("choices")]
    if not is_wanted:
        expect(not with_usage, "no usage that was not asked for", [streamed.chunks[each] for each in with_usage[:1]])
        expect(not empty, "choices in all chunks", [streamed.chunks[each] for each in empty[:1]])
        return None
    last = len(streamed.chunks) - 1
    expect(with_usage == [last], "usage in the last chunk only", f"usage in the chunks {with_usage} of {last + 1}")
    expect(empty == [last], "choices in all but the chunk with usage", f"none in the chunks {empty} of {last + 1}")
    return check_usage(streamed.chunks[last]["usage"])


def assembled_message(streamed: Streamed, index: int = 0) -> dict[str, Any]:
    """Put the deltas of a choice together, as clients do.

    Raises:
        Mismatch: they do not fit together.

    """
    content, calls = "", dict[int, dict[str, Any]]()
    for choice in _choices(streamed):
        if choice["index"] != index:
            continue
        content += choice["delta"].get("content") or ""
        for part in choice["delta"].get("tool_calls") or ():
            expect(isinstance(part, dict) and _is_count(part.get("index")), "parts of calls with an index", part)
            _add_part(calls, part)
    message: dict[str, Any] = {"role": "assistant", "content": content or None}
    return message | ({"tool_calls": [calls[number] for number in sorted(calls)]} if calls else {})


def _add_part(calls: dict[int, dict[str, Any]], part: Mapping[str, Any]) -> None:
    function = part.get("function") or {}
    if part["index"] not in calls:
        calls[part["index"]] = {"type": "function", "function": {"name": "", "arguments": ""}}
    call = calls[part["index"]]
    call |= {name: part[name] for name in ("id", "type") if part.get(name)}
    for name in ("name", "arguments"):
        call["function"][name] += function.get(name) or ""


def _choices(streamed: Streamed) -> Iterator[dict[str, Any]]:
    check_no_failure(streamed)
    for chunk in streamed.chunks:
        for choice in chunk.get("choices") or ():
            is_choice = isinstance(choice, dict) and _is_count(choice.get("index"))
            expect(is_choice and isinstance(choice.get("delta"), dict), "choices with index and delta", choice)
            yield choice


def _check_head(body: Mapping[str, Any]) -> None:
    expect(isinstance(body.get("id"), str) and body["id"], "an id", body.get("id"))
    expect(_is_count(body.get("created")), "created, a Unix time", body.get("created"))
    expect(isinstance(body.get("model"), str) and body["model"], "the name of the model", body.get("model"))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _last(streamed: Streamed) -> object:
    return f"the end after {len(streamed.chunks)} events"
