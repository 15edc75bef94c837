"""Calls in the words of a family whose chat template shows tools and results, but leaves out what the assistant called.

Such templates write an assistant's content and nothing else: what the model wrote as its call is put there again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from server.chat.generic_tools import CallText, GenericTools, ToolTexts


class LiquidTools(GenericTools):
    """LFM2: calls as in Python; https://huggingface.co/LiquidAI/LFM2-8B-A1B shows them."""

    is_native = True

    def calls(self, calls: Sequence[CallText]) -> str:
        """Write one list of calls."""
        return "<|tool_call_start|>[" + ", ".join(map(_python_call, calls)) + "]<|tool_call_end|>"


class GraniteTools(GenericTools):
    """Granite 3: calls as a list in JSON; the template itself tells the model so."""

    is_native = True

    def calls(self, calls: Sequence[CallText]) -> str:
        """Write one list of calls."""
        listed = [{"name": call.name, "arguments": call.arguments} for call in calls]
        return "<|tool_call|>" + json.dumps(listed, ensure_ascii=False)


def tool_texts(template: str) -> ToolTexts:
    """Return how calls are put into words for a model with this template."""
    if "<|tool_list_start|>" in template or "List of tools: [" in template:
        return LiquidTools()
    if "<|start_of_role|>" in template and "<|tool_call|>" in template:
        return GraniteTools()
    return GenericTools()


def _python_call(call: CallText) -> str:
    arguments = (f"{name}={_python(value)}" for name, value in call.arguments.items())
    return f"{call.name}({', '.join(arguments)})"


def _python(value: object) -> str:
    """Write a JSON value as in Python, with the quotes of JSON."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_python(name)}: {_python(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_python, value)) + "]"
    if value is None or isinstance(value, bool):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)
