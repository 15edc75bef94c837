"""From what the model thinks, says and calls to the events of one choice, held to what the request demands. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from server.backends.ollama.answer_form import AnswerForm, check_arguments
from server.backends.ollama.forced_call import WrittenCall
from server.core.errors import InvalidOutput
from server.core.events import (
    ChoiceFinished,
    Event,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from server.core.request import ChatRequest, ReasoningOutput, ToolChoiceMode

_MAX_SHOWN = 100
# as most templates have them; the daemon does not say how the model marks its thinking
_THINKING_BEGINS, _THINKING_ENDS = "<think>", "</think>"


class AnswerEvents:
    """The events of one choice.

    ``num_reasoning`` and ``num_said`` count the pieces of thinking and of all that was written. The daemon sends each
    token in a piece of its own, but for those that make one character only together, and those that it holds back
    because they may begin a stop string or a call.
    """

    def __init__(self, request: ChatRequest, form: AnswerForm | None, reasoning: ReasoningOutput, index: int) -> None:
        """Take the request, the form of its text, what becomes of thinking, and the choice's index."""
        self._request = request
        self._form = form
        self._reasoning = reasoning
        self._index = index
        is_free = request.tool_choice.mode is ToolChoiceMode.AUTO
        self._tools = {tool.name: tool for tool in request.tools} if is_free else {}
        self._text: list[str] = []
        self._num_calls = 0
        self._is_thinking_open = False
        self.num_reasoning = 0
        self.num_said = 0

    def add(self, thinking: str, text: str, logprobs: tuple[TokenLogprob, ...], events: list[Event]) -> None:
        """Add the events of a piece of what the model writes; log probabilities are those of the text."""
        self.num_said += bool(thinking or text)
        if thinking:
            self.num_reasoning += 1
            self._think(thinking, events)
            if not text:
                return
        if text:
            self._close_thinking(events)
        if self._form is not None:
            self._text.append(text)
        if (text or logprobs) and (self._form is None or self._form.is_streamed):
            events.append(TextDelta(self._index, text, logprobs))

    def call(self, name: str, arguments: str, call_id: str | None, events: list[Event]) -> None:
        """Add a call of a function.

        Raises:
            InvalidOutput: the request does not offer it, or is strict about its arguments.

        """
        if self._num_calls and not self._request.parallel_tool_calls:
            return
        tool = self._tools.get(name)
        if tool is None:
            raise InvalidOutput(
                f"The model called {name[:_MAX_SHOWN]!r}, which is none of the functions that it may call; try again."
            )
        if tool.strict:
            check_arguments(tool, arguments)
        self._add_call(WrittenCall(name, arguments), call_id, events)

    def finish(self, events: list[Event], *, is_cut: bool) -> None:
        """End the choice; ``is_cut`` says that it reached its limit of tokens.

        Raises:
            InvalidOutput: the text does not have the form that the request demands.

        """
        if self._form is not None:
            self._take(self._form, events, is_cut=is_cut)
        reason = FinishReason.LENGTH if is_cut else FinishReason.STOP
        events.append(ChoiceFinished(self._index, FinishReason.TOOL_CALLS if self._num_calls else reason))

    def _take(self, form: AnswerForm, events: list[Event], *, is_cut: bool) -> None:
        text = "".join(self._text)
        try:
            outcome = form.outcome(text)
        except InvalidOutput as error:
            if not is_cut:
                if self.num_reasoning and not text.strip():
                    raise _still_thinking() from error
                raise
            outcome = form.beginning(text)
        if isinstance(outcome, WrittenCall):
            self._add_call(outcome, None, events)
        elif outcome and (content := _until_stop(outcome, self._request.stop)):
            events.append(TextDelta(self._index, content))

    def _add_call(self, call: WrittenCall, call_id: str | None, events: list[Event]) -> None:
        self._close_thinking(events)
        call_id = call_id or f"call_{uuid.uuid4().hex[:24]}"
        events.append(ToolCallDelta(self._index, self._num_calls, call_id, call.name, call.arguments))
        self._num_calls += 1

    def _think(self, text: str, events: list[Event]) -> None:
        match self._reasoning:
            case ReasoningOutput.SPLIT:
                events.append(ReasoningDelta(self._index, text))
            case ReasoningOutput.RAW:
                begins = "" if self._is_thinking_open else _THINKING_BEGINS
                self._is_thinking_open = True
                events.append(TextDelta(self._index, begins + text))
            case ReasoningOutput.HIDE:
                pass

    def _close_thinking(self, events: list[Event]) -> None:
        if self._is_thinking_open:
            self._is_thinking_open = False
            events.append(TextDelta(self._index, _THINKING_ENDS))


def _still_thinking() -> InvalidOutput:
    return InvalidOutput(
        "The model ended its turn while it was thinking, and did not answer; try again, or have it answer at once with "
        'reasoning_effort = "none".'
    )


def _until_stop(text: str, stops: Sequence[str]) -> str:
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
