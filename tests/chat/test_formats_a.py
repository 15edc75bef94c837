"""How families from Llama to Muse call and think: texts as models write them, and as their templates show them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

import llguidance
import pytest
from answers import Answer, ByteVocabulary, parse, parse_however_cut
from test_formats import TOOLS, WEATHER

from server.chat.answer_format import AnswerFormat, AnswerPlan, ReasoningStart
from server.chat.capabilities import TemplateCapabilities, probed
from server.chat.conversation import Adapter, Conversation
from server.chat.formats import FORMATS, choose_format
from server.chat.generic_tools import GenericTools
from server.chat.rendering import Rendering
from server.core.request import Message, Role, Tool, ToolCall

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "chat-templates"
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
OF_NAME = {each.name: each for each in FORMATS}
PYTHON = Tool("python", None, {"type": "object", "properties": {"code": {"type": "string"}}})
SEARCH = Tool("brave_search", None, {"type": "object", "properties": {"query": {"type": "string"}}})

PARIS = ("get_weather", {"city": "Paris", "days": 3})
ROME = ("get_weather", {"city": 'R"o}m\\e\n[1]'})
PING: tuple[str, object] = ("ping", {})
ROME_JSON = json.dumps(ROME[1])
PARIS_JSON = '{"city": "Paris", "days": 3}'


@dataclass(frozen=True)
class Sample:
    """What a model wrote, and what that means."""

    text: str
    calls: Sequence[tuple[str, object]] = ()
    content: str = ""
    reasoning: str = ""
    start: ReasoningStart = ReasoningStart.POSSIBLE
    num_complete: int | None = None


SAMPLES: Mapping[str, Sequence[Sample]] = {
    "Llama 3": (
        Sample(f'{{"name": "get_weather", "parameters": {PARIS_JSON}}}', [PARIS]),
        Sample(f'\n{{"type": "function", "name": "get_weather", "parameters": {ROME_JSON}}}', [ROME]),
        Sample(
            f'{{"name": "get_weather", "parameters": {PARIS_JSON}}}; {{"name": "ping", "parameters": {{}}}}',
            [PARIS, PING],
        ),
        Sample('{"name": "ping", "parameters": {}}\n{"name": "Bob"}', [PING], '{"name": "Bob"}'),
        Sample(f'<|python_tag|>{{"name": "get_weather", "parameters": {PARIS_JSON}}}', [PARIS]),
        Sample(
            '<|python_tag|>brave_search.call(query="rain, (today)")', [("brave_search", {"query": "rain, (today)"})]
        ),
        Sample("<|python_tag|>print(1)", [("python", {"code": "print(1)"})]),
        Sample('{"name": "Bob", "parameters": 3}', content='{"name": "Bob", "parameters": 3}'),
        Sample('{"a": {"name": "ping"}} is JSON.', content='{"a": {"name": "ping"}} is JSON.'),
        Sample('See {"name": "ping", "parameters": {}}.', content='See {"name": "ping", "parameters": {}}.'),
    ),
    "Mistral": (
        Sample(
            f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS_JSON}, "id": "a1B2c3D4e"}},'
            f'{{"name":"get_weather","arguments":{ROME_JSON}}}]',
            [PARIS, ROME],
        ),
        Sample('Sure.\n[TOOL_CALLS][{"arguments": {}, "name": "ping"}]', [PING], "Sure."),
        Sample("[TOOL_CALLS]get_weather[ARGS]" + PARIS_JSON, [PARIS]),
        Sample("I would use [TOOL_CALLS] for that.", content="I would use [TOOL_CALLS] for that."),
    ),
    "Mistral (2025)": (
        Sample(f"[TOOL_CALLS]get_weather[ARGS]{PARIS_JSON}[TOOL_CALLS]ping[ARGS]{{}}", [PARIS, PING]),
        Sample(
            f"[THINK]Paris?\n[/THINK]Let me look.[TOOL_CALLS]get_weather{ROME_JSON}", [ROME], "Let me look.", "Paris?"
        ),
        Sample("no[TOOL_CALLS]" + "x" * 300, content="no[TOOL_CALLS]" + "x" * 300),
    ),
    "Mistral Small 3.2": (Sample(f"[TOOL_CALLS]get_weather[CALL_ID]a1B2c3D4e[ARGS]{PARIS_JSON}", [PARIS]),),
    "Harmony": (
        Sample(
            "<|channel|>analysis<|message|>Rain?\n<|end|><|start|>assistant<|channel|>commentary<|message|>Let me look."
            "<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
            f"{ROME_JSON}<|call|>",
            [ROME],
            "Let me look.",
            "Rain?",
        ),
        Sample(f" to=functions.get_weather<|channel|>commentary json<|message|>{PARIS_JSON}", [PARIS]),
        Sample(f"<|channel|>analysis to=functions.get_weather code<|message|>{PARIS_JSON}<|call|>", [PARIS]),
        Sample("<|channel|>commentary to=functions.ping <|constrain|>json<|message|><|call|>", [PING]),
        Sample(
            "So.<|end|><|start|>assistant<|channel|>final<|message|>It rains.<|return|>",
            content="It rains.",
            reasoning="So.",
            start=ReasoningStart.OPEN,
        ),
        Sample("<|channel|>commentary to=functions.ping<|message|>", [("ping", None)], num_complete=0),
        Sample("<|channel|>commentary to=browser.open<|message|>no", content="no"),
        Sample("Plain words to=him.", content="Plain words to=him."),
        Sample("to=him it was plain.", content="to=him it was plain."),
    ),
    "Functionary v3.1": (
        Sample(
            f"Sure.\n<function=get_weather>{PARIS_JSON}</function>\n<function=ping>{{}}</function>",
            [PARIS, PING],
            "Sure.",
        ),
        Sample("<function=get_weather> is how.", content="<function=get_weather> is how."),
    ),
    "Functionary v3.2": (
        Sample(f"all\nLet me look.>>>get_weather\n{PARIS_JSON}>>>ping\n{{}}", [PARIS, PING], "Let me look."),
        Sample(f"get_weather\n{ROME_JSON}", [ROME]),
        Sample("all\n>>> 1 + 1\n2", content=">>> 1 + 1\n2"),
        Sample("Hello.", content="Hello."),
    ),
    "functools": (
        Sample(
            f'functools[{{"name": "get_weather", "arguments": {PARIS_JSON}}}, {{"name": "ping", "arguments": {{}}}}]',
            [PARIS, PING],
        ),
        Sample("Python has functools for that.", content="Python has functools for that."),
    ),
    "Phi-4": (
        Sample(f'<|tool_call|>[{{"name": "get_weather", "arguments": {ROME_JSON}}}]<|/tool_call|>', [ROME]),
        Sample('<|tool_call|>{"name": "ping", "parameters": {}}<|/tool_call|>', [PING]),
    ),
    "Granite 3": (
        Sample(f'<|tool_call|> [{{"name": "get_weather", "arguments": {PARIS_JSON}}}]', [PARIS]),
        Sample("<think>Hm.</think>\n<response>It rains.</response>", content="It rains.", reasoning="Hm."),
    ),
    "Command R": (
        Sample(
            'I look.\nAction: ```json\n[\n    {\n        "tool_name": "get_weather",\n        "parameters": {\n'
            '            "city": "Paris",\n            "days": 3\n        }\n    },\n'
            '    {"tool_name": "ping", "parameters": {}}\n]```\n',
            [PARIS, PING],
            "I look.",
        ),
        Sample(
            'Action:\n```json\n[\n    {\n        "tool_name": "directly-answer",\n        "parameters": {}\n    }\n'
            "]```\nHi.",
            content="\nHi.",
        ),
        Sample("Action: go!", content="Action: go!"),
    ),
    "Command R7B": (
        Sample(
            "<|START_THINKING|>Paris?<|END_THINKING|><|START_ACTION|>[\n"
            f'    {{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {PARIS_JSON}}},\n'
            '    {"tool_call_id": "1", "tool_name": "ping", "parameters": {}}\n]<|END_ACTION|>',
            [PARIS, PING],
            reasoning="Paris?",
        ),
        Sample(
            f'I will look.<|START_ACTION|>[{{"tool_name": "get_weather", "parameters": {PARIS_JSON}}}]<|END_ACTION|>',
            [PARIS],
            reasoning="I will look.",
            start=ReasoningStart.OPEN,
        ),
        Sample("<|START_RESPONSE|>It rains.<|END_RESPONSE|>", content="It rains."),
    ),
    "Apertus": (
        Sample(f'<|tools_prefix|>[{{"get_weather": {PARIS_JSON}}}, {{"ping": {{}}}}]<|tools_suffix|>', [PARIS, PING]),
        Sample(
            f'<|inner_prefix|>Rain?<|tools_prefix|>[{{"get_weather": {ROME_JSON}}}]<|tools_suffix|>',
            [ROME],
            "",
            "Rain?",
        ),
        Sample("<|tools_prefix|>[1, 2]", content="<|tools_prefix|>[1, 2]"),
    ),
    "GigaChat 3": (
        Sample(
            "Look.<|message_sep|>\n\nfunction call<|role_sep|>\n"
            f'{{"name": "get_weather", "arguments": {PARIS_JSON}}}<|message_sep|>\n\n',
            [PARIS],
            "Look.",
        ),
        Sample("It rains.<|message_sep|>\n\n", content="It rains."),
    ),
    "GigaChat 3.1": (
        Sample(f'Look.<|function_call|>{{"name": "get_weather", "arguments": {PARIS_JSON}}}', [PARIS], "Look."),
    ),
    "Solar Open": (
        Sample(
            "<|think|>Rain?<|end|><|begin|>assistant<|tool_calls|>"
            f"<|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>get_weather<|tool_call:args|>{ROME_JSON}<|tool_call:end|>"
            "<|tool_call:begin|>f6g7h8i9j0<|tool_call:name|>ping<|tool_call:args|>{}<|tool_call:end|><|calls|>",
            [ROME, PING],
            reasoning="Rain?",
        ),
        Sample("<|content|>It rains.<|flush|>", content="It rains."),
    ),
    "Muse ATEM": (
        Sample(
            " to=self<|message|>Rain?<|eom|><|start|>assistant to=user<|message|>I look.<|eom|><|start|>assistant"
            ' to=get_weather<|message|><atem:function_calls>\n<atem:invoke name="get_weather">\n'
            '<atem:parameter name="city">Paris</atem:parameter>\n<atem:parameter name="days">3</atem:parameter>\n'
            '</atem:invoke>\n<atem:invoke name="ping">\n</atem:invoke>\n</atem:function_calls><|eot|>',
            [PARIS, PING],
            "I look.",
            "Rain?",
        ),
        Sample(" to=user<|message|>It rains.<|eot|>", content="It rains."),
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_what_models_write_is_understood_however_it_is_cut(name: str) -> None:
    plan_tools = (*TOOLS, PYTHON, SEARCH)
    for sample in SAMPLES[name]:
        answer = parse_however_cut(OF_NAME[name], AnswerPlan(plan_tools, reasoning=sample.start), sample.text)
        if sample.num_complete is None:
            assert answer.decoded_calls == list(sample.calls), sample.text
        assert (answer.content, answer.reasoning) == (sample.content, sample.reasoning), sample.text
        num_complete = len(sample.calls) if sample.num_complete is None else sample.num_complete
        assert (len(answer.calls), answer.num_complete) == (len(sample.calls), num_complete), sample.text


@pytest.mark.parametrize("name", SAMPLES)
def test_a_call_that_is_cut_off_stays_incomplete(name: str) -> None:
    sample = SAMPLES[name][0]
    plan = AnswerPlan(TOOLS, reasoning=sample.start)
    whole = parse(OF_NAME[name], plan, [sample.text])
    for end in range(len(sample.text)):
        answer = parse(OF_NAME[name], plan, [sample.text[:end]])
        for (known, full), (said, arguments) in zip(whole.calls, answer.calls, strict=False):
            assert said == known
            # where a value is plain text, it may end with the beginning of the tag that was to end it
            assert name == "Muse ATEM" or full.startswith(arguments)
        for _, arguments in answer.calls[: answer.num_complete]:
            json.loads(arguments)


@pytest.mark.parametrize("name", SAMPLES)
def test_thoughts_are_content_with_their_tags_where_they_are_not_kept_apart(name: str) -> None:
    for sample in SAMPLES[name]:
        if sample.reasoning:
            plan = AnswerPlan(TOOLS, reasoning=sample.start, is_reasoning_raw=True)
            answer = parse_however_cut(OF_NAME[name], plan, sample.text)
            assert answer.reasoning == ""
            assert sample.reasoning in answer.content
            assert len(answer.calls) == len(sample.calls)


@pytest.mark.parametrize("answer_format", FORMATS, ids=lambda each: each.name)
def test_garbage_means_the_same_however_it_comes(answer_format: AnswerFormat) -> None:
    numbers = random.Random(answer_format.name)
    whole = [answer_format.example, *(sample.text for sample in SAMPLES.get(answer_format.name, ()))]
    pieces = [*whole, *sorted(answer_format.markers), *'{}[]"\\\n <=:', "ping", '"name": ', "to=", ">>>", "Action:"]
    for _ in range(25):
        chosen = [numbers.choice(pieces) for _ in range(5)]
        text = "".join(each[: numbers.randint(1, len(each))] if numbers.random() < 0.5 else each for each in chosen)
        plan = AnswerPlan(TOOLS, reasoning=numbers.choice(list(ReasoningStart)))
        once = parse(answer_format, plan, [text])
        bit_by_bit = parse(answer_format, plan, [text[i : i + 3] for i in range(0, len(text), 3)])
        assert (once.content, once.reasoning, once.calls) == (
            bit_by_bit.content,
            bit_by_bit.reasoning,
            bit_by_bit.calls,
        )


def test_ids_of_calls_are_the_model_s_own_where_it_gives_any() -> None:
    def ids(name: str) -> list[str]:
        return parse(OF_NAME[name], AnswerPlan(TOOLS), [SAMPLES[name][0].text]).call_ids

    assert ids("Mistral Small 3.2") == ["a1B2c3D4e"]
    assert parse(OF_NAME["Solar Open"], AnswerPlan(TOOLS), [SAMPLES["Solar Open"][0].text]).call_ids == [
        "a1b2c3d4e5",
        "f6g7h8i9j0",
    ]
    first, second = ids("Command R7B")
    assert first != second
    assert first.startswith("call_")


def test_a_template_of_phi_4_is_recognized() -> None:
    phi = "{% if message['tools'] %}{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}{% endif %}"
    assert choose_format(phi).name == "Phi-4"
    assert choose_format("{{ messages[0].content }}").name == "Hermes"


TEMPLATES = {
    "Apertus-8B-Instruct": "Apertus",
    "Bielik-11B-v3.0-Instruct": "Hermes",
    "Cohere2MoE": "Command R7B",
    "CohereForAI-c4ai-command-r-plus-tool_use": "Command R",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "Command R7B",
    "GigaChat3-10B-A1.8B": "GigaChat 3",
    "GigaChat3.1-10B-A1.8B": "GigaChat 3.1",
    "HuggingFaceTB-SmolLM3-3B": "Hermes",
    "Mistral-Small-3.2-24B-Instruct-2506": "Mistral Small 3.2",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "Hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "Hermes",
    "Qwen-Qwen2.5-7B-Instruct": "Hermes",
    "Qwen-Qwen3-0.6B": "Hermes",
    "fireworks-ai-llama-3-firefunction-v2": "functools",
    "ibm-granite-granite-3.3-2B-Instruct": "Granite 3",
    "ibm-granite-granite-4.0": "Hermes",
    "ibm-granite-granite-4.1": "Hermes",
    "meetkai-functionary-medium-v3.1": "Functionary v3.1",
    "meetkai-functionary-medium-v3.2": "Functionary v3.2",
    "meta-llama-Llama-3.1-8B-Instruct": "Llama 3",
    "meta-llama-Llama-3.2-3B-Instruct": "Llama 3",
    "meta-llama-Llama-3.3-70B-Instruct": "Llama 3",
    "microsoft-Phi-3.5-mini-instruct": "Hermes",
    "mistralai-Ministral-3-14B-Reasoning-2512": "Mistral (2025)",
    "mistralai-Mistral-Nemo-Instruct-2407": "Mistral",
    "muse-glimmer": "Muse ATEM",
    "openai-gpt-oss-120b": "Harmony",
    "unsloth-mistral-Devstral-Small-2507": "Mistral (2025)",
    "upstage-Solar-Open-100B": "Solar Open",
}
SHOW_NO_CALLS = {
    "HuggingFaceTB-SmolLM3-3B",
    "ibm-granite-granite-3.3-2B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
}
NO_TEXT_BESIDE_CALLS = {
    "Cohere2MoE",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.2-3B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "muse-glimmer",
    "upstage-Solar-Open-100B",
}
SHOW_THOUGHTS = (
    "Bielik-11B-v3.0-Instruct",
    "Cohere2MoE",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "Qwen-Qwen3-0.6B",
    "muse-glimmer",
    "openai-gpt-oss-120b",
    "upstage-Solar-Open-100B",
)
# What an assistant's message begins with, where a prompt has more behind that, or something else.
OPENINGS = {
    "Cohere2MoE": "<|CHATBOT_TOKEN|>",
    "CohereForAI-c4ai-command-r-plus-tool_use": "<|CHATBOT_TOKEN|>",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "<|CHATBOT_TOKEN|>",
}
ENDS = (
    "<|END_OF_TURN_TOKEN|>",
    "<|assistant_end|>",
    "<|call|>",
    "<|calls|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|eot|>",
    "</s>",
)
QUESTION = Message(Role.USER, "what-weather")


@cache
def compiled(name: str) -> tuple[AnswerFormat, Rendering, TemplateCapabilities]:
    source = (PUBLISHED / f"{name}.jinja").read_text(encoding="utf-8")
    rendering = Rendering(source)
    others = {"functions": "[]", "datetime": "today"}  # which one of them demands
    capabilities = probed(lambda variables: rendering.render({**others, **variables}, now=NOON), source)
    return choose_format(source), rendering, capabilities


def written(name: str, *calls: tuple[str, object], content: str = "", reasoning: str = "") -> tuple[str, str]:
    """Return the end of the prompt, and what the assistant writes after it by the template, up to its last token."""
    _, rendering, capabilities = compiled(name)
    length = 6 if "Solar" in name else 5  # of the id that is to come: some want exactly as many
    said = Message(
        Role.ASSISTANT,
        content,
        tool_calls=tuple(
            ToolCall(f"call{i:0{length}}", call, json.dumps(given)) for i, (call, given) in enumerate(calls)
        ),
        reasoning=reasoning,
    )
    render = partial(rendering.render, now=NOON)
    adapter = Adapter(capabilities, GenericTools())
    others = {"bos_token": "", "eos_token": "</s>", "functions": "[]", "datetime": "today"}
    prompt = render({**others, **adapter.variables(Conversation((QUESTION,)), str)})
    whole = adapter.variables(Conversation((QUESTION, said)), str)
    text = render({**others, **whole, "add_generation_prompt": False})
    if name in OPENINGS:
        text = text.partition(QUESTION.content)[2].partition(OPENINGS[name])[2].partition("<|START_OF_TURN_TOKEN|>")[0]
    else:
        assert text.startswith(prompt), (prompt, text)
        text = text.removeprefix(prompt)
    ends = [end for end in ENDS if end in text]
    assert len(ends) <= 1
    return prompt, text.rpartition(ends[0])[0] if ends else text


def test_llama_may_say_json_that_is_no_call_and_nothing_that_looks_like_one() -> None:
    plan = AnswerPlan(TOOLS)
    for text in (
        "",
        "Hi.",
        '{"a": 1}',
        '{"name": "Bob"}',
        '{"name": "pin"}',
        '{"type": "function"}',
        'So: {"name": "ping"',
    ):
        assert accepts(OF_NAME["Llama 3"], plan, text), text
    for text in (
        '{"name": "ping"}',
        ' {"name" : "ping", "a": 1}',
        '{"type": "function", "name": "ping"}',
        "<|python_tag|>",
    ):
        assert not accepts(OF_NAME["Llama 3"], plan, text), text
    for head in ("", '"type": "function", '):
        assert accepts(OF_NAME["Llama 3"], plan, f'{{{head}"name": "ping", "parameters": {{}}}}')


def test_gpt_oss_may_name_the_function_before_the_channel_and_behind_it() -> None:
    for head in (
        " to=functions.ping<|channel|>commentary json",
        "<|channel|>commentary to=functions.ping <|constrain|>json",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.ping json",
    ):
        for must_call in (True, False):
            plan = AnswerPlan(TOOLS, must_call=must_call, reasoning=ReasoningStart.POSSIBLE)
            assert accepts(OF_NAME["Harmony"], plan, head + "<|message|>{}"), head
            assert not accepts(OF_NAME["Harmony"], plan, head.replace("ping", "pong") + "<|message|>{}"), head


def accepts(answer_format: AnswerFormat, plan: AnswerPlan, text: str) -> bool:
    """Whether a grammar allows a text, byte by byte."""
    vocabulary = ByteVocabulary(answer_format.markers, (), are_control=False)
    grammar = answer_format.grammar(plan, lambda _: None)
    assert grammar is not None
    matcher = llguidance.LLMatcher(vocabulary.tokenizer, grammar, log_level=0)
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


def understood(answer_format: AnswerFormat, text: str) -> Answer:
    answer = parse_however_cut(
        answer_format, AnswerPlan((WEATHER, *TOOLS[1:]), reasoning=ReasoningStart.POSSIBLE), text
    )
    assert answer.num_complete == len(answer.calls)
    return answer


with_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the collection of published templates is not part of the project"
)


@with_published
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_published_template_is_recognized(name: str) -> None:
    assert compiled(name)[0].name == TEMPLATES[name]


@with_published
@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - SHOW_NO_CALLS))
def test_the_calls_of_a_published_template_are_read_and_allowed(name: str) -> None:
    answer_format, _, capabilities = compiled(name)
    plan = AnswerPlan(TOOLS, must_call=True, reasoning=ReasoningStart.POSSIBLE)
    several = [PARIS, PING] if capabilities.parallel_calls else [PARIS]
    for calls in ([ROME], several):
        _, text = written(name, *calls)
        assert understood(answer_format, text).decoded_calls == calls, text
        assert accepts(answer_format, plan, text), text


@with_published
@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - SHOW_NO_CALLS - NO_TEXT_BESIDE_CALLS))
def test_text_before_the_calls_of_a_published_template_is_read(name: str) -> None:
    answer_format, _, _ = compiled(name)
    _, text = written(name, PARIS, content="Let me look.")
    answer = understood(answer_format, text)
    # gpt-oss' template takes it for thinking
    said = answer.reasoning if answer_format.name == "Harmony" else answer.content
    assert (answer.decoded_calls, said) == ([PARIS], "Let me look."), text


@with_published
@pytest.mark.parametrize("name", SHOW_THOUGHTS)
def test_the_thoughts_of_a_published_template_are_read(name: str) -> None:
    answer_format, _, _ = compiled(name)
    prompt, text = written(name, PARIS, reasoning="Which city?")
    start = ReasoningStart.POSSIBLE if name in OPENINGS else answer_format.reasoning_start(prompt)
    answer = parse_however_cut(answer_format, AnswerPlan(TOOLS, reasoning=start), text)
    assert (answer.decoded_calls, answer.content, answer.reasoning) == ([PARIS], "", "Which city?"), text


@with_published
def test_prompts_tell_whether_thinking_is_open() -> None:
    starts = {name: compiled(name)[0].reasoning_start(written(name, PARIS)[0]) for name in SHOW_THOUGHTS}
    assert starts == {
        **dict.fromkeys(SHOW_THOUGHTS, ReasoningStart.POSSIBLE),
        "Cohere2MoE": ReasoningStart.OPEN,
        "CohereForAI-c4ai-command-r7b-12-2024-tool_use": ReasoningStart.NEVER,
    }
