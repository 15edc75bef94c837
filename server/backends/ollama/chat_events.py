"""From the lines of the daemon's ``/api/chat`` to events. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from server.backends.ollama.daemon_errors import error_of_message, garbled, readable
from server.backends.ollama.forced_call import parse_forced_call
from server.core.errors import BackendError
from server.core.events import (
    ChoiceFinished,
    Event,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from server.core.request import ChatRequest, ToolChoiceMode

MAX_LINE_BYTES = 16 * 1024 * 1024
_NANOSECONDS = 1e-9
_ERROR_STATUS = 500
_MAX_SHOWN = 200


class ChatDecoder:
    """Decodes the answer to one request, which is one choice."""

    def __init__(self, request: ChatRequest, index: int, model: str) -> None:
        """Take the request, the choice's index, and the model as the daemon knows it."""
        self._index = index
        self._model = model
        self._request = request
        self._is_forced = request.tool_choice.mode is ToolChoiceMode.REQUIRED
        self._wants_logprobs = request.top_logprobs is not None
        self._forced_text: list[str] = []
        self._num_calls = 0
        self._rest = b""
        self.is_over = False

    def feed(self, data: bytes) -> list[Event]:
        """Return the events of the lines that are complete now."""
        *lines, self._rest = (self._rest + data).split(b"\n") if self._rest else data.split(b"\n")
        events: list[Event] = []
        for line in lines:
            if line and not self.is_over:
                self._decode(line, events)
        if len(self._rest) > MAX_LINE_BYTES and not self.is_over:
            self._fail(garbled(f"it sends a line of more than {MAX_LINE_BYTES} bytes"), events)
        return events

    def end(self) -> list[Event]:
        """Return the events of the end of the answer: a failure, unless the last line has been there."""
        events = [] if self.is_over or not self._rest else self.feed(b"\n")
        if not self.is_over:
            self._fail(BackendError("The Ollama daemon ended the answer before it was complete; try again."), events)
        return events

    def _decode(self, line: bytes, events: list[Event]) -> None:
        try:
            entry = orjson.loads(line)
            if "error" in entry:
                error = error_of_message(readable(entry["error"]), _ERROR_STATUS, self._model)
                self._fail(error, events)
                return
            self._add(entry, events)
        except (ValueError, KeyError, TypeError, AttributeError):
            shown = repr(line[:_MAX_SHOWN].decode("utf-8", "replace"))
            self._fail(garbled(f"a line of its answer is {shown}"), events)

    def _add(self, entry: Mapping[str, Any], events: list[Event]) -> None:
        message = entry["message"]
        if thinking := message.get("thinking"):
            events.append(ReasoningDelta(self._index, str(thinking)))
        text = message.get("content")
        logprobs = self._logprobs(entry) if self._wants_logprobs else ()
        if self._is_forced:
            self._forced_text.append(text or "")
        elif text or logprobs:
            events.append(TextDelta(self._index, str(text or ""), logprobs))
        for call in message.get("tool_calls") or ():
            self._add_call(call, events)
        if entry.get("done"):
            self._finish(entry, events)

    def _add_call(self, call: Mapping[str, Any], events: list[Event]) -> None:
        if self._num_calls and not self._request.parallel_tool_calls:
            return
        function = call["function"]
        arguments = orjson.dumps(function.get("arguments") or {}).decode()
        call_id = call.get("id") or _new_call_id()
        events.append(ToolCallDelta(self._index, self._num_calls, str(call_id), str(function["name"]), arguments))
        self._num_calls += 1

    def _finish(self, entry: Mapping[str, Any], events: list[Event]) -> None:
        is_cut = entry.get("done_reason") == "length"
        if self._is_forced and not self._add_forced_call(events, is_cut=is_cut):
            return
        reason = FinishReason.LENGTH if is_cut else FinishReason.STOP
        if self._num_calls:
            reason = FinishReason.TOOL_CALLS
        events += [ChoiceFinished(self._index, reason), Finished(_usage(entry), _timings(entry))]
        self.is_over = True

    def _add_forced_call(self, events: list[Event], *, is_cut: bool) -> bool:
        """Add the call that the text is; a text that was cut off is none, and no failure."""
        text = "".join(self._forced_text)
        call = parse_forced_call(text, self._request)
        if call is None and is_cut:
            return True
        if call is None:
            shown = repr(text[:_MAX_SHOWN])
            error = BackendError(
                f"The model did not make the call that tool_choice asks for, but wrote {shown}; try again."
            )
            self._fail(error, events)
            return False
        name, arguments = call
        events.append(ToolCallDelta(self._index, 0, _new_call_id(), name, arguments))
        self._num_calls = 1
        return True

    def _fail(self, error: Exception, events: list[Event]) -> None:
        events.append(Failed(error))  # type: ignore[arg-type]
        self.is_over = True

    def _logprobs(self, entry: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
        wanted = self._request.top_logprobs or 0
        return tuple(
            _logprob(token, tuple(_logprob(other) for other in (token.get("top_logprobs") or ())[:wanted]))
            for token in entry.get("logprobs") or ()
        )


def merged_usage(usages: Sequence[Usage]) -> Usage:
    """Add up the usage of several choices; their prompt is the same one and counts once."""
    return Usage(
        prompt_tokens=max(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )


def _logprob(token: Mapping[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    text = str(token["token"])
    given = token.get("bytes")
    return TokenLogprob(text, bytes(given) if isinstance(given, list) else text.encode(), float(token["logprob"]), top)


def _usage(entry: Mapping[str, Any]) -> Usage:
    return Usage(
        prompt_tokens=max(0, int(entry.get("prompt_eval_count") or 0)),
        completion_tokens=max(0, int(entry.get("eval_count") or 0)),
    )


def timings_since_arrival(timings: Timings, first_token: float) -> Timings:
    """Add what the daemon does not see: the wait before the load and the prompt, which its own numbers leave over."""
    queued = max(0.0, first_token - timings.load - timings.prompt)
    return replace(timings, queued=queued, first_token=first_token)


def merged_timings(timings: Sequence[Timings]) -> Timings:
    """Describe several choices as one request: up to the first token of all, and from there to the last."""
    first = min(timings, key=lambda each: each.first_token)
    end = max(each.first_token + each.decode for each in timings)
    return replace(first, decode=end - first.first_token)


def _timings(entry: Mapping[str, Any]) -> Timings:
    load, prompt, decode = (
        max(0.0, float(entry.get(name) or 0)) * _NANOSECONDS
        for name in ("load_duration", "prompt_eval_duration", "eval_duration")
    )
    return Timings(load=load, prompt=prompt, first_token=load + prompt, decode=decode)


def _new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
