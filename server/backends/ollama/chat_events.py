"""From the lines of the daemon's ``/api/chat`` to events. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from server.backends.ollama.answer_events import AnswerEvents
from server.backends.ollama.daemon_errors import error_of_message, garbled, in_terms_of, readable
from server.core.errors import BackendError, InvalidOutput, LlmspellError
from server.core.events import Event, Failed, Finished, Timings, TokenLogprob, Usage
from server.core.request import ChatRequest

MAX_LINE_BYTES = 16 * 1024 * 1024
_NANOSECONDS = 1e-9
_ERROR_STATUS = 500
_MAX_SHOWN = 200


class ChatDecoder:
    """Decodes the answer to one request, which is one choice."""

    def __init__(self, request: ChatRequest, answer: AnswerEvents, model: str) -> None:
        """Take the request, what makes the events of its answer, and the model as the daemon knows it."""
        self._model = model
        self._request = request
        self._answer = answer
        self._wants_logprobs = request.top_logprobs is not None
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
                self._fail(in_terms_of(self._request, error), events)
                return
            self._add(entry, events)
        except InvalidOutput as error:
            self._fail(error, events)
        except (ValueError, KeyError, TypeError, AttributeError):
            shown = repr(line[:_MAX_SHOWN].decode("utf-8", "replace"))
            self._fail(garbled(f"a line of its answer is {shown}"), events)

    def _add(self, entry: Mapping[str, Any], events: list[Event]) -> None:
        message = entry["message"]
        thinking, text = str(message.get("thinking") or ""), str(message.get("content") or "")
        self._answer.add(thinking, text, self._logprobs(entry) if self._wants_logprobs else (), events)
        for call in message.get("tool_calls") or ():
            function = call["function"]
            arguments = function.get("arguments") or {}
            if not isinstance(arguments, dict):
                raise TypeError(arguments)
            call_id = str(call.get("id") or "") or None
            self._answer.call(str(function["name"]), orjson.dumps(arguments).decode(), call_id, events)
        if entry.get("done"):
            finished = Finished(self._usage(entry), _timings(entry))
            self._answer.finish(events, is_cut=entry.get("done_reason") == "length")
            events.append(finished)
            self.is_over = True

    def _usage(self, entry: Mapping[str, Any]) -> Usage:
        """Count tokens; of those spent on thinking the daemon says nothing, so they are counted by its pieces.

        Where it constrains an answer after the thinking, it asks the model a second time, and counts that one only.
        """
        num_counted = max(0, int(entry.get("eval_count") or 0))
        num_reasoning = self._answer.num_reasoning
        return Usage(
            prompt_tokens=max(0, int(entry.get("prompt_eval_count") or 0)),
            completion_tokens=max(num_counted, self._answer.num_said) if num_reasoning else num_counted,
            reasoning_tokens=num_reasoning,
        )

    def _fail(self, error: LlmspellError, events: list[Event]) -> None:
        events.append(Failed(error))
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
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
    )


def _logprob(token: Mapping[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    text = str(token["token"])
    given = token.get("bytes")
    return TokenLogprob(text, bytes(given) if isinstance(given, list) else text.encode(), float(token["logprob"]), top)


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
