from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

import pytest

from server.chat.capabilities import TemplateCapabilities, probed
from server.chat.rendering import Rendering
from server.chat.template import CHATML

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
FULL = """\
{%- if tools %}{{ tools | tojson }}{% endif -%}
{%- for message in messages -%}
{{- '<' + message.role + '>' + message.content -}}
{%- if message.reasoning_content %}({{ message.reasoning_content }}){% endif -%}
{%- for call in message.tool_calls or [] -%}
{{- call.function.name + (call.function.arguments | tojson) -}}
{%- endfor -%}
{%- endfor -%}"""
TOJSON = "(call.function.arguments | tojson)"
RAISES = "{{ raise_exception('no') }}"

NOTHING_BESIDE = {"text_beside_calls": False}


def changes(source: str) -> dict[str, object]:
    """Return what a template cannot do, or wants otherwise."""
    found = asdict(probed(partial(Rendering(source).render, now=NOON), source))
    usual = asdict(TemplateCapabilities())
    return {name: value for name, value in found.items() if value != usual[name]}


def on_message(condition: str) -> str:
    return "{% for message in messages %}{% if " + condition + " %}" + RAISES + "{% endif %}{% endfor %}" + FULL


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (FULL, {}),
        ("", {}),
        (RAISES, {}),
        (CHATML, {"tools": False, "calls": False, "reasoning_field": None}),
        (FULL.replace("{%- if tools %}", "{%- if false %}"), {"tools": False}),
        (on_message("message.role == 'system'"), {"system": False}),
        ("{# developer #}" + FULL, {"developer": True}),
        (on_message("message.role == 'developer'"), {}),
        (on_message("message.role == 'tool'"), {"results": False, "parallel_calls": False}),
        (FULL.replace("message.tool_calls or []", "[]"), {"calls": False}),
        (
            on_message("message.tool_calls and message.content is not none").replace(
                "message.content -", "(message.content or '') -"
            ),
            {"null_content": True, "text_beside_calls": False},
        ),
        (FULL.replace("+ message.content", "+ (message.content if not message.tool_calls else '')"), NOTHING_BESIDE),
        (on_message("message.tool_calls and message.tool_calls[0].id | length != 9"), {"short_ids": True}),
        (FULL.replace(TOJSON, "call.function.arguments"), {"arguments_are_text": True}),
        (FULL.replace(TOJSON, "call.function.arguments | string"), {"arguments_are_text": True}),
        (on_message("message.tool_calls | default([], true) | length > 1"), {"parallel_calls": False}),
        (FULL.replace("message.tool_calls or []", "(message.tool_calls or [])[:1]"), {"parallel_calls": False}),
        (on_message("loop.previtem is defined and loop.previtem.role == message.role"), {"roles_in_a_row": False}),
        (FULL.replace("message.content", "message.content[0].text"), {"content_parts": True}),
        (FULL.replace("{%- if tools %}", "{%- if tools | length %}"), {"empty_tools": True}),
        (FULL.replace("reasoning_content", "thinking"), {"reasoning_field": "thinking"}),
        (on_message("message.reasoning_content and message.content"), {"reasoning_beside_text": False}),
        (FULL + "{{ messages.pop(0) and '' }}", {}),
    ],
)
def test_what_is_found_out(source: str, expected: dict[str, object]) -> None:
    found = changes(source)
    assert {name: found.get(name) for name in expected} == expected
    if expected.keys() <= {"tools"} and source.endswith(FULL[-20:]):
        assert found == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", ["low", "low", "low", "medium", "high", "high"]),
        ("'no_think' 'max'", ["no_think", "low", "low", "medium", "high", "max"]),
        ('"none" "minimal" "xhigh"', ["none", "minimal", "low", "medium", "high", "xhigh"]),
        (
            "{% if reasoning_effort == 'medium' %}" + RAISES + "{% endif %}",
            ["low", "low", "low", "high", "high", "high"],
        ),
    ],
)
def test_efforts_in_the_words_of_the_template(said: str, expected: list[str]) -> None:
    found = changes("{{ reasoning_effort }}" + said + FULL)
    efforts = ("none", "minimal", "low", "medium", "high", "xhigh")
    assert found == {"efforts": {"reasoning_effort": dict(zip(efforts, expected, strict=True))}}
    refuses = "{% if thinking_effort %}" + RAISES + "{% endif %}"
    assert changes(refuses + FULL) == {"efforts": {"thinking_effort": {}}}


def test_they_are_read_as_they_were_written() -> None:
    found = probed(partial(Rendering(FULL + "reasoning_effort").render, now=NOON), FULL + "reasoning_effort")
    assert TemplateCapabilities.from_json(json.dumps(asdict(found))) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"tools": 1}',
        '{"no_such": true}',
        '{"reasoning_field": "content"}',
        '{"efforts": []}',
        '{"efforts": {"messages": {"low": "low"}}}',
        '{"efforts": {"reasoning_effort": {"low": 1}}}',
        '{"efforts": {"reasoning_effort": {"low": "' + "x" * 99 + '"}}}',
        "[" * 100_000,
    ],
)
def test_a_process_that_is_not_to_be_trusted_may_say_anything(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        TemplateCapabilities.from_json(text)
