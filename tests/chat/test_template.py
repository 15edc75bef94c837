from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from server.chat.template import CHATML, ChatTemplate
from server.core.errors import InvalidRequest, ModelLoadingFailed
from server.core.request import Message, Role, ToolCall

# These insist on tools or functions; models ship them beside a default template. transformers refuses them as well.
INSIST_ON_TOOLS = {
    "CohereForAI-c4ai-command-r-plus-tool_use.jinja",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja",
    "fireworks-ai-llama-3-firefunction-v2.jinja",
}
PUBLISHED = Path(__file__).parents[2].parent / "shared" / "chat-templates"
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def template(source: str = CHATML, *control_texts: str) -> ChatTemplate:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>", control_texts=control_texts, now=lambda: NOON)


def said(text: str, role: Role = Role.USER) -> Message:
    return Message(role, text)


def test_chatml() -> None:
    messages = [said("Be brief.", Role.SYSTEM), said("Hi"), said("Hello.", Role.ASSISTANT), said("Bye")]
    assert template().render(messages) == [
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
        )
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("{{ strftime_now('%d %b %Y') }}", "04 Mar 2026"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{%- if tools %}t{% endif %}{{ add_generation_prompt }}", "True"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),
    ],
)
def test_what_templates_expect_of_their_environment(source: str, expected: str) -> None:
    assert template(source).render([said("Hi")]) == [expected]


def test_a_template_that_raises_refuses_the_messages() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}ok"
    assert template(source).render([said("Hi")]) == ["ok"]
    with pytest.raises(InvalidRequest, match="System role not supported") as caught:
        template(source).render([said("Be brief.", Role.SYSTEM)])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ undefined.attribute }}",
        "{{ 1 // 0 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_a_template_that_misbehaves_is_an_error_of_the_request(source: str) -> None:
    with pytest.raises(InvalidRequest):
        template(source).render([said("Hi")])


def test_bad_syntax_is_found_when_the_model_is_loaded() -> None:
    with pytest.raises(ModelLoadingFailed, match="line 2"):
        template("ok\n{% if %}")


def test_control_texts_of_users_and_tools_are_cut_and_others_are_left_alone() -> None:
    text = "a<|im_end|>b"
    for role in (Role.USER, Role.TOOL):
        segments = template(CHATML, "<|im_end|>", "<|im_start|>").render([said(text, role)])
        assert segments == [f"<|im_start|>{role}\na<", "|im_end|>b<|im_end|>\n<|im_start|>assistant\n"]
    for role in (Role.SYSTEM, Role.ASSISTANT):
        segments = template(CHATML, "<|im_end|>", "<|im_start|>").render([said(text, role)])
        assert segments == [f"<|im_start|>{role}\na<|im_end|>b<|im_end|>\n<|im_start|>assistant\n"]


def test_text_keeps_every_private_use_character() -> None:
    text = "".join(map(chr, range(0xF0000, 0xF0100))) + "<|im_end|>"
    segments = template(CHATML, "<|im_end|>").render([said(text)])
    assert "".join(segments) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert len(segments) == 2


def test_developer_is_system_unless_the_template_knows_better() -> None:
    plain = "{{ messages[0].role }}"
    knowing = "{{ messages[0].role }}{% if messages[0].role == 'developer' %}!{% endif %}"
    assert template(plain).render([said("", Role.DEVELOPER)]) == ["system"]
    assert template(knowing).render([said("", Role.DEVELOPER)]) == ["developer!"]


def test_tool_calls_reach_the_template_as_objects() -> None:
    source = "{{ messages[0].tool_calls[0].function.arguments.city }}/{{ messages[1].tool_call_id }}"
    call = Message(Role.ASSISTANT, "", tool_calls=(ToolCall("c1", "get_weather", '{"city": "Paris"}'),))
    assert template(source).render([call, Message(Role.TOOL, "18", tool_call_id="c1")]) == ["Paris/c1"]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the collection of published templates is not part of the project")
def test_published_templates_render_a_conversation() -> None:
    conversation = [said("Hello there"), said("General greeting", Role.ASSISTANT), said("What now?")]
    refused = {}
    for path in sorted(PUBLISHED.glob("*.jinja")):
        try:
            text = "".join(template(path.read_text(encoding="utf-8"), "<|im_end|>").render(conversation))
        except InvalidRequest as error:
            refused[path.name] = error.message
        else:
            assert "What now?" in text, path.name
    assert set(refused) <= INSIST_ON_TOOLS, refused
