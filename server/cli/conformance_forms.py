"""Checks of answers whose form the request demands: JSON, schemas, grammars."""

from __future__ import annotations

import re
from typing import Any

from server.cli.conformance_answers import (
    as_list,
    as_object,
    assembled_message,
    check_done,
    check_error,
    check_events,
    check_finish,
    check_usage,
    expect,
    parsed,
    text_of,
)
from server.cli.conformance_suite import CUT_SHORT, Check, Subject, Unsupported

_EIFFEL_TOWER = "Where is the Eiffel Tower?"
_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "country": {"type": "string", "maxLength": 40},
    },
    "required": ["city", "country"],
    "additionalProperties": False,
}
_BAD_REQUEST = frozenset({400})
_UNENFORCEABLE = "uniqueItems"
_DICE = {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 2, "maxItems": 3, _UNENFORCEABLE: True}
_UNSUPPORTED = "unsupported_parameter"


def _wanted(schema: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}


async def json_object(subject: Subject) -> str | None:
    """Check that an answer can be made JSON."""
    prompt = "Describe Paris as a JSON object with the keys city and country."
    body = await subject.ask(prompt, response_format={"type": "json_object"}, max_tokens=subject.ample_room)
    if body["choices"][0]["finish_reason"] == "length":
        return CUT_SHORT
    as_object(parsed(text_of(body)), "a text that is a JSON object")
    return None


async def json_schema(subject: Subject) -> str | None:
    """Check that an answer follows a schema."""
    body = await subject.ask(_EIFFEL_TOWER, response_format=_wanted(_SCHEMA), max_tokens=subject.ample_room)
    if body["choices"][0]["finish_reason"] == "length":
        return CUT_SHORT
    _check_place(text_of(body))
    return None


async def json_streamed(subject: Subject) -> str | None:
    """Check that a streamed answer follows a schema."""
    streamed = await subject.stream(_EIFFEL_TOWER, response_format=_wanted(_SCHEMA), max_tokens=subject.ample_room)
    check_events(streamed)
    reasons = check_finish(streamed)
    check_done(streamed)
    if reasons[0] == "length":
        return CUT_SHORT
    _check_place(assembled_message(streamed)["content"])
    return None


def _check_place(text: object) -> None:
    answer = as_object(parsed(text), "a text that is a JSON object")
    expect(set(answer) == {"city", "country"}, "the keys city and country, as the schema says", answer)
    expect(all(isinstance(value, str) for value in answer.values()), "texts, as the schema says", answer)


async def json_cut_short(subject: Subject) -> str | None:
    """Check that an answer that is cut off within JSON says so."""
    body = await subject.ask(_EIFFEL_TOWER, response_format=_wanted(_SCHEMA), max_tokens=2)
    reason, usage = body["choices"][0]["finish_reason"], check_usage(body.get("usage"))
    expect(reason == "length", "finish_reason length after 2 tokens", reason)
    expect(usage["completion_tokens"] <= 2, "at most 2 completion_tokens", dict(usage))
    return None


async def json_unenforceable(subject: Subject) -> str | None:
    """Check that a schema that cannot be enforced is refused by the name of what cannot be, and not answered anyhow."""
    schema = {"type": "object", "properties": {"dice": _DICE}, "required": ["dice"], "additionalProperties": False}
    wanted = _wanted(schema)
    reply = await subject.wire.post(
        subject.body("Roll the dice.", response_format=wanted, max_tokens=subject.ample_room)
    )
    if reply.status == 200:
        answer = as_object(parsed(text_of(reply.body)), "HTTP 400, or a JSON object as the schema says")
        dice = as_list(answer.get("dice"), "dice")
        is_valid = 2 <= len(dice) <= 3 and set(dice) <= {1, 2, 3} and len(set(dice)) == len(dice)
        expect(is_valid, "HTTP 400, or an answer as the schema says", answer)
        return None
    if reply.error.get("code") == _UNSUPPORTED and reply.error.get("param") == "response_format":
        raise Unsupported(str(reply.error.get("message")))
    check_error(reply, _BAD_REQUEST)
    param, message = (str(reply.error.get(name)) for name in ("param", "message"))
    expect(param.startswith("response_format"), "an error that names response_format", param)
    expect(_UNENFORCEABLE in message, f"an error that names {_UNENFORCEABLE}", message)
    return None


async def grammar(subject: Subject) -> str | None:
    """Check that an answer follows a grammar."""
    return await _one_of(subject, {"blue", "green"}, grammar='root ::= "blue" | "green"')


async def guided_choice(subject: Subject) -> str | None:
    """Check that an answer is one of several texts."""
    return await _one_of(subject, {"blue", "light green"}, guided_choice=["blue", "light green"])


async def _one_of(subject: Subject, texts: set[str], **extension: object) -> str | None:
    text = text_of(await subject.ask("Which colour is grass?", **extension, max_tokens=subject.ample_room))
    expect(text in texts, " or ".join(sorted(texts)), text)
    return None


async def guided_regex(subject: Subject) -> str | None:
    """Check that an answer matches a regular expression."""
    pattern = "[0-9]{2}:[0-9]{2}"
    text = text_of(await subject.ask("How late is it?", guided_regex=pattern, max_tokens=subject.ample_room))
    expect(re.fullmatch(pattern, text), f"a text that matches {pattern}", text)
    return None


FORM_CHECKS = (
    Check("response_format: json_object", json_object),
    Check("response_format: json_schema", json_schema),
    Check("response_format: streamed", json_streamed),
    Check("response_format: cut short", json_cut_short),
    Check("response_format: unenforceable", json_unenforceable),
    Check("grammar", grammar),
    Check("guided_regex", guided_regex),
    Check("guided_choice", guided_choice),
)
