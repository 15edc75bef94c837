"""How families of models call functions and think: one module each, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.chat.answer_format import AnswerFormat
from server.chat.formats import argument_keys
from server.chat.formats.argument_keys import ARGUMENT_KEY_CALLS, HUNYUAN_CALLS, HUNYUAN_SUFFIX
from server.chat.formats.deepseek import DEEPSEEK_CALLS, DEEPSEEK_R1_CALLS
from server.chat.formats.gemma import GEMMA_THINKING, GemmaCalls
from server.chat.formats.hermes import HermesCalls
from server.chat.formats.invoke import INVOKE_CALLS
from server.chat.formats.json_lists import APRIEL_CALLS, MINIMAX_M1_CALLS, NEMOTRON_CALLS
from server.chat.formats.kimi import KimiCalls
from server.chat.formats.kimi_k3 import KimiK3Format
from server.chat.formats.minicpm import MiniCpmCalls
from server.chat.formats.minimax_m3 import MINIMAX_M3_THINKING, MiniMaxM3Calls
from server.chat.formats.pythonic import PythonicCalls
from server.chat.formats.qwen_coder import QwenCoderCalls
from server.chat.tagged import CallSyntax, TaggedFormat, ThinkingTags

Recognizer = Callable[[str], AnswerFormat | CallSyntax | None]
"""Looks at the text of a chat template: a whole format, a way to call (thinking is found apart), or neither."""


def _by_signs(calls: CallSyntax, *signs: str) -> Recognizer:
    """Recognize a template that holds all of some texts."""
    return lambda template: calls if all(sign in template for sign in signs) else None


_THINK = ThinkingTags("<think>", "</think>")
_SEED_THINKING = ThinkingTags("<seed:think>", "</seed:think>")
_HUNYUAN_THINKING = ThinkingTags(f"<think{HUNYUAN_SUFFIX}>", f"</think{HUNYUAN_SUFFIX}>")
_APRIEL_THINKING = ThinkingTags(
    "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", unsaid=("[END FINAL RESPONSE]",)
)
_SEED_CALLS = QwenCoderCalls("Seed-OSS", ("Seed-OSS",), "<seed:tool_call>", "</seed:tool_call>", around_value="")
_MINIMAX_M2_CALLS, _DEEPSEEK_32_CALLS, _DEEPSEEK_4_CALLS = INVOKE_CALLS

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
)
"""One of each kind, for tests and documents."""

_THINKING = (_SEED_THINKING, MINIMAX_M3_THINKING, _APRIEL_THINKING, GEMMA_THINKING, _THINK)


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
