"""The chat templates that models are published with: each renders a conversation with calls and results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

import jinja2
import pytest

from server.chat.capabilities import TemplateCapabilities, probed
from server.chat.conversation import Conversation
from server.chat.formats import choose_format
from server.chat.rendering import Rendering
from server.chat.template import ChatTemplate
from server.core.request import Message, ReasoningEffort, Role, Tool, ToolCall

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "chat-templates"
NAMES = sorted(path.stem for path in PUBLISHED.glob("*.jinja"))
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)

pytestmark = pytest.mark.skipif(not NAMES, reason="the collection of published templates is not part of the project")

# It wants its tools as text, in a variable of another name, and the time in one more; transformers refuses it as well.
REFUSES_ALL = {"fireworks-ai-llama-3-firefunction-v2"}

# What they cannot do by themselves.
TELLS_OF_NO_TOOLS = {
    "CohereForAI-c4ai-command-r-plus-tool_use",  # recurses for ever over schemas without a type
    "HuggingFaceTB-SmolLM3-3B",  # wants them in a variable of another name
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",  # recurses for ever over lists, and over values that may be null
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-ai-DeepSeek-V3.1",
    "google-gemma-2-2b-it",
    "llama-cpp-deepseek-r1",
    "llama-cpp-rwkv-world",
    "microsoft-Phi-3.5-mini-instruct",
}
SHOWS_NO_CALLS = {
    "HuggingFaceTB-SmolLM3-3B",
    "LFM2-8B-A1B",
    "LFM2.5-Instruct",
    "google-gemma-2-2b-it",
    "ibm-granite-granite-3.3-2B-Instruct",
    "llama-cpp-rwkv-world",
    "microsoft-Phi-3.5-mini-instruct",
}
SHOWS_NO_RESULTS = {"google-gemma-2-2b-it", "llama-cpp-rwkv-world", "microsoft-Phi-3.5-mini-instruct"}
ONE_CALL_A_MESSAGE = {
    "GigaChat3-10B-A1.8B",
    "GigaChat3.1-10B-A1.8B",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "openai-gpt-oss-120b",
}
SHORT_IDS = {"Mistral-Small-3.2-24B-Instruct-2506", "mistralai-Mistral-Nemo-Instruct-2407"}
HIDES_THE_SYSTEM_WHILE_CALLING = "mistralai-Mistral-Nemo-Instruct-2407"  # it puts it before the last user's message
ALTERNATES = {*SHORT_IDS, "google-gemma-2-2b-it", "mistralai-Ministral-3-14B-Reasoning-2512"}

CONTROL = "<|im_end|>"
SYSTEM, USER = Message(Role.SYSTEM, "be-brief"), Message(Role.USER, "what-weather")
ANSWER, THANKS = Message(Role.ASSISTANT, "it-is-sunny", reasoning="as-told"), Message(Role.USER, "thank-you")
WEATHER = Tool(
    "get_weather",
    f"Tells the weather, and not {CONTROL}.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "of the city"},
            "days": {"type": ["integer", "null"]},
            "unit": {"enum": ["c", "f"]},
            "place": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "tags": {"type": "array", "items": {"type": "string"}},
            "more": {"type": "object", "properties": {"x": {"$ref": "#/$defs/y"}}},
        },
        "required": ["city"],
        "$defs": {"y": {"type": "string"}},
    },
)
TOOLS = (WEATHER, Tool("do_nothing", None, {}))
PARIS = ToolCall("call_0123456789abcdef", "get_weather", '{"city": "Paris-sur-Mer", "days": 3}')
ROME = ToolCall("call_1", "get_weather", '{"city": "Roma-Norte"}')
NOTHING = ToolCall("call_2", "do_nothing", "")


def calling(*calls: ToolCall, content: str = "", reasoning: str = "") -> Message:
    return Message(Role.ASSISTANT, content, tool_calls=calls, reasoning=reasoning)


def result(call: ToolCall, content: str) -> Message:
    return Message(Role.TOOL, content, tool_call_id=call.id)


ONE_CALL = (SYSTEM, USER, calling(PARIS), result(PARIS, "very-sunny"))
TWO_CALLS = (
    USER,
    calling(ROME, NOTHING, content="let-me-look", reasoning="i-think"),
    result(NOTHING, "no-thing"),
    result(ROME, '{"sky": "grey-ish"}'),
)
CALLED_ONCE = ("be-brief", "what-weather", "get_weather", "city", "Paris-sur-Mer", "very-sunny")
CALLED_TWICE = ("what-weather", "get_weather", "Roma-Norte", "do_nothing", "grey-ish", "no-thing")

CONVERSATIONS: Sequence[tuple[str, tuple[Message, ...], tuple[str, ...]]] = [
    ("plain", (SYSTEM, USER, ANSWER, THANKS), ("be-brief", "what-weather", "it-is-sunny", "thank-you")),
    ("a call", ONE_CALL, CALLED_ONCE),
    ("a call and what followed", (*ONE_CALL, ANSWER, THANKS), (*CALLED_ONCE, "it-is-sunny", "thank-you")),
    ("two calls", TWO_CALLS, CALLED_TWICE),
    ("two calls and what followed", (*TWO_CALLS, ANSWER, THANKS), (*CALLED_TWICE, "it-is-sunny", "thank-you")),
    ("calls in two turns", (*TWO_CALLS, calling(PARIS), result(PARIS, "very-sunny")), (*CALLED_TWICE, "very-sunny")),
    ("asked twice", (USER, THANKS), ("what-weather", "thank-you")),
    ("a developer", (Message(Role.DEVELOPER, "be-brief"), USER), ("be-brief", "what-weather")),
]


@cache
def compiled(name: str) -> tuple[str, Rendering, TemplateCapabilities]:
    source = (PUBLISHED / f"{name}.jinja").read_text(encoding="utf-8")
    rendering = Rendering(source)
    return source, rendering, probed(partial(rendering.render, now=NOON), source)


def template(name: str) -> ChatTemplate:
    source, rendering, capabilities = compiled(name)
    return ChatTemplate(
        source,
        rendering,
        capabilities=capabilities,
        bos_text="<s>",
        eos_text="</s>",
        control_texts=(CONTROL,),
        now=lambda: NOON,
    )


@pytest.mark.parametrize("name", NAMES)
def test_each_renders_calls_and_results_with_tools_and_without(name: str) -> None:
    subject = template(name)
    if name in REFUSES_ALL:
        with pytest.raises(jinja2.UndefinedError, match="'functions' is undefined"):
            subject.render(Conversation((USER,)))
        return
    for said, messages, expected in CONVERSATIONS:
        for tools in ((), TOOLS):
            segments = subject.render(Conversation(messages, tools))
            text = "".join(segments)
            missing = {needle for needle in expected if needle not in text}
            if (name, said) == (HIDES_THE_SYSTEM_WHILE_CALLING, "a call"):
                missing.remove("be-brief")
            assert not missing, (said, bool(tools), missing)
            if tools:
                assert "do_nothing" in text, said
                # the description's control text is cut, and the template's own, if it has any, are not
                assert any(segment.endswith(f"and not {CONTROL[0]}") for segment in segments), said


def test_each_calls_in_the_way_that_is_documented() -> None:
    formats = {name: _format_of(name) for name in NAMES}
    assert formats == json.loads((Path(__file__).parent / "published_formats.json").read_text(encoding="utf-8"))


def _format_of(name: str) -> str:
    if name in REFUSES_ALL:
        return "refused"
    subject = template(name)
    return choose_format(subject.source).name if subject.has_own_calls else "generic"


@pytest.mark.parametrize("name", NAMES)
def test_each_takes_every_effort(name: str) -> None:
    if name not in REFUSES_ALL:
        for effort in ReasoningEffort:
            assert "what-weather" in template(name).render(Conversation((USER,), reasoning_effort=effort))[0]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("LFM2.5-Instruct", '<|tool_call_start|>[get_weather(city="Roma-Norte"), do_nothing()]<|tool_call_end|>'),
        (
            "LFM2-8B-A1B",
            '<|tool_call_start|>[get_weather(city="Roma-Norte"), do_nothing()]<|tool_call_end|><|im_end|>',
        ),
        (
            "ibm-granite-granite-3.3-2B-Instruct",
            '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Roma-Norte"}}, {"name": "do_nothing", ',
        ),
    ],
)
def test_calls_that_a_template_leaves_out_are_in_the_words_of_its_family(name: str, written: str) -> None:
    assert f"let-me-look\n{written}" in "".join(template(name).render(Conversation(TWO_CALLS, TOOLS)))


def those(attribute: str, value: object = False) -> set[str]:  # noqa: FBT002
    return {name for name in NAMES if getattr(compiled(name)[2], attribute) is value}


def test_what_they_can_do_is_known() -> None:
    assert those("tools") == TELLS_OF_NO_TOOLS
    assert those("calls") == SHOWS_NO_CALLS
    assert those("results") == SHOWS_NO_RESULTS
    assert those("parallel_calls") == ONE_CALL_A_MESSAGE
    assert those("short_ids", value=True) == SHORT_IDS
    assert those("roles_in_a_row") == ALTERNATES
    assert those("system") == {"google-gemma-2-2b-it"}
    assert those("null_content", value=True) == {"deepseek-ai-DeepSeek-R1-Distill-Llama-8B"}
    assert those("arguments_are_text", value=True) == {
        "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
        "meetkai-functionary-medium-v3.2",
    }
    assert "openai-gpt-oss-120b" in those("reasoning_beside_text")
    assert compiled("openai-gpt-oss-120b")[2].reasoning_field == "thinking"
    assert compiled("tencent-Hy3")[2].efforts["reasoning_effort"]["none"] == "no_think"
