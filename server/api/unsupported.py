"""Parameters that this server cannot honour: found and named, never dropped in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from urllib.parse import quote

from server.api.config import ApiConfig
from server.api.schemas import ChatCompletionBody, WireMessage, WireModel
from server.core.errors import UnsupportedParameter

# OpenAI's parameters that nothing here implements, each with the values that ask for nothing: what a client sends that
# spells out the defaults. `null` always asks for nothing.
_OPENAI_PARAMETERS: dict[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# Without these the answer is the same, and the response says that they were not honoured: no reason to refuse.
_DISPENSABLE: dict[str, tuple[object, ...]] = {
    "service_tier": ("flex", "priority", "scale"),
    "store": (True,),
}
# what the SDKs' message objects carry when a client sends an answer back as part of the conversation
_ECHOED_IN_MESSAGES: dict[str, tuple[object, ...]] = {"annotations": ([],)}

_MAX_LISTED = 32
_MAX_NAME_LEN = 64


def refuse_or_list_unsupported(body: ChatCompletionBody, config: ApiConfig) -> list[str]:
    """Find what cannot be honoured, and return its paths when it can be ignored: dispensable, or the operator's wish.

    Raises:
        UnsupportedParameter: there is such a parameter, and the operator wants it refused.

    """
    dispensable = [name for name, value in (body.model_extra or {}).items() if _is_among(value, _DISPENSABLE.get(name))]
    paths = (path for path in _unsupported_paths(body) if path not in dispensable)
    if config.unsupported == "error" and (first := next(paths, None)) is not None:
        raise UnsupportedParameter(_explain(first), param=first)
    return [*dispensable, *paths]


def ignored_header(paths: Sequence[str]) -> dict[str, str]:
    """Build the header that lists ignored parameters; names come from the client, so they are escaped and bounded."""
    if not paths:
        return {}
    names = [quote(path[:_MAX_NAME_LEN], safe="[]._-") for path in paths[:_MAX_LISTED]]
    more = len(paths) - len(names)
    return {"x-llmspell-ignored": ", ".join(names) + (f", and {more} more" if more else "")}


def _unsupported_paths(body: ChatCompletionBody) -> Iterator[str]:
    yield from _extras(body, "", _OPENAI_PARAMETERS)
    if body.stream_options is not None:
        yield from _extras(body.stream_options, "stream_options.")
    for index, message in enumerate(body.messages):
        yield from _unsupported_in_message(message, f"messages[{index}].")


def _unsupported_in_message(message: WireMessage, prefix: str) -> Iterator[str]:
    yield from _extras(message, prefix, _ECHOED_IN_MESSAGES)
    if isinstance(message.content, list):
        for index, part in enumerate(message.content):
            if part.type in {"text", "refusal"}:  # other types are refused with their own message
                yield from _extras(part, f"{prefix}content[{index}].")
    for index, call in enumerate(message.tool_calls or ()):
        yield from _extras(call, f"{prefix}tool_calls[{index}].")
        yield from _extras(call.function, f"{prefix}tool_calls[{index}].function.")


def _extras(model: WireModel, prefix: str, no_ops: dict[str, tuple[object, ...]] | None = None) -> Iterator[str]:
    for name, value in (model.model_extra or {}).items():
        if value is not None and not _is_among(value, (no_ops or {}).get(name)):
            yield prefix + name


def _is_among(value: object, items: tuple[object, ...] | None) -> bool:
    """Whether a value equals one of the items and has its type: 0 is not ``False``."""
    return any(type(value) is type(item) and value == item for item in items or ())


def _explain(path: str) -> str:
    if path in _OPENAI_PARAMETERS:
        return f"Unsupported parameter: '{path}'. This server cannot honour that value; leave the parameter out."
    known = [*ChatCompletionBody.model_fields, *_OPENAI_PARAMETERS]
    close = get_close_matches(path[:_MAX_NAME_LEN], known, n=2, cutoff=0.7)
    hint = f"Did you mean {' or '.join(repr(name) for name in close)}?" if close else "Leave it out."
    return f"Unknown parameter: '{path[:256]}'. {hint}"
