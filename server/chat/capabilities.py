"""What a chat template can do, found out by rendering small conversations with it when a model is loaded.

Templates do not say what they can take: one wants arguments as an object, one as text; one leaves out tools without a
word, one raises an exception. The probes are llama.cpp's idea (``common/jinja/caps.cpp``). They run where the template
runs, in its process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

Probe = Callable[[Mapping[str, object]], str]
"""Renders variables, and raises whatever the template raises."""

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Where templates look for what an assistant thought, most usual first."""

EFFORT_VARIABLES = ("reasoning_effort", "thinking_effort")
"""Where templates look for how long the model is to think."""

# What an effort may be called: words for it that a template would name in its text, and usual ones that it may take.
_EFFORTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "none": (("none", "no_think", "minimal"), ("low",)),
    "minimal": (("minimal",), ("low",)),
    "low": ((), ("low",)),
    "medium": ((), ("medium", "high", "low")),
    "high": ((), ("high",)),
    "xhigh": (("xhigh", "max"), ("high",)),
}

_LONG_ID, _SHORT_ID = "call_probe_{}00000000", "probe000{}"


@dataclass(frozen=True, slots=True)
class TemplateCapabilities:
    """What a template can take; by default, everything as it is.

    Attributes:
        tools: whether it tells the model of the functions in ``tools``, whatever their schemas.
        calls: whether it shows the calls that an assistant made.
        results: whether it shows what tools answered.
        arguments_are_text: whether it wants the arguments of calls as JSON text, and not as an object.
        short_ids: whether ids of calls have to be nine letters and digits.
        null_content: whether an assistant that calls must not have content, not even an empty one.
        text_beside_calls: whether an assistant may say something and call in the same message.
        text_before_calls: whether it may say something in one message, and call in the next.
        parallel_calls: whether a message may have more than one call.
        system: whether it shows the system's messages.
        developer: whether it knows that role.
        roles_in_a_row: whether a role may have two messages one after the other.
        content_parts: whether content has to be a list of parts.
        empty_tools: whether it needs a list of tools where there are none.
        reasoning_field: the field of a message for what the assistant thought; ``None`` if it is never shown.
        reasoning_beside_text: whether an assistant that calls may have both reasoning and content.
        efforts: for each variable that says how long to think, the value for each effort of the API; efforts that the
            template refuses are left out.

    """

    tools: bool = True
    calls: bool = True
    results: bool = True
    arguments_are_text: bool = False
    short_ids: bool = False
    null_content: bool = False
    text_beside_calls: bool = True
    text_before_calls: bool = True
    parallel_calls: bool = True
    system: bool = True
    developer: bool = False
    roles_in_a_row: bool = True
    content_parts: bool = False
    empty_tools: bool = False
    reasoning_field: str | None = REASONING_FIELDS[0]
    reasoning_beside_text: bool = True
    efforts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> TemplateCapabilities:
        """Read what another process found out.

        Raises:
            ValueError: it is no such thing; that process is not to be trusted.

        """
        try:
            found = json.loads(text)
        except RecursionError as error:
            raise ValueError("its process answered with nonsense") from error
        if not isinstance(found, dict) or not all(_is_possible(name, value) for name, value in found.items()):
            raise ValueError("its process answered with nonsense")
        return cls(**found)


def probed(render: Probe, source: str) -> TemplateCapabilities:
    """Find out what a template can do.

    One that does not even show what a user says is left alone: nothing can be found out about it.
    """
    found: dict[str, Any] = {"efforts": {}}
    prober = _Prober(render)
    for found["content_parts"], found["empty_tools"] in product((False, True), repeat=2):
        prober.content_parts, prober.empty_tools = found["content_parts"], found["empty_tools"]
        if prober.shows([_USER], "probe-user"):
            break
    else:
        return TemplateCapabilities()
    found["system"] = prober.shows([_SYSTEM, _USER], "probe-system", "probe-user")
    found["developer"] = "developer" in source and prober.shows(
        [_said("developer", "probe-system"), _USER], "probe-system"
    )
    found["tools"] = prober.shows([_USER], "probe_tool", tools=[_TOOL])
    if found["tools"]:
        prober.tools = [_TOOL]
    found |= _of_calls(prober)
    found["roles_in_a_row"] = prober.shows([_USER, _said("user", "probe-again")], "probe-user", "probe-again")
    found |= _of_reasoning(prober)
    found["efforts"] = _efforts(prober, source)
    return TemplateCapabilities(**found)


def _said(role: str, content: str | None, **others: object) -> dict[str, object]:
    return {"role": role, "content": content, **others}


_SYSTEM = _said("system", "probe-system")
_USER = _said("user", "probe-user")
_ANSWER = _said("assistant", "probe-answer")


_TOOL: dict[str, object] = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "probe-description",
        "parameters": {
            "type": "object",
            "properties": {
                "probe_key": {"type": "string", "description": "probe-property"},
                "probe_optional": {"type": ["integer", "null"]},
                "probe_either": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                "probe_list": {"type": "array", "items": {"type": "object", "properties": {}}},
            },
            "required": ["probe_key"],
        },
    },
}
"""With what the schemas of common libraries have; templates that fail on it are no use for tools."""


@dataclass(slots=True)
class _Calling:
    """How an assistant's calls are put into messages."""

    content: str | None = ""
    arguments_are_text: bool = False
    call_id: str = _LONG_ID

    def messages(self, *indices: int, **others: object) -> list[dict[str, object]]:
        """Return a question, the calls with these numbers, and their results."""
        arguments = {"probe_argument": "probe-value"}
        calls = [
            {
                "id": self.call_id.format(index),
                "type": "function",
                "function": {
                    "name": f"probe_call{index}",
                    "arguments": json.dumps(arguments) if self.arguments_are_text else arguments,
                },
            }
            for index in indices
        ]
        results = (
            _said("tool", f"probe-result{index}", name=f"probe_call{index}", tool_call_id=self.call_id.format(index))
            for index in indices
        )
        return [_USER, _said("assistant", self.content, tool_calls=calls, **others), *results]


