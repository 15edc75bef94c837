"""What the daemon and its runner refuse, and what they make of a request that they accept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fakes.catalogue import FakeModel
from fakes.lines import encode
from fakes.reading import Refused
from fakes.script import Body, Reply, Speaker
from fakes.speech import BadSchema, CutCall, Limits, Speech, count_prompt, speak

_OPEN_ENDED = 10
"""Contexts that an unlimited generation may fill."""
_KEPT = 4
"""Tokens at the start of a prompt that stay when it is shortened (``num_keep``)."""
_NO_IMAGES = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
_NO_MEDIA = "Multimodal data provided, but model does not support multimodal requests."
_TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the "
    "context length in settings, or use a model with a longer context length"
)
_TWO_ASSISTANTS = "Cannot have 2 or more assistant messages at the end of the list."
_NO_PENALTY = "Failed to initialize samplers: penalty_repeat must be finite and greater than 0"
_PARSER = "Unable to generate parser for this template. Automatic parser generation failed: JSON schema error at #: "
_FIELD = "Field 'json_schema': \"json_schema\": JSON schema conversion failed:\nJSON schema error at #: "


def messages_of(body: Body, *, chat: bool) -> list[dict[str, Any]]:
    """The messages of a chat, or what a prompt is made into."""
    if chat:
        return list(body.get("messages") or [])
    if not body.get("prompt"):
        return []
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    return [*system, {"role": "user", "content": body["prompt"], "images": body.get("images")}]


def check_capabilities(model: FakeModel, body: Body, asked: str, *, chat: bool) -> bool:
    """Complain of what the model cannot do; returns whether it thinks."""
    think = body.get("think")
    if body.get("raw") and (body.get("template") or body.get("system")):
        raise Refused(400, "raw mode does not support template, system, or context")
    if think and not model.can("thinking"):
        raise Refused(400, f'"{asked}" does not support thinking')
    if not model.can("completion"):
        raise Refused(400, f'"{asked}" does not support {"chat" if chat else "generate"}')
    wanted = {"tools": body.get("tools"), "insert": body.get("suffix")}
    if lacking := [name for name, asked_for in wanted.items() if asked_for and not model.can(name)]:
        raise Refused(400, f"{model.full_name} does not support " + "\n".join(lacking))
    return model.can("thinking") and think is not False


class Inference:
    """One request to a model that is loaded.

    A ``native`` request is a chat with a model that brings its own chat template: llama-server renders and parses it.
    All others the daemon renders itself. A native answer goes on where the last message left off, if it is the
    assistant's, and begins with that message.
    """

    def __init__(self, model: FakeModel, body: Body, options: Mapping[str, Any], num_ctx: int, *, chat: bool) -> None:
        self._model = model
        self._body = body
        self._options = options
        self._num_ctx = num_ctx
        self._messages = messages_of(body, chat=chat)
        self._native = chat and model.native
        self._shift = bool(body.get("shift", True))
        self._truncate = bool(body.get("truncate", True))

    def speech(self, scripted: Reply | Speaker, *, thinks: bool) -> Speech:
        """What is answered."""
        self._check()
        num_prompt = self._fit()
        said = [str(found.get("content") or "") for found in self._messages]
        begun = self._native and len(said) > 1 and self._messages[-1].get("role") == "assistant"
        reply = scripted if isinstance(scripted, Reply) else scripted(self._body)
        limits = self._limits(num_prompt)
        try:
            speech = speak(
                reply, self._body, said[-2 if begun else -1], thinks=thinks, num_prompt=num_prompt, limits=limits
            )
        except BadSchema as bad:
            raise _runner_refuses(400, (_PARSER if self._native else _FIELD) + str(bad)) from None
        except CutCall as cut:
            text = f'llama-server returned invalid tool call arguments for "{cut}": unexpected end of JSON input'
            raise Refused(500, text, late=True) from None
        return replace(speech, content=(said[-1], *speech.content)) if begun else speech

    def _check(self) -> None:
        body, messages = self._body, self._messages
        wanted = body.get("format")
        if wanted not in {None, "", "json"} if isinstance(wanted, str | None) else not isinstance(wanted, dict):
            quoted = encode(encode(wanted).decode()).decode()
            raise Refused(500, f'invalid format: {quoted}; expected "json" or a valid JSON Schema object', late=True)
        if not self._model.can("vision") and any(message.get("images") for message in messages):
            if self._native:
                raise _runner_refuses(500, _NO_IMAGES, late=not (self._truncate and len(messages) > 1))
            raise _runner_refuses(400, _NO_MEDIA)
        if self._native and [message.get("role") for message in messages[-2:]] == ["assistant"] * 2:
            raise _runner_refuses(400, _TWO_ASSISTANTS, late=not self._truncate)
        if self._native and body.get("tools") and body.get("logprobs"):
            raise _runner_refuses(400, "logprobs is not supported with tools + stream")
        if self._options.get("repeat_penalty", 1) <= 0:
            raise _runner_refuses(400, _NO_PENALTY)

    def _fit(self) -> int:
        """Shorten the prompt as far as the request allows; returns its tokens."""
        messages, tools = self._messages, self._body.get("tools")
        while self._truncate and count_prompt(messages, tools) > self._num_ctx and len(messages) > 1:
            place = next((index for index, found in enumerate(messages) if found.get("role") != "system"), 0)
            if place == len(messages) - 1:
                break
            messages = messages[:place] + messages[place + 1 :]
        num_prompt = count_prompt(messages, tools)
        if num_prompt < self._num_ctx:
            return num_prompt
        if self._native or not self._truncate:
            text = f"request ({num_prompt} tokens) exceeds the available context size ({self._num_ctx} tokens), "
            counts = {"n_prompt_tokens": num_prompt, "n_ctx": self._num_ctx}
            raise _runner_refuses(400, text + "try increasing it", "exceed_context_size_error", counts)
        if not self._shift:
            raise Refused(400, _TOO_LONG, late=True)
        return self._num_ctx - max((self._num_ctx - _KEPT) // 2, 1)

    def _limits(self, num_prompt: int) -> Limits:
        asked = self._options.get("num_predict")
        num_predict = -1 if asked is None else int(asked)
        most = _OPEN_ENDED * self._num_ctx
        if num_predict == 0:  # the first token is out before anybody counts; only one of two paths counts at all
            num_predict = 1 if self._native else -1
        if not 0 <= num_predict <= most:
            num_predict = most
        if not self._shift:
            num_predict = min(num_predict, self._num_ctx - num_prompt)
        return Limits(num_predict, self._options.get("stop") or (), strict_calls=self._native)


def _runner_refuses(
    status: int, message: str, kind: str = "", more: Mapping[str, Any] | None = None, *, late: bool = True
) -> Refused:
    """What llama-server refuses; the daemon passes its JSON on as a text."""
    kind = kind or ("server_error" if status == 500 else "invalid_request_error")
    error = {"code": status, "message": message, "type": kind} | dict(more or {})
    return Refused(status, encode({"error": error}).decode(), late=late)
