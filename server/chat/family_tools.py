"""Functions and calls in the words of a family whose chat template leaves out a part of them.

Some templates show tools and results, and of what the assistant says nothing but its content: what the model wrote as
its call is put there again. Others show calls and results, and leave it to the system message to tell of functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from server.chat.generic_tools import CallText, GenericTools, ToolTexts, demand
from server.core.request import ToolChoice


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


class DeepSeekTools(GenericTools):
    """DeepSeek 3 and R1, whose templates show calls and results; the functions are the system message's business.

    https://huggingface.co/deepseek-ai/DeepSeek-V3.1#toolcall
    """

    is_native = True

    def __init__(self, call: str) -> None:
        """Describe calls by an example of one, without the tokens around all of them."""
        self._call = call

    def instruction(self, tools: Sequence[object], choice: ToolChoice, *, is_parallel: bool) -> str:
        """Describe functions and how they are called, and say so if one has to be called now."""
        described = "\n\n".join(_described(tool) for tool in tools)
        more = "{additional_tool_calls}" if is_parallel else ""
        lines = [
            f"## Tools\nYou have access to the following tools:\n\n{described}\n",
            "IMPORTANT: ALWAYS adhere to this exact format for tool use:",
            f"<｜tool▁calls▁begin｜>{self._call}{more}<｜tool▁calls▁end｜>\n",
            "Where:",
            "- `tool_call_name` must be an exact match to one of the available tools",
            "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema",
            "- For multiple tool calls, chain them directly without separators or spaces" if is_parallel else "",
            demand(choice),
        ]
        return "\n".join(filter(None, lines))


_DEEPSEEK_CALL = "<｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>"
_DEEPSEEK_R1_CALL = (
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>tool_call_name\n```json\ntool_call_arguments\n```<｜tool▁call▁end｜>"
)


def tool_texts(template: str) -> ToolTexts:
    """Return how calls are put into words for a model with this template."""
    if "<|tool_list_start|>" in template or "List of tools: [" in template:
        return LiquidTools()
    if "<|start_of_role|>" in template and "<|tool_call|>" in template:
        return GraniteTools()
    if "<｜tool▁calls▁begin｜>" in template:
        return DeepSeekTools(_DEEPSEEK_R1_CALL if "```" in template else _DEEPSEEK_CALL)
    return GenericTools()


def _described(tool: object) -> str:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    about: Mapping[str, object] = function if isinstance(function, Mapping) else {}
    parameters = json.dumps(about.get("parameters"), ensure_ascii=False)
    return f"### {about.get('name')}\nDescription: {about.get('description') or ''}\n\nParameters: {parameters}"


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