@dataclass(slots=True)
class _Prober:
    """Renders conversations in the way that has turned out to work so far."""

    render: Probe
    content_parts: bool = False
    empty_tools: bool = False
    tools: list[dict[str, object]] | None = None
    calling: _Calling = field(default_factory=_Calling)

    def text(self, messages: Sequence[dict[str, object]], **others: object) -> str | None:
        """Render, or return nothing if the template raises an exception, whichever."""
        if self.content_parts:
            messages = [_with_parts(message) for message in messages]
        variables = {
            "messages": messages,
            "tools": self.tools or ([] if self.empty_tools else None),
            "add_generation_prompt": True,
            "bos_token": "",
            "eos_token": "",
            **others,
        }
        try:
            return self.render(deepcopy(variables))
        except Exception:  # noqa: BLE001 -- a template is a program of somebody else's: it may raise anything
            return None

    def shows(self, messages: Sequence[dict[str, object]], *needles: str, **others: object) -> bool:
        """Whether the template takes the messages, and all of the texts appear."""
        text = self.text(messages, **others)
        return text is not None and all(needle in text for needle in needles)


def _with_parts(message: dict[str, object]) -> dict[str, object]:
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _of_calls(prober: _Prober) -> dict[str, object]:
    """Find a way to show calls; there are better ones and worse ones, and the best that works is taken."""
    text = next(_calls_rendered(prober, _is_well_shown), None) or next(_calls_rendered(prober, _is_shown), None)
    if text is None:
        prober.calling = _Calling()
        said = [_USER, _said("assistant", "probe-answer"), *prober.calling.messages(1)[2:]]
        return {"calls": False, "results": prober.shows(said, "probe-result1")}
    calling = prober.calling
    beside = _Calling("probe-beside", calling.arguments_are_text, calling.call_id).messages(1)
    before = [_USER, _said("assistant", "probe-beside"), *calling.messages(1)[1:], _ANSWER, _USER]
    both = ("probe_call1", "probe_call2", "probe-result2")
    return {
        "calls": True,
        "results": "probe-result1" in text,
        "arguments_are_text": calling.arguments_are_text,
        "short_ids": calling.call_id == _SHORT_ID,
        "null_content": calling.content is None,
        "text_beside_calls": prober.shows(beside, "probe_call1", "probe-beside"),
        "text_before_calls": prober.shows(before, "probe_call1", "probe-beside"),
        "parallel_calls": prober.shows(calling.messages(1, 2), *both),
    }


def _calls_rendered(prober: _Prober, is_good: Callable[[str], bool]) -> Iterator[str]:
    for call_id, arguments_are_text, content in product((_LONG_ID, _SHORT_ID), (False, True), ("", None)):
        prober.calling = _Calling(content, arguments_are_text, call_id)
        messages = prober.calling.messages(1)
        # without the result, because there are templates that know calls, and nothing of results
        for conversation in (messages, [*messages, _ANSWER, _USER], messages[:2]):
            text = prober.text(conversation)
            if text is not None and is_good(text):
                yield text


def _is_shown(text: str) -> bool:
    return "probe_call1" in text and "probe-value" in text


def _is_well_shown(text: str) -> bool:
    """Whether the arguments are neither JSON within JSON nor an object as Python writes it."""
    return _is_shown(text) and re.search(r"""probe_argument(?!['\\])""", text) is not None


def _of_reasoning(prober: _Prober) -> dict[str, object]:
    shown_field = None
    for name in REASONING_FIELDS:
        thinking = {name: "probe-reasoning"}
        conversations = (
            prober.calling.messages(1, **thinking),
            [_USER, _said("assistant", "probe-answer", **thinking), _USER],
        )
        if any(prober.shows(messages, "probe-reasoning") for messages in conversations):
            shown_field = name
            break
    else:
        return {"reasoning_field": None}
    calling = prober.calling
    beside = _Calling("probe-beside", calling.arguments_are_text, calling.call_id)
    without = prober.text(beside.messages(1))
    return {
        "reasoning_field": shown_field,
        "reasoning_beside_text": without is None or prober.text(beside.messages(1, **thinking)) is not None,
    }


def _efforts(prober: _Prober, source: str) -> dict[str, dict[str, str]]:
    """Choose a word for each effort: one that the template names, or else a usual one, and none that it refuses."""

    def is_accepted(variable: str, word: str) -> bool:
        others: dict[str, Any] = {variable: word}
        return prober.text([_USER], **others) is not None

    found: dict[str, dict[str, str]] = {}
    for variable in EFFORT_VARIABLES:
        if variable not in source:
            continue
        found[variable] = {}
        for effort, (names, usual) in _EFFORTS.items():
            named = [word for word in names if f"'{word}'" in source or f'"{word}"' in source]
            word = next((word for word in (*named, *usual) if is_accepted(variable, word)), None)
            if word is not None:
                found[variable][effort] = word
    return found


def _is_possible(name: str, value: object) -> bool:
    if name == "reasoning_field":
        return value is None or value in REASONING_FIELDS
    if name == "efforts":
        return isinstance(value, dict) and all(
            variable in EFFORT_VARIABLES
            and isinstance(words, dict)
            and all(effort in _EFFORTS and isinstance(word, str) and len(word) < 20 for effort, word in words.items())
            for variable, words in value.items()
        )
    return isinstance(value, bool) and name in {each.name for each in fields(TemplateCapabilities)}
