"""What models of DeepSeek, Kimi, GLM, MiniMax, Gemma and others write, and what their templates make of a history."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import llguidance
import pytest
from answers import parse, parse_however_cut
from jinja2.ext import loopcontrols
from jinja2.sandbox import SandboxedEnvironment
from test_formats import NESTED, TOOLS, WEATHER

from server.chat.answer_format import AnswerFormat, AnswerPlan, ReasoningStart
from server.chat.formats import FORMATS, choose_format
from server.core.errors import InvalidRequest
from server.core.request import Tool

_TEMPLATES = Path(__file__).parents[3] / "shared" / "chat-templates"
_BY_NAME = {each.name: each for each in FORMATS}
_CODE = Tool("python", None, {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]})
_TYPED = Tool(
    "typed",
    None,
    {
        "type": "object",
        "properties": {
            "count": {"type": "integer"},
            "ratio": {"type": "number"},
            "on": {"type": "boolean"},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "config": {"type": "object"},
        },
    },
)
_ALL_TOOLS = (*TOOLS, _CODE, _TYPED)

Calls = Sequence[tuple[str, Mapping[str, object]]]


@dataclass(frozen=True)
class Sample:
    format: str
    text: str
    calls: Calls = ()
    content: str = ""
    reasoning: str = ""
    start: ReasoningStart = ReasoningStart.POSSIBLE
    ids: Sequence[str] | None = None


_PARIS = ("get_weather", {"city": "Paris"})
_PING: tuple[str, Mapping[str, object]] = ("ping", {})
_K3_CALL = (
    '<|open|>call tool="get_weather" index="1"<|sep|>'
    '<|open|>argument key="city" type="string"<|sep|>Paris<|close|>argument<|sep|><|close|>call<|sep|>'
)
_NS = "]<]minimax[>["

SAMPLES = [
    # texts as the models' cards, their templates and llama.cpp's tests show them
    Sample(
        "DeepSeek R1",
        "I should look.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        [_PARIS, _PING],
        reasoning="I should look.",
        start=ReasoningStart.OPEN,
    ),
    Sample(
        "DeepSeek 3.1",
        "REASONING</think>Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>ping<｜tool▁sep｜>{}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>",
        [_PARIS, _PING],
        content="Let me see.",
        reasoning="REASONING",
        start=ReasoningStart.OPEN,
    ),
    Sample(
        "DeepSeek 3.2",
        'Thinking</think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="typed">\n'
        '<｜DSML｜parameter name="count" string="false">1</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="maybe" string="true">null</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="tags" string="false">["buy milk","walk dog"]</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="ping">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        [("typed", {"count": 1, "maybe": "null", "tags": ["buy milk", "walk dog"]}), _PING],
        reasoning="Thinking",
        start=ReasoningStart.OPEN,
    ),
    Sample(
        "DeepSeek 4",
        '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        [_PARIS],
        start=ReasoningStart.NEVER,
    ),
    Sample(
        "Kimi K2",
        "<think>Two calls</think>Wait.<|tool_calls_section_begin|>"
        '<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|>'
        "<|tool_call_begin|>functions.ping:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
        [_PARIS, _PING],
        content="Wait.",
        reasoning="Two calls",
        ids=["functions.get_weather:0", "functions.ping:1"],
    ),
    Sample(
        "Kimi K3",
        "I should call it<|close|>think<|sep|><|open|>response<|sep|>On it.<|close|>response<|sep|>"
        f"<|open|>tools<|sep|>{_K3_CALL}"
        '<|open|>call tool="typed" index="2"<|sep|><|open|>argument key="count" type="number"<|sep|>2'
        '<|close|>argument<|sep|><|open|>argument key="maybe" type="null"<|sep|>null<|close|>argument<|sep|>'
        "<|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>",
        [_PARIS, ("typed", {"count": 2, "maybe": None})],
        content="On it.",
        reasoning="I should call it",
        start=ReasoningStart.OPEN,
    ),
    Sample(
        "Kimi K3",
        "Use the response tag, then message the handler.<|close|>response<|sep|><|close|>message<|sep|>",
        content="Use the response tag, then message the handler.",
        start=ReasoningStart.NEVER,
    ),
    Sample(
        "Kimi K3",
        '<|open|>response<|sep|><|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool="get_weather" index="1"'
        '<|sep|><|open|>json type="object"<|sep|>{"city": "Paris"}<|close|>json<|sep|><|close|>call<|sep|>'
        "<|close|>tools<|sep|><|close|>message<|sep|>",
        [_PARIS],
    ),
    Sample(
        "GLM",
        "\n<think>Look.</think>\nChecking.\n<tool_call>typed\n<arg_key>count</arg_key>\n<arg_value>3</arg_value>\n"
        "<arg_key>maybe</arg_key>\n<arg_value>5 </think> and <tool_call></arg_value>\n"
        '<arg_key>config</arg_key>\n<arg_value>{"a": "</arg_value>"}</arg_value>\n</tool_call>\n'
        "<tool_call>ping\n</tool_call>",
        [("typed", {"count": 3, "maybe": "5 </think> and <tool_call>", "config": {"a": "</arg_value>"}}), _PING],
        content="Checking.",
        reasoning="Look.",
    ),
    Sample(
        "GLM, without line breaks",
        "</think><tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>"
        "<tool_call>ping</tool_call>",
        [_PARIS, _PING],
    ),
    Sample(
        "Ling",
        "Let me see.\n</think>\nChecking it now.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
        "<arg_value>Paris</arg_value>\n</tool_call>\nThat was it.",
        [_PARIS],
        content="Checking it now.That was it.",
        reasoning="Let me see.",
        start=ReasoningStart.OPEN,
    ),
    Sample(
        "Hunyuan",
        "<think:opensource>Look.</think:opensource><tool_calls:opensource>\n"
        "<tool_call:opensource>get_weather<tool_sep:opensource>\n<arg_key:opensource>city</arg_key:opensource>\n"
        "<arg_value:opensource>Paris</arg_value:opensource>\n</tool_call:opensource>\n"
        "<tool_call:opensource>ping<tool_sep:opensource>\n</tool_call:opensource>\n</tool_calls:opensource>",
        [_PARIS, _PING],
        reasoning="Look.",
    ),
    Sample(
        "MiniMax M1",
        '<tool_calls>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n{"name": "ping", "arguments": {}}\n'
        "</tool_calls>",
        [_PARIS, _PING],
    ),
    Sample(
        "MiniMax M2",
        'Let\'s call a tool:\n</think>\n\n<minimax:tool_call>\n<invoke name="typed">\n'
        '<parameter name="ratio">3.14</parameter>\n<parameter name="on">true</parameter>\n</invoke>\n'
        '<invoke name="ping">\n</invoke>\n</minimax:tool_call>',
        [("typed", {"ratio": 3.14, "on": True}), _PING],
        reasoning="Let's call a tool:",
        start=ReasoningStart.OPEN,
    ),
    Sample(
        "MiniMax M3",
        f'<mm:think>Nested</mm:think>{_NS}<tool_call>\n{_NS}<invoke name="book-trip_2">{_NS}<class>first{_NS}</class>'
        f"{_NS}<legs>{_NS}<item>{_NS}<to>Rome{_NS}</to>{_NS}<km>1.5{_NS}</km>{_NS}</item>{_NS}</legs>"
        f'{_NS}<note>hi{_NS}</note>{_NS}</invoke>\n{_NS}<invoke name="typed">{_NS}<tags>{_NS}<item>7{_NS}</item>'
        f"{_NS}<item>b{_NS}</item>{_NS}</tags>{_NS}<config>{_NS}<theme>dark{_NS}</theme>{_NS}<level>2{_NS}</level>"
        f"{_NS}</config>{_NS}</invoke>\n{_NS}</tool_call>",
        [
            ("book-trip_2", {"class": "first", "legs": [{"to": "Rome", "km": 1.5}], "note": "hi"}),
            ("typed", {"tags": ["7", "b"], "config": {"theme": "dark", "level": 2}}),
        ],
        reasoning="Nested",
    ),
    Sample("MiniMax M3", "</mm:think>Hello.", content="Hello."),
    Sample(
        "Gemma 4",
        '<|channel>thought\nI\'m\nthinking<channel|>Wait.<|tool_call>call:get_weather{city:<|"|>Paris<|"|>}<tool_call|>'
        "<|tool_call>call:ping{}<tool_call|>",
        [_PARIS, _PING],
        content="Wait.",
        reasoning="I'm\nthinking",
    ),
    Sample(
        "Gemma 4",
        '<|tool_call>call:typed{config:{theme:<|"|>a "b" {<|"|>,count:3,none:null},on:false,ratio:-1.5e10,'
        'tags:[<|"|>x<|"|>,<|"|>y<|"|>]}<tool_call|>',
        [
            (
                "typed",
                {
                    "config": {"theme": 'a "b" {', "count": 3, "none": None},
                    "on": False,
                    "ratio": -1.5e10,
                    "tags": ["x", "y"],
                },
            )
        ],
    ),
    Sample(
        "Gemma 4",
        "<|channel>thought\n<channel|>Hello, world!\nWhat's up?<|channel>thought\n<channel|><channel|>",
        content="Hello, world!\nWhat's up?",
    ),
    Sample(
        "LFM2",
        'Let me check.<|tool_call_start|>[get_weather(city="Paris"), typed(count=1, on=True, maybe=None, '
        "tags=['a', 'b'], config={\"on\": true, 'n': (1, 2)}), ping()]<|tool_call_end|>",
        [
            _PARIS,
            ("typed", {"count": 1, "on": True, "maybe": None, "tags": ["a", "b"], "config": {"on": True, "n": [1, 2]}}),
            _PING,
        ],
        content="Let me check.",
    ),
    Sample(
        "LFM2",
        '<|tool_call_start|>[python(code="def f():\\n\\tprint(\'it\\\'s\', \\"é\\u00e9\\", \\d)")]<|tool_call_end|>',
        [("python", {"code": "def f():\n\tprint('it's', \"éé\", \\d)"})],
    ),
    Sample(
        "LFM2",
        '<|tool_call_start|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]<|tool_call_end|>',
        [_PARIS],
    ),
    Sample("LFM2", "See [the text](url).", content="See [the text](url)."),
    Sample(
        "Nemotron Nano 2",
        'I am\nthinking\n</think>\n\n<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris"}}, '
        '{"name": "ping", "arguments": {}}]</TOOLCALL>\n',
        [_PARIS, _PING],
        reasoning="I am\nthinking",
        start=ReasoningStart.OPEN,
    ),
    Sample(
        "Apriel",
        "Here are my reasoning steps:\nHmm.\n[BEGIN FINAL RESPONSE]\nWait.\n"
        '<tool_calls>[{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "1"}]</tool_calls>\n'
        "[END FINAL RESPONSE]",
        [_PARIS],
        content="Wait.",
        reasoning="Hmm.",
    ),
    Sample(
        "Seed-OSS",
        "<seed:think>Hmm.</seed:think>\n<seed:tool_call>\n<function=typed>\n"
        "<parameter=tags>['x', \"y's\"]</parameter>\n<parameter=on>True</parameter>\n</function>\n</seed:tool_call>",
        [("typed", {"tags": ["x", "y's"], "on": True})],
        reasoning="Hmm.",
    ),
    Sample(
        "MiniCPM",
        '<think>\nHmm.\n</think>\n\n<function name="python"><param name="code"><![CDATA[<a> & </param>\n]]></param>'
        '</function>\n<function name="typed"><param name="count">3</param></function>',
        [("python", {"code": "<a> & </param>\n"}), ("typed", {"count": 3})],
        reasoning="Hmm.",
    ),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda each: each.format)
def test_published_samples_are_read_however_they_are_cut(sample: Sample) -> None:
    plan = AnswerPlan(_ALL_TOOLS, reasoning=sample.start)
    answer = parse_however_cut(_BY_NAME[sample.format], plan, sample.text)
    assert answer.decoded_calls == list(sample.calls)
    assert answer.num_complete == len(sample.calls)
    assert (answer.content, answer.reasoning) == (sample.content, sample.reasoning)
    if sample.ids is not None:
        assert answer.call_ids == sample.ids


@pytest.mark.parametrize("answer_format", FORMATS, ids=lambda each: each.name)
class TestWhatIsNoCall:
    def test_a_call_that_is_cut_off_stays_incomplete(self, answer_format: AnswerFormat) -> None:
        text = answer_format.example
        whole = parse(answer_format, AnswerPlan(TOOLS), [text])
        assert whole.decoded_calls == [_PARIS]
        value = text.index("Paris")
        answer = parse(answer_format, AnswerPlan(TOOLS), [text[: value + 3]])
        assert (answer.num_complete, [name for name, _ in answer.calls]) == (0, ["get_weather"])

    def test_what_begins_like_a_call_and_is_none_is_content(self, answer_format: AnswerFormat) -> None:
        text = answer_format.example
        begin = text[: text.index("get_weather")]
        for garbage in ("", "\x00 <", '"<'):
            answer = parse_however_cut(answer_format, AnswerPlan(TOOLS), "So: " + begin + garbage)
            assert answer.calls == []
            assert answer.content.startswith("So:")

    def test_without_tools_everything_is_said(self, answer_format: AnswerFormat) -> None:
        answer = parse_however_cut(answer_format, AnswerPlan(), answer_format.example)
        assert (answer.calls, "Paris" in answer.content) == ([], True)


_HARD: Sequence[Mapping[str, Any]] = [
    {},
    {"type": "object", "required": ["undescribed"]},
    {"type": "object", "properties": {"a": True, "b": False}},
    {"type": "object", "properties": {'a"b': {"type": "string"}, "c>d": {"type": "integer"}}},
    {"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"type": "object", "properties": {"none": {"type": "array", "items": {}, "maxItems": 0}}},
    {"type": "object", "properties": {f"p{i}": {"enum": [f"v{j}" for j in range(20)]} for i in range(100)}},
    {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/x"}},
        "$defs": {
            "x": {"anyOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}]},
            "y": {"type": "object", "properties": {f"k{i}": {"$ref": "#/$defs/y"} for i in range(10)}},
        },
    },
]


@pytest.mark.parametrize("answer_format", FORMATS, ids=lambda each: each.name)
def test_a_hard_schema_is_enforced_or_refused(answer_format: AnswerFormat) -> None:
    num_enforced = 0
    for parameters in _HARD:
        plan = AnswerPlan((Tool("f", None, parameters),), must_call=True)
        try:
            grammar = answer_format.grammar(plan, lambda _: None)
        except InvalidRequest:
            continue
        assert grammar is not None
        is_wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, None)
        assert not is_wrong, (parameters, messages)
        num_enforced += 1
    assert num_enforced >= len(_HARD) - 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Gemma 4", "<|tool_call>call:typed{tags:" + "[" * 5000),
        ("LFM2", "<|tool_call_start|>[typed(tags=" + "[" * 5000),
        ("MiniMax M3", f'{_NS}<tool_call>{_NS}<invoke name="typed">' + f"{_NS}<config>" * 3000),
        ("GLM", "<tool_call>typed<arg_key>tags</arg_key><arg_value>" + "[" * 50_000 + "</arg_value></tool_call>"),
    ],
)
def test_values_nested_without_end_leave_a_call_incomplete(name: str, text: str) -> None:
    answer = parse(_BY_NAME[name], AnswerPlan(_ALL_TOOLS), [text])
    assert (answer.num_complete, [called for called, _ in answer.calls]) == (0, ["typed"])


@dataclass(frozen=True)
class Published:
    """What is expected of a template, and what it can show."""

    format: str
    closing: str | None = "</think>"
    keeps_calls: bool = True
    keeps_content_of_calls: bool = True
    variables: Mapping[str, object] = field(default_factory=dict)
    arguments_are_text: bool = False
    most_calls: int = 9
    closes_thinking_before_text: bool = True


_PUBLISHED = {
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": Published(
        "DeepSeek R1", arguments_are_text=True, keeps_content_of_calls=False, most_calls=2
    ),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": Published("DeepSeek R1", keeps_content_of_calls=False),
    "llama-cpp-deepseek-r1": Published("DeepSeek R1", keeps_content_of_calls=False),
    "deepseek-ai-DeepSeek-V3.1": Published("DeepSeek 3.1"),
    "deepseek-ai-DeepSeek-V3.2": Published("DeepSeek 3.2", variables={"thinking": True}),
    "deepseek-ai-DeepSeek-V4": Published("DeepSeek 4", variables={"thinking": True}),
    "deepseek-ai-DeepSeek-V4-Flash-0731": Published("DeepSeek 4"),
    "Kimi-K2-Instruct": Published("Kimi K2", None),
    "moonshotai-Kimi-K2": Published("Kimi K2", None),
    "Kimi-K2-Thinking": Published("Kimi K2"),
    "Kimi-K3": Published("Kimi K3", "<|close|>think<|sep|>"),
    "GLM-4.6": Published("GLM"),
    "GLM-4.7-Flash": Published("GLM, without line breaks"),
    "Spark2.5": Published("GLM, without line breaks"),
    "poolside-Laguna-S-2.1": Published("GLM, without line breaks"),
    "poolside-Laguna-XS-2.1": Published("GLM"),
    "poolside-Laguna-XS.2": Published("GLM"),
    "inclusionai-ling-3.0-flash": Published("Ling"),
    "tencent-Hy3": Published("Hunyuan", "</think:opensource>"),
    "MiniMax-M1": Published("MiniMax M1", None, keeps_content_of_calls=False),
    "MiniMax-M2": Published("MiniMax M2"),
    "MiniMax-M3": Published("MiniMax M3", "</mm:think>"),
    "google-gemma-4-31B-it": Published("Gemma 4", "<channel|>"),
    "google-gemma-4-31B-it-interleaved": Published("Gemma 4", "<channel|>"),
    "google-gemma-2-2b-it": Published("Hermes", None, keeps_calls=False),
    "LFM2-8B-A1B": Published("LFM2", None, keeps_calls=False),
    "LFM2.5-Instruct": Published("LFM2", keeps_calls=False),
    "LFM2.5-8B-A1B": Published("LFM2"),
    "NVIDIA-Nemotron-Nano-v2": Published(
        "Nemotron Nano 2", keeps_content_of_calls=False, closes_thinking_before_text=False
    ),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": Published("Qwen3-Coder"),
    "StepFun3.5-Flash": Published("Qwen3-Coder"),
    "Qwen3.5-4B": Published("Qwen3-Coder"),
    "Qwen3-Coder": Published("Qwen3-Coder", None),
    "ByteDance-Seed-OSS": Published("Seed-OSS", "</seed:think>"),
    "Apriel-1.6-15b-Thinker-fixed": Published("Apriel", "[BEGIN FINAL RESPONSE]"),
    "unsloth-Apriel-1.5": Published("Apriel", "[BEGIN FINAL RESPONSE]"),
    "openbmb-MiniCPM5-1B": Published("MiniCPM"),
    "Qwen-QwQ-32B": Published("Hermes"),
    "Qwen-Qwen2.5-7B-Instruct": Published("Hermes", None),
    "Qwen-Qwen3-0.6B": Published("Hermes"),
    "MiMo-VL": Published("Hermes", None),
    "Reka-Edge": Published("Hermes"),
    "llama-cpp-rwkv-world": Published("Hermes", keeps_calls=False),
}
_TURN_ENDS = re.compile(
    r"<\|im_end\|>|<｜end▁of▁sentence｜>|<EOS>|<end_of_turn>|<turn\|>|<\|tool_response>|\[e~\[|<end_of_sentence>|"
    r"</assistant>|<\|role_end\|>|<seed:eos>|\n<\|end\|>|<SPECIAL_12>|<｜hy_eos:opensource｜>|<\|end_of_msg\|>|<sep>"
)
_SHORT: Calls = [_PARIS]
_LONG: Calls = [
    (WEATHER.name, {"city": 'São "Paulo"\n<b> & so', "days": 3}),
    (NESTED.name, {"class": "second", "legs": [{"to": "A\\b", "km": 1.5}, {"to": ""}], "note": "no", "code": "AB1"}),
    _PING,
    ("typed", {"on": True, "tags": ["x, y", "null"], "maybe": "it is 5", "config": {"a": [1, {"b": "c"}]}}),
]


class PublishedTemplate:
    def __init__(self, name: str) -> None:
        path = _TEMPLATES / f"{name}.jinja"
        if not path.exists():
            pytest.skip("the collection of published templates is not part of the project")
        self.expected = _PUBLISHED[name]
        self.source = path.read_text(encoding="utf-8")
        environment = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        environment.filters["tojson"] = lambda value, indent=None, **_: json.dumps(
            value, ensure_ascii=False, indent=indent, default=list
        )
        self._template = environment.from_string(self.source)

    def render(self, messages: Sequence[Mapping[str, Any]], *, prompts: bool, **variables: object) -> str:
        tools = [
            {
                "type": "function",
                "function": {"name": each.name, "description": "", "parameters": dict(each.parameters)},
            }
            for each in _ALL_TOOLS
        ]
        variables = {"bos_token": "<BOS>", "eos_token": "<EOS>", **self.expected.variables, **variables}
        return self._template.render(messages=messages, tools=tools, add_generation_prompt=prompts, **variables)

    def assistant(self, calls: Calls, content: str, reasoning: str) -> dict[str, Any]:
        def arguments(value: Mapping[str, object]) -> object:
            return json.dumps(value) if self.expected.arguments_are_text else value

        message: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = [
                {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments(value)}}
                for i, (name, value) in enumerate(calls)
            ]
        if not content and calls and self.expected.arguments_are_text:
            message["content"] = None
        if reasoning:
            message |= {"reasoning_content": reasoning, "thinking": reasoning}
        return message


class _Generation(jinja2.ext.Extension):
    tags = {"generation"}  # noqa: RUF012 -- the base class declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache
def _published(name: str) -> PublishedTemplate:
    return PublishedTemplate(name)


def _without_thinking(prompt: str, answer_format: AnswerFormat) -> str:
    """Cut from a prompt what its end says of thinking: an answer in a history has that itself."""
    tags = r"<\|open\|>think<\|sep\|>|<\|channel>thought\n<channel\|>|Here are my reasoning steps:\n"
    tags += r"|<(seed:|mm:)?think(:opensource)?>|</(mm:)?think(:opensource)?>"
    return re.sub(rf"(({tags})\s*)+$", "", prompt) if answer_format.thinking_end else prompt


@pytest.mark.parametrize("name", _PUBLISHED)
def test_what_a_published_template_makes_of_an_answer_is_read_as_that(name: str) -> None:
    template = _published(name)
    expected, answer_format = template.expected, choose_format(template.source)
    assert (answer_format.name, answer_format.thinking_end) == (expected.format, expected.closing)
    user = {"role": "user", "content": "Hi"}
    header = _without_thinking(template.render([user], prompts=True), answer_format)
    opening = "Here are my reasoning steps:\n" if expected.format == "Apriel" else ""
    for calls, content, reasoning in (
        (_SHORT, "", ""),
        (_LONG[: expected.most_calls], "", opening + "Hmm."),
        (_SHORT, "Wait.", opening + "Hmm."),
        ((), "Wait.", opening + "Hmm."),
    ):
        if calls and not (expected.keeps_calls and (expected.keeps_content_of_calls or not content)):
            continue
        if not calls and not expected.closes_thinking_before_text:
            continue
        text = template.render([user, template.assistant(calls, content, reasoning)], prompts=False)
        assert text.startswith(header)
        text = _TURN_ENDS.split(text[len(header) :])[0]
        plan = AnswerPlan(_ALL_TOOLS, reasoning=ReasoningStart.POSSIBLE if expected.closing else ReasoningStart.NEVER)
        pieces = [text[begin : begin + 3] for begin in range(0, len(text), 3)]
        answer = parse_however_cut(answer_format, plan, text) if calls is _SHORT else parse(answer_format, plan, pieces)
        assert answer.decoded_calls == list(calls), text
        assert answer.num_complete == len(calls)
        assert answer.content.strip() == content, text
        assert answer.reasoning == ("Hmm." if "Hmm." in text else ""), text


@pytest.mark.parametrize(
    ("name", "variables", "start"),
    [
        ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", {}, ReasoningStart.OPEN),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", {"enable_thinking": False}, ReasoningStart.NEVER),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", {"enable_thinking": True}, ReasoningStart.OPEN),
        ("deepseek-ai-DeepSeek-V3.1", {}, ReasoningStart.NEVER),
        ("deepseek-ai-DeepSeek-V3.1", {"thinking": True}, ReasoningStart.OPEN),
        ("deepseek-ai-DeepSeek-V4", {"thinking": False}, ReasoningStart.NEVER),
        ("Kimi-K2-Thinking", {}, ReasoningStart.POSSIBLE),
        ("Kimi-K3", {}, ReasoningStart.OPEN),
        ("Kimi-K3", {"thinking": False}, ReasoningStart.NEVER),
        ("GLM-4.6", {}, ReasoningStart.POSSIBLE),
        ("GLM-4.6", {"enable_thinking": False}, ReasoningStart.NEVER),
        ("GLM-4.7-Flash", {}, ReasoningStart.OPEN),
        ("poolside-Laguna-XS-2.1", {}, ReasoningStart.NEVER),
        ("inclusionai-ling-3.0-flash", {}, ReasoningStart.OPEN),
        ("tencent-Hy3", {}, ReasoningStart.NEVER),
        ("tencent-Hy3", {"reasoning_effort": "high"}, ReasoningStart.OPEN),
        ("MiniMax-M2", {}, ReasoningStart.OPEN),
        ("MiniMax-M3", {}, ReasoningStart.POSSIBLE),
        ("MiniMax-M3", {"thinking_mode": "disabled"}, ReasoningStart.NEVER),
        ("MiniMax-M3", {"thinking_mode": "enabled"}, ReasoningStart.OPEN),
        ("google-gemma-4-31B-it", {}, ReasoningStart.NEVER),
        ("google-gemma-4-31B-it", {"enable_thinking": True}, ReasoningStart.POSSIBLE),
        ("google-gemma-2-2b-it", {}, ReasoningStart.NEVER),
        ("LFM2.5-8B-A1B", {}, ReasoningStart.POSSIBLE),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {"enable_thinking": False}, ReasoningStart.NEVER),
        ("ByteDance-Seed-OSS", {}, ReasoningStart.POSSIBLE),
        ("Apriel-1.6-15b-Thinker-fixed", {}, ReasoningStart.OPEN),
        ("unsloth-Apriel-1.5", {}, ReasoningStart.POSSIBLE),
        ("openbmb-MiniCPM5-1B", {"enable_thinking": True}, ReasoningStart.OPEN),
        ("Reka-Edge", {"enable_thinking": True}, ReasoningStart.OPEN),
        ("llama-cpp-rwkv-world", {"enable_thinking": True}, ReasoningStart.OPEN),
    ],
)
def test_the_end_of_a_prompt_tells_whether_the_answer_begins_with_thinking(
    name: str, variables: Mapping[str, object], start: ReasoningStart
) -> None:
    template = _published(name)
    prompt = template.render([{"role": "user", "content": "Hi"}], prompts=True, **variables)
    assert choose_format(template.source).reasoning_start(prompt) is start


@pytest.mark.parametrize("name", [each for each in _PUBLISHED if each != "google-gemma-2-2b-it"])
def test_a_published_template_takes_results(name: str) -> None:
    template = _published(name)
    results = [
        {"role": "tool", "tool_call_id": f"c{i}", "name": called, "content": f"result {i}"}
        for i, (called, _) in enumerate(_LONG)
    ]
    user = {"role": "user", "content": "Hi"}
    prompt = template.render([user, template.assistant(_LONG, "", ""), *results], prompts=True)
    assert template.expected.format == "Hermes" or all(f"result {i}" in prompt for i in range(len(_LONG)))
