"""The daemon's answers as bytes, written as Go writes JSON and times."""

from __future__ import annotations

import json
import random
import string
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fakes.catalogue import FakeModel
from fakes.script import Body, Call
from fakes.speech import Speech, log_probability

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_ESCAPED = str.maketrans(_ESCAPES)


def encode(value: object) -> bytes:
    """JSON without spaces, with the characters escaped that are markup in HTML."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_ESCAPED).encode(errors="replace")


encode_token = lru_cache(maxsize=4096)(encode)


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def timestamp(nanoseconds: int | None = None) -> str:
    """The time as Go writes it: in UTC, with as many digits as it takes."""
    seconds, rest = divmod(time.time_ns() if nanoseconds is None else nanoseconds, 1_000_000_000)
    digits = f".{rest:09d}".rstrip("0").rstrip(".")
    return f"{_second(seconds)}{digits}Z"


@dataclass(frozen=True)
class Telling:
    """One speech, told to one request."""

    asked: str
    speech: Speech
    model: FakeModel
    body: Body
    started_ns: int
    loaded_ns: int
    serial: int
    chat: bool

    @property
    def top_logprobs(self) -> int | None:
        """How many likely tokens are told for each; ``None`` if not even the one is."""
        return self.body.get("top_logprobs", 0) if self.body.get("logprobs") else None

    def lines(self) -> Iterator[bytes]:
        """The stream, line by line; each is dated when it is taken."""
        text = self._text_lines() if self.top_logprobs is None else self._scored_lines()
        yield from text
        if not self.model.native:
            for call in self._calls():
                yield self._line(self._said("content", "", calls=[call]))
        yield encode(self._last()) + b"\n"

    def whole(self) -> dict[str, Any]:
        """The answer that is not a stream."""
        last = self._last()
        thinking, content = "".join(self.speech.thinking), "".join(self.speech.content)
        if self.chat:
            last["message"] = self._message(content, thinking, self._calls())
        else:
            last["response"] = content
            if thinking:
                last["thinking"] = thinking
        if self.top_logprobs is not None:
            last["logprobs"] = [log_probability(token, self.top_logprobs) for _, token in self.speech.pieces()]
        return last

    def _text_lines(self) -> Iterator[bytes]:
        head = self._head_until_time()
        middle = {name: self._around(name) for name in ("thinking", "content")}
        for name, token in self.speech.pieces():
            before, after = middle[name]
            yield b"".join((head, timestamp().encode(), before, encode_token(token), after))

    def _scored_lines(self) -> Iterator[bytes]:
        for name, token in self.speech.pieces():
            said = self._said(name, token)
            yield self._line(said | {"logprobs": [log_probability(token, self.top_logprobs or 0)]})

    def _head_until_time(self) -> bytes:
        return encode(self._header() | {"created_at": ""})[:-2]

    def _around(self, name: str) -> tuple[bytes, bytes]:
        """What is before and after a token in a line."""
        mark = "\x00"
        before, after = encode(self._said(name, mark)).split(encode(mark))
        return b'",' + before[1:], after + b"\n"

    def _said(self, name: str, token: str, calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        content, thinking = (token, "") if name == "content" else ("", token)
        if self.chat:
            return {"message": self._message(content, thinking, calls), "done": False}
        return {"response": content} | ({"thinking": thinking} if thinking else {}) | {"done": False}

    def _message(self, content: str, thinking: str, calls: list[dict[str, Any]] | None) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return message

    def _line(self, said: dict[str, Any]) -> bytes:
        return encode(self._header() | {"created_at": timestamp()} | said) + b"\n"

    def _header(self) -> dict[str, Any]:
        header: dict[str, Any] = {"model": self.asked}
        if self.model.remote_model:
            header |= {"remote_model": self.model.remote_model, "remote_host": self.model.remote_host}
        return header

    def _calls(self) -> list[dict[str, Any]]:
        return [self._call(index, call) for index, call in enumerate(self.speech.calls)]

    def _call(self, index: int, call: Call) -> dict[str, Any]:
        chance = random.Random(self.serial * 1000 + index)
        if self.model.native:
            identifier = "".join(chance.choices(string.ascii_letters + string.digits, k=32))
        else:
            identifier = "call_" + "".join(chance.choices(string.ascii_lowercase + string.digits, k=8))
        function = {"index": index, "name": call.name, "arguments": dict(call.arguments)}
        return {"id": identifier, "function": function}

    def _last(self) -> dict[str, Any]:
        now = time.time_ns()
        said = self._said("content", "", self._calls() if self.model.native else None)
        last: dict[str, Any] = self._header() | {"created_at": timestamp(now)} | said
        last |= {"done": True, "done_reason": self.speech.done_reason}
        if not self.chat and not self.body.get("raw"):
            last["context"] = list(range(self.speech.num_prompt + len(self.speech.content)))
        metrics = {
            "total_duration": now - self.started_ns,
            "load_duration": self.loaded_ns - self.started_ns,
            "prompt_eval_count": self.speech.num_prompt,
            "prompt_eval_duration": 1_000_000 * self.speech.num_prompt,
            "eval_count": self.speech.num_evaluated,
            "eval_duration": max(now - self.loaded_ns, 1),
        }
        return last | {name: value for name, value in metrics.items() if value}


def empty_answer(model: str, reason: str, *, chat: bool) -> dict[str, Any]:
    """The answer to a request that only loads or unloads a model."""
    answer: dict[str, Any] = {"model": model, "created_at": timestamp()}
    answer |= {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    return answer | {"done": True, "done_reason": reason}
