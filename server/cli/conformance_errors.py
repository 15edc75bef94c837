"""Checks of what happens to requests that are wrong."""

from __future__ import annotations

from server.cli.conformance_answers import check_error, described, expect
from server.cli.conformance_suite import Check, Subject
from server.cli.conformance_wire import Reply

_BAD, _ABSENT = frozenset({400}), frozenset({404})
_LONGEST_TRIED = 300_000
"""Longer contexts are not filled to see what comes then: it would take minutes, and megabytes."""
_UNKNOWN_CONTEXT = 200_000
_UNKNOWN_PARAMETER = "no_such_parameter"


async def bad_spec(subject: Subject) -> str | None:
    """Check that what cannot be the name of a model is refused."""
    reply = await subject.wire.post({**subject.body(), "model": "no such:model:spec@nowhere"})
    check_error(reply, _BAD | _ABSENT, param="model")
    return None


async def unknown_model(subject: Subject) -> str | None:
    """Check that a model that is not there is not found."""
    reply = await subject.wire.post({**subject.body(), "model": "no-such-model"})
    check_error(reply, _ABSENT, code="model_not_found")
    check_error(await subject.wire.get("/v1/models/no-such-model"), _ABSENT, code="model_not_found")
    return None


async def wrong_type(subject: Subject) -> str | None:
    """Check that values of the wrong type are refused by name."""
    check_error(await subject.wire.post(subject.body(temperature="hot")), _BAD, param="temperature")
    check_error(await subject.wire.post(subject.body(max_tokens="many")), _BAD, param="max_tokens")
    return None


async def out_of_range(subject: Subject) -> str | None:
    """Check that values out of range are refused by name."""
    check_error(await subject.wire.post(subject.body(temperature=5)), _BAD, param="temperature")
    check_error(await subject.wire.post(subject.body(max_tokens=0)), _BAD, param="max_tokens")
    return None


async def no_messages(subject: Subject) -> str | None:
    """Check that messages must be there."""
    check_error(await subject.wire.post({"model": subject.model}), _BAD, param="messages")
    check_error(await subject.wire.post(subject.body(messages=[])), _BAD, param="messages")
    return None


async def not_json(subject: Subject) -> str | None:
    """Check that a body must be a JSON object."""
    for content in (b'{"model": ', b"[]", b""):
        check_error(await subject.wire.post(content), _BAD)
    return None


async def too_long(subject: Subject) -> str | None:
    """Check that a prompt that does not fit is refused, and not cut."""
    context = subject.card.get("context_length")
    length = context if isinstance(context, int) and context > 0 else _UNKNOWN_CONTEXT
    if length > _LONGEST_TRIED:
        return f"not tried: a context of {length} tokens is too long to fill"
    reply = await subject.wire.post(subject.body(" ".join(str(number % 10) for number in range(length + length // 4))))
    check_error(reply, _BAD, code="context_length_exceeded")
    return None


async def unknown_parameter(subject: Subject) -> str | None:
    """Check that a parameter that nobody knows is named, not dropped in silence."""
    reply = await subject.wire.post({**subject.body(max_tokens=1), _UNKNOWN_PARAMETER: 1})
    if reply.status == 200 and _UNKNOWN_PARAMETER in reply.headers.get("x-llmspell-ignored", ""):
        return "ignored, and listed in x-llmspell-ignored"
    check_error(reply, _BAD, param=_UNKNOWN_PARAMETER)
    return None


async def functions(subject: Subject) -> str | None:
    """Check that what is older than tools is named, not dropped in silence."""
    function = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
    reply = await subject.wire.post(subject.body(functions=[function], max_tokens=1))
    if reply.status == 200 and "functions" in reply.headers.get("x-llmspell-ignored", ""):
        return "ignored, and listed in x-llmspell-ignored"
    check_error(reply, _BAD, param="functions")
    return None


async def absent_function(subject: Subject) -> str | None:
    """Check that a call of a function that is not there cannot be demanded."""
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    choice = {"type": "function", "function": {"name": "launch"}}
    reply = await subject.wire.post(subject.body(tools=[tool], tool_choice=choice))
    if reply.status == 400 and reply.error.get("param") == "tools":
        return "not tried: the model has no tools"
    check_error(reply, _BAD, param="tool_choice")
    return None


async def cut_arguments(subject: Subject) -> str | None:
    """Check that an earlier call whose arguments are no JSON is a bad request, and no failure of the server's."""
    function = {"name": "get_weather", "arguments": '{"city": "Par'}
    messages = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
    ]
    reply = await subject.wire.post(subject.body(messages=messages))
    if reply.status == 200:
        return "repaired, and answered"
    check_error(reply, _BAD)
    return None


async def before_a_stream(subject: Subject) -> str | None:
    """Check that what can be refused before a stream begins is refused as HTTP does it."""
    reply = await subject.wire.stream({**subject.body(), "model": "no-such-model"})
    expect(isinstance(reply, Reply), "an HTTP error before the stream", "a stream")
    if isinstance(reply, Reply):
        check_error(reply, _ABSENT)
    return None


async def unknown_address(subject: Subject) -> str | None:
    """Check that addresses that are not there answer in the same form."""
    check_error(await subject.wire.get("/v1/no-such-thing"), _ABSENT)
    reply = await subject.wire.get("/v1/chat/completions")
    expect(reply.status in {404, 405}, "HTTP 405 or 404 for GET", described(reply))
    return None


ERROR_CHECKS = (
    Check("error: bad spec", bad_spec),
    Check("error: unknown model", unknown_model),
    Check("error: wrong type", wrong_type),
    Check("error: out of range", out_of_range),
    Check("error: no messages", no_messages),
    Check("error: not JSON", not_json),
    Check("error: prompt too long", too_long),
    Check("error: unknown parameter", unknown_parameter),
    Check("error: legacy functions", functions),
    Check("error: absent function", absent_function),
    Check("error: cut arguments", cut_arguments),
    Check("error: before a stream", before_a_stream),
    Check("error: unknown address", unknown_address),
)
