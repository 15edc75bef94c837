"""Parameters that nobody honours, here or at the chosen backend: found and named, never dropped in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from urllib.parse import quote

from server.api.config import ApiConfig
from server.api.schemas import (
    ChatCompletionBody,
    WireAllowedToolChoice,
    WireMessage,
    WireModel,
    WireResponseFormat,
    WireToolChoice,
)
from server.core.errors import UnsupportedParameter
from server.core.parameters import ParameterSupport, Treatment, mapped, refused
from server.core.ports import Backend

HERE: Mapping[str, ParameterSupport] = {
    "model": mapped("the model spec"),
    "messages": mapped(),
    "stream": mapped(),
    "stream_options": mapped("`include_usage`; `include_timings` is an extension"),
    "user": mapped("accepted; it has no effect"),
    "safety_identifier": mapped("accepted; it has no effect"),
    "prompt_cache_key": mapped("accepted; prompts are cached without it"),
    "metadata": mapped("accepted; it has no effect"),
}
"""What this server itself makes of parameters, whichever backend answers."""

TOOL_PARAMETERS = ("tools[].function.strict",)
"""The parts of tools that a backend may not have."""

MESSAGE_PARAMETERS = (
    "messages[].content[].image_url",
    "messages[].name",
    "messages[].tool_calls",
    "messages[].tool_call_id",
    "messages[].reasoning_content",
)
"""The parts of messages that a backend may not have."""

# OpenAI's parameters that nothing here implements, each with the values that ask for nothing: what a client sends that
# spells out the defaults. `null` always asks for nothing.
OPENAI_PARAMETERS: dict[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# The same for parameters that a backend may not have.
_NO_OPS: dict[str, tuple[object, ...]] = {
    "chat_template_kwargs": ({},),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "n": (1,),
    "parallel_tool_calls": (True,),
    "stop": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
_NO_OPS_NESTED: dict[str, tuple[object, ...]] = {"include_obfuscation": (False,)}
# Without these the answer is the same, and the response says that they were not honoured: no reason to refuse.
_DISPENSABLE: dict[str, tuple[object, ...]] = {
    "service_tier": ("flex", "priority", "scale"),
    "store": (True,),
}
# what the SDKs' message objects carry when a client sends an answer back as part of the conversation
_ECHOED_IN_MESSAGES: dict[str, tuple[object, ...]] = {"annotations": ([],)}
_NONE: Mapping[str, tuple[object, ...]] = {}
# what OpenAI's own client makes of content and arguments, beside which it sends them back, too
_PARSED_CONTENT, _PARSED_ARGUMENTS = "parsed", "parsed_arguments"

# What to send in the place of parameters that others know, or once knew.
_INSTEAD: Mapping[str, str] = {
    "function_call": "'tool_choice' and 'tools' (in messages: 'tool_calls')",
    "functions": "'tools'",
    "guided_grammar": "'grammar'",
    "guided_json": "'response_format' of type json_schema",
    "json_schema": "'response_format' of type json_schema",
    "structured_outputs": "'response_format', 'grammar', 'guided_regex' or 'guided_choice'",
    "enable_thinking": "'reasoning_effort', or 'enable_thinking' in 'chat_template_kwargs'",
    "thinking": "'reasoning_effort' or 'thinking_budget'",
    "response_format.schema": "'response_format' of type json_schema",
}

_MAX_LISTED = 32
_MAX_NAME_LEN = 64


def refuse_or_list_unsupported(body: ChatCompletionBody, config: ApiConfig, backend: Backend) -> list[str]:
    """Find what cannot be honoured, and return its paths when it can be ignored: dispensable, or the operator's wish.

    Raises:
        UnsupportedParameter: there is such a parameter, and the operator wants it refused; or there is an image, and
            the backend takes text only.

    """
    wanted = list(_wanted_from_backend(body))
    dispensable = [path for path, name in wanted if _support(backend, name).treatment is Treatment.LISTED]
    dispensable += [
        name for name, value in (body.model_extra or {}).items() if _is_among(value, _DISPENSABLE.get(name))
    ]
    lacking = {path: name for path, name in wanted if _is_lacking(backend, name)}
    _refuse_images(lacking, backend)
    unknown = [path for path in _unknown_paths(body) if path not in dispensable]
    if config.unsupported == "error":
        for path, name in lacking.items():
            raise UnsupportedParameter(_explain_lack(path, backend, name), param=path)
        for path in unknown:
            raise UnsupportedParameter(_explain(path), param=path)
    return [*dispensable, *lacking, *unknown]


def _support(backend: Backend, name: str) -> ParameterSupport:
    return backend.parameters.get(name, _MISSING)


_MISSING = refused()


def _is_lacking(backend: Backend, name: str) -> bool:
    return _support(backend, name).treatment is Treatment.REFUSED


def _refuse_images(lacking: Mapping[str, str], backend: Backend) -> None:
    """An image is part of what the user says, so nobody's wish can drop it."""
    for path, name in lacking.items():
        if name == _IMAGE_PARAMETER:
            place = path.removesuffix(".image_url")
            raise UnsupportedParameter(
                f"Unsupported content: '{place}' is an image, but models on the backend {backend.name.value} take text "
                "only here.",
                param=place,
            )


_IMAGE_PARAMETER = "messages[].content[].image_url"


