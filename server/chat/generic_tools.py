"""How a model calls functions whose chat template says nothing of them: a protocol in words, put into the prompt.

It is the one that Hermes models brought up, so that many others have seen it in training, too:
https://github.com/NousResearch/Hermes-Function-Calling
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.core.request import ToolChoice, ToolChoiceMode

CALL_OPENING, CALL_CLOSING = "<tool_call>\n", "\n</tool_call>"
RESULT_OPENING, RESULT_CLOSING = "<tool_response>\n", "\n</tool_response>"


@dataclass(frozen=True, slots=True)
class CallText:
    """A call that an assistant made."""

    name: str
    arguments: Mapping[str, object]


class ToolTexts(Protocol):
    """What a prompt says of tools, calls and results where the template does not."""

    @property
    def is_native(self) -> bool:
        """Whether these are the words of the model's own family, beside which the template's own calls make sense."""
        ...

    def instruction(self, tools: Sequence[object], choice: ToolChoice, *, is_parallel: bool) -> str:
        """Describe functions, as OpenAI's ``tools`` has them, and how they are called; for the system's message."""
        ...

    def calls(self, calls: Sequence[CallText]) -> str:
        """Write calls as the assistant would have written them."""
        ...

    def result(self, name: str, content: str) -> str:
        """Write what a function returned, for a user's message."""
        ...


class GenericTools:
    """The protocol for models of no known family."""

    is_native = False

    def instruction(self, tools: Sequence[object], choice: ToolChoice, *, is_parallel: bool) -> str:
        """Describe functions and how they are called, and say so if one has to be called now."""
        lines = [
            "You can call functions. These are there, with JSON schemas of their arguments:",
            "<tools>",
            *(json.dumps(tool, ensure_ascii=False) for tool in tools),
            "</tools>",
            "To call a function, answer with nothing but its name and arguments, as JSON within these tags:",
            f'{CALL_OPENING}{{"name": "<function name>", "arguments": {{<arguments>}}}}{CALL_CLOSING}',
            "For several calls, write several of these blocks, one after the other."
            if is_parallel
            else "Make one call at a time.",
            "What the functions return comes in <tool_response> tags in the next message.",
            demand(choice),
        ]
        return "\n".join(filter(None, lines))

    def calls(self, calls: Sequence[CallText]) -> str:
        """Write calls, each in its tags."""
        return "\n".join(
            CALL_OPENING
            + json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
            + CALL_CLOSING
            for call in calls
        )

    def result(self, name: str, content: str) -> str:  # noqa: ARG002 -- results follow in the order of the calls
        """Write a result in its tags."""
        return RESULT_OPENING + content + RESULT_CLOSING


def demand(choice: ToolChoice) -> str:
    """Say in words what has to be called now."""
    if choice.mode is ToolChoiceMode.NONE:
        return "Do not call any of them now."
    if choice.mode is ToolChoiceMode.AUTO:
        return "Where no function is of use, answer as usual."
    if choice.name is None:
        return "You must call at least one of them now."
    return f"You must call the function {json.dumps(choice.name, ensure_ascii=False)} now."
