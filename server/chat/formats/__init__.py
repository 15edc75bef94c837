"""How families of models call functions and think: one module each, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.chat.answer_format import AnswerFormat
from server.chat.formats import argument_keys
from server.chat.formats.apertus import ApertusCalls
from server.chat.formats.argument_keys import ARGUMENT_KEY_CALLS, HUNYUAN_CALLS, HUNYUAN_SUFFIX
from server.chat.formats.command_r import CommandRFormat
from server.chat.formats.deepseek import DEEPSEEK_CALLS, DEEPSEEK_R1_CALLS
from server.chat.formats.functionary import FunctionaryFormat, FunctionaryTagCalls
from server.chat.formats.gemma import GEMMA_THINKING, GemmaCalls
from server.chat.formats.gigachat import GigaChat31Format, GigaChatFormat
from server.chat.formats.harmony import HarmonyFormat
from server.chat.formats.hermes import HermesCalls
from server.chat.formats.invoke import INVOKE_CALLS
from server.chat.formats.json_lists import (
    APRIEL_CALLS,
    COMMAND_R7B_CALLS,
    FUNCTOOLS_CALLS,
    GRANITE_CALLS,
    MINIMAX_M1_CALLS,
    NEMOTRON_CALLS,
    PHI_CALLS,
)
from server.chat.formats.kimi import KimiCalls
from server.chat.formats.kimi_k3 import KimiK3Format
from server.chat.formats.llama import LlamaFormat
from server.chat.formats.minicpm import MiniCpmCalls
from server.chat.formats.minimax_m3 import MINIMAX_M3_THINKING, MiniMaxM3Calls
from server.chat.formats.mistral import MistralCalls, MistralCallsWithIds, MistralListCalls
from server.chat.formats.muse import MuseFormat
from server.chat.formats.pythonic import PythonicCalls
from server.chat.formats.qwen_coder import QwenCoderCalls
from server.chat.formats.solar import SolarFormat
from server.chat.tagged import CallSyntax, SpeechTags, TaggedFormat, ThinkingTags

Recognizer = Callable[[str], AnswerFormat | CallSyntax | None]
"""Looks at the text of a chat template: a whole format, a way to call (thinking is found apart), or neither."""


def _by_signs(found: AnswerFormat | CallSyntax, *signs: str) -> Recognizer:
    """Recognize a template that holds all of some texts."""
    return lambda template: found if all(sign in template for sign in signs) else None


_THINK = ThinkingTags("<think>", "</think>")
_SEED_THINKING = ThinkingTags("<seed:think>", "</seed:think>")
_HUNYUAN_THINKING = ThinkingTags(f"<think{HUNYUAN_SUFFIX}>", f"</think{HUNYUAN_SUFFIX}>")
_APRIEL_THINKING = ThinkingTags(
    "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", unsaid=("[END FINAL RESPONSE]",)
)
_SEED_CALLS = QwenCoderCalls("Seed-OSS", ("Seed-OSS",), "<seed:tool_call>", "</seed:tool_call>", around_value="")
_MINIMAX_M2_CALLS, _DEEPSEEK_32_CALLS, _DEEPSEEK_4_CALLS = INVOKE_CALLS
_MISTRAL_THINKING = ThinkingTags("[THINK]", "[/THINK]")
_APERTUS_THINKING = ThinkingTags("<|inner_prefix|>", "<|inner_suffix|>", is_ended_by_calls=True)
_COHERE_THINKING = ThinkingTags("<|START_THINKING|>", "<|END_THINKING|>", is_ended_by_calls=True)
_COHERE_RESPONSE = SpeechTags("<|START_RESPONSE|>", "<|END_RESPONSE|>")
_COHERE_TEXT = SpeechTags("<|START_TEXT|>", "<|END_TEXT|>")
_GRANITE_RESPONSE = SpeechTags("<response>", "</response>")

# The first that says yes: from the particular to the general.
_RECOGNIZERS: Sequence[Recognizer] = (
    lambda template: KimiK3Format() if "<|open|>" in template and "<|end_of_msg|>" in template else None,
    _by_signs(KimiCalls(), "<|tool_calls_section_begin|>"),
    _by_signs(GemmaCalls(), "<|tool_call>call:"),
    _by_signs(_DEEPSEEK_32_CALLS, "DSML", "function_calls"),
    _by_signs(_DEEPSEEK_4_CALLS, "DSML", "tool_calls"),
    _by_signs(DEEPSEEK_R1_CALLS, "<｜tool▁calls▁begin｜>", "```"),
    _by_signs(DEEPSEEK_CALLS, "<｜tool▁calls▁begin｜>"),
    _by_signs(MiniMaxM3Calls(), "]<]minimax[>["),
    _by_signs(_MINIMAX_M2_CALLS, "<minimax:tool_call>"),
    _by_signs(MINIMAX_M1_CALLS, "<tool_calls>", "<beginning_of_sentence>"),
    _by_signs(APRIEL_CALLS, "<tool_calls>["),
    _by_signs(NEMOTRON_CALLS, "<TOOLCALL>"),
    _by_signs(PythonicCalls(), "<|tool_list_start|>"),
    _by_signs(PythonicCalls(), "<|tool_call_start|>"),
    _by_signs(PythonicCalls(), "List of tools: ["),
    _by_signs(MiniCpmCalls(), '<function name="', '<param name="'),
    _by_signs(_SEED_CALLS, "<seed:tool_call>"),
    argument_keys.recognize,
    _by_signs(HarmonyFormat(), "<|channel|>", "<|message|>"),
    _by_signs(MuseFormat(), "<atem:function_calls>", "<|eom|>"),
    _by_signs(SolarFormat(), "<|tool_calls|>", "<|tool_call:begin|>"),
    _by_signs(FunctionaryFormat(), ">>>all", ">>>${recipient}"),
    _by_signs(GigaChat31Format(), "<|role_sep|>", "<|function_call|>"),
    _by_signs(GigaChatFormat(), "<|role_sep|>", "function call"),
    _by_signs(TaggedFormat(COMMAND_R7B_CALLS, _COHERE_THINKING, _COHERE_TEXT), "<|START_ACTION|>", "<|START_TEXT|>"),
    _by_signs(TaggedFormat(COMMAND_R7B_CALLS, _COHERE_THINKING, _COHERE_RESPONSE), "<|START_ACTION|>"),
    _by_signs(CommandRFormat(), "Action:", "```json", '"tool_name"'),
    _by_signs(TaggedFormat(GRANITE_CALLS, _THINK, _GRANITE_RESPONSE), "<|tool_call|>", "<|start_of_role|>"),
    _by_signs(PHI_CALLS, "<|tool|>", "<|/tool|>"),
    _by_signs(FUNCTOOLS_CALLS, "functools["),
    _by_signs(ApertusCalls(), "<|tools_prefix|>", "<|tools_suffix|>"),
    _by_signs(MistralCallsWithIds(), "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    _by_signs(MistralCalls(), "[TOOL_CALLS]", "[ARGS]"),
    _by_signs(MistralListCalls(), "[TOOL_CALLS]"),
    _by_signs(FunctionaryTagCalls(), "'<function='", "</function>", "<|start_header_id|>"),
    _by_signs(LlamaFormat(), '\'{"name": "\'', "'\"parameters\": '", "<|start_header_id|>"),
    _by_signs(QwenCoderCalls(), "<tool_call>", "<function=", "<parameter="),
    _by_signs(HermesCalls(), "<tool_call>"),
)

FORMATS: Sequence[AnswerFormat] = (
    *(
        TaggedFormat(calls, _THINK)
        for calls in (
            HermesCalls(),
            QwenCoderCalls(),
            KimiCalls(),
            DEEPSEEK_CALLS,
            DEEPSEEK_R1_CALLS,
            *INVOKE_CALLS,
            *ARGUMENT_KEY_CALLS,
            MINIMAX_M1_CALLS,
            NEMOTRON_CALLS,
            PythonicCalls(),
            MiniCpmCalls(),
        )
    ),
    TaggedFormat(_SEED_CALLS, _SEED_THINKING),
    TaggedFormat(HUNYUAN_CALLS, _HUNYUAN_THINKING),
    TaggedFormat(APRIEL_CALLS, _APRIEL_THINKING),
    TaggedFormat(MiniMaxM3Calls(), MINIMAX_M3_THINKING),
    TaggedFormat(GemmaCalls(), GEMMA_THINKING),
    KimiK3Format(),
    LlamaFormat(),
    TaggedFormat(MistralListCalls()),
    TaggedFormat(MistralCalls(), _MISTRAL_THINKING),
    TaggedFormat(MistralCallsWithIds()),
    HarmonyFormat(),
    TaggedFormat(FunctionaryTagCalls()),
    FunctionaryFormat(),
    TaggedFormat(FUNCTOOLS_CALLS),
    CommandRFormat(),
    TaggedFormat(COMMAND_R7B_CALLS, _COHERE_THINKING, _COHERE_RESPONSE),
    TaggedFormat(PHI_CALLS),
    TaggedFormat(GRANITE_CALLS, _THINK, _GRANITE_RESPONSE),
    TaggedFormat(ApertusCalls(), _APERTUS_THINKING),
    GigaChatFormat(),
    GigaChat31Format(),
    SolarFormat(),
    MuseFormat(),
)
"""One of each kind, for tests and documents."""

_THINKING = (
    _SEED_THINKING,
    MINIMAX_M3_THINKING,
    _APRIEL_THINKING,
    GEMMA_THINKING,
    _THINK,
    _MISTRAL_THINKING,
    _APERTUS_THINKING,
)


def choose_format(template: str) -> AnswerFormat:
    """Return how a model with this chat template answers; Hermes' way, which is widely known, if nothing tells."""
    found = next((found for each in _RECOGNIZERS if (found := each(template)) is not None), HermesCalls())
    if isinstance(found, AnswerFormat):
        return found
    return TaggedFormat(found, thinking_tags(template))


def generic_format(template: str) -> AnswerFormat:
    """Return how a model answers whose template has no words for functions: they are described to it in words."""
    return TaggedFormat(HermesCalls(), thinking_tags(template))


def thinking_tags(template: str) -> ThinkingTags | None:
    """Return the tags around thinking that a template knows of."""
    if HUNYUAN_SUFFIX in template:  # which the template puts into every tag
        return _HUNYUAN_THINKING
    return next((tags for tags in _THINKING if tags.closing in template or tags.opening in template), None)