def _wanted_from_backend(body: ChatCompletionBody) -> Iterator[tuple[str, str]]:
    """Yield path and name of each parameter that a backend has to honour."""
    for name in type(body).model_fields:
        value = getattr(body, name)
        if name not in HERE and value is not None and not _asks_for_nothing(name, value):
            yield name, name
    for index, tool in enumerate(body.tools or ()):
        if tool.function.strict:
            yield f"tools[{index}].function.strict", "tools[].function.strict"
    for index, message in enumerate(body.messages):
        for path, name in _wanted_in_message(message):
            yield f"messages[{index}].{path}", f"messages[].{name}"


def _wanted_in_message(message: WireMessage) -> Iterator[tuple[str, str]]:
    for index, part in enumerate(message.content if isinstance(message.content, list) else ()):
        if part.type == "image_url":
            yield f"content[{index}].image_url", "content[].image_url"
    for name in ("name", "tool_calls", "tool_call_id"):
        if getattr(message, name):
            yield name, name
    for name in ("reasoning_content", "reasoning"):
        if getattr(message, name):
            yield name, "reasoning_content"


def _asks_for_nothing(name: str, value: object) -> bool:
    if isinstance(value, WireResponseFormat):
        return value.type == "text"
    return _is_among(value, _NO_OPS.get(name))


def _explain_lack(path: str, backend: Backend, name: str) -> str:
    note = _support(backend, name).note
    return (
        f"Unsupported parameter: '{path}' is not available on the backend {backend.name.value}"
        f"{f' ({note})' if note else ''}; leave it out, or use a model of the other backend."
    )


def without(body: ChatCompletionBody, ignored: Sequence[str]) -> ChatCompletionBody:
    """Return a body that does not ask for what is ignored."""
    names = [path for path in ignored if path in ChatCompletionBody.model_fields]
    return body.model_copy(update=dict.fromkeys(names)) if names else body


def is_accepted(body: ChatCompletionBody, backend: Backend, ignored: Sequence[str]) -> bool:
    """Whether a backend honours everything in a request but what is ignored."""
    lacking = (path for path, name in _wanted_from_backend(body) if _is_lacking(backend, name))
    return all(path in ignored for path in lacking)


def ignored_header(paths: Sequence[str]) -> dict[str, str]:
    """Build the header that lists ignored parameters; names come from the client, so they are escaped and bounded."""
    if not paths:
        return {}
    names = [quote(path[:_MAX_NAME_LEN], safe="[]._-") for path in paths[:_MAX_LISTED]]
    more = len(paths) - len(names)
    return {"x-llmspell-ignored": ", ".join(names) + (f", and {more} more" if more else "")}


def _unknown_paths(body: ChatCompletionBody) -> Iterator[str]:
    yield from _extras(body, "", OPENAI_PARAMETERS)
    nested: list[tuple[str, WireModel | None]] = [("stream_options.", body.stream_options)]
    for index, tool in enumerate(body.tools or ()):
        nested += [(f"tools[{index}].", tool), (f"tools[{index}].function.", tool.function)]
    nested += _parts_of_choice(body)
    if body.response_format is not None:
        nested += [("response_format.", body.response_format)]
        nested += [("response_format.json_schema.", body.response_format.json_schema)]
    for prefix, model in nested:
        yield from _extras(model, prefix, _NO_OPS_NESTED)
    for index, message in enumerate(body.messages):
        yield from _unknown_in_message(message, f"messages[{index}].")


def _parts_of_choice(body: ChatCompletionBody) -> Iterator[tuple[str, WireModel | None]]:
    choice, prefix = body.tool_choice, "tool_choice."
    if isinstance(choice, WireToolChoice):
        yield from ((prefix, choice), (f"{prefix}function.", choice.function))
    elif isinstance(choice, WireAllowedToolChoice):
        yield from ((prefix, choice), (f"{prefix}allowed_tools.", choice.allowed_tools))


def _unknown_in_message(message: WireMessage, prefix: str) -> Iterator[str]:
    yield from _extras(message, prefix, _ECHOED_IN_MESSAGES, _PARSED_CONTENT)
    if isinstance(message.content, list):
        for index, part in enumerate(message.content):
            if part.type in {"text", "refusal", "image_url"}:  # other types are refused with their own message
                yield from _extras(part, f"{prefix}content[{index}].")
                yield from _extras(part.image_url, f"{prefix}content[{index}].image_url.")
    for index, call in enumerate(message.tool_calls or ()):
        yield from _extras(call, f"{prefix}tool_calls[{index}].")
        yield from _extras(call.function, f"{prefix}tool_calls[{index}].function.", echoed=_PARSED_ARGUMENTS)


def _extras(
    model: WireModel | None, prefix: str, no_ops: Mapping[str, tuple[object, ...]] = _NONE, echoed: str | None = None
) -> Iterator[str]:
    for name, value in ((model and model.model_extra) or {}).items():
        if value is not None and name != echoed and not _is_among(value, no_ops.get(name)):
            yield prefix + name


def _is_among(value: object, items: tuple[object, ...] | None) -> bool:
    """Whether a value equals one of the items and has its type: 0 is not ``False``."""
    return any(type(value) is type(item) and value == item for item in items or ())


def _explain(path: str) -> str:
    name = path.rpartition("].")[2]
    if instead := _INSTEAD.get(name):
        return f"Unsupported parameter: '{path}'. Send {instead} instead."
    if path in OPENAI_PARAMETERS:
        return f"Unsupported parameter: '{path}'. This server cannot honour that value; leave the parameter out."
    known = [*ChatCompletionBody.model_fields, *OPENAI_PARAMETERS]
    close = get_close_matches(path[:_MAX_NAME_LEN], known, n=2, cutoff=0.7)
    hint = f"Did you mean {' or '.join(repr(name) for name in close)}?" if close else "Leave it out."
    return f"Unknown parameter: '{path[:256]}'. {hint}"
