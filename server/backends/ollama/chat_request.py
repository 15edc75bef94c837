"""From a chat request to the body of the daemon's ``/api/chat``. Pure.

The daemon's types: https://docs.ollama.com/api/chat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.backends.ollama.forced_call import forced_call_format, forced_call_instruction
from server.core.errors import InvalidRequest
from server.core.parameters import ParameterSupport, emulated, listed, mapped, refused
from server.core.request import (
    ChatRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    ReasoningEffort,
    Role,
    SamplingParameters,
    Tool,
    ToolChoiceMode,
)

_OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repeat_penalty",
)

PARAMETERS: Mapping[str, ParameterSupport] = {
    **{name: mapped(f"`options.{name}`; left to the model's Modelfile when absent") for name in _OPTIONS},
    "max_tokens": mapped("`options.num_predict`"),
    "max_completion_tokens": mapped("`options.num_predict`"),
    "seed": mapped("`options.seed`, folded into 31 bits"),
    "stop": mapped("`options.stop`"),
    "logprobs": mapped("`logprobs`"),
    "top_logprobs": mapped("`top_logprobs`"),
    "tools": mapped("`tools`"),
    "response_format": mapped("`format`"),
    "reasoning_effort": mapped("`think`"),
    "keep_alive": mapped("`keep_alive`"),
    "num_ctx": mapped("`options.num_ctx`; another value than before makes the daemon load the model anew"),
    "messages[].tool_calls": mapped("`messages[].tool_calls`, with arguments as an object"),
    "messages[].tool_call_id": mapped("`messages[].tool_call_id` and, from the call it answers, `tool_name`"),
    "messages[].reasoning_content": mapped("`messages[].thinking`"),
    "messages[].content[].image_url": mapped("`messages[].images`; URLs are fetched by this server"),
    "n": emulated("parallel requests; choice i gets seed + i"),
    "tool_choice": emulated(
        "none: tools are left out; required and named: a schema in `format`, whose JSON is parsed back into the call"
    ),
    "parallel_tool_calls": emulated("false: calls after the first are dropped"),
    "messages[].name": listed("the daemon has no names of participants"),
    "logit_bias": refused("the daemon has none"),
    "ignore_eos": refused("the daemon has none"),
}

_THINK: Mapping[ReasoningEffort, bool | str] = {
    ReasoningEffort.NONE: False,
    ReasoningEffort.MINIMAL: "low",
    ReasoningEffort.LOW: "low",
    ReasoningEffort.MEDIUM: "medium",
    ReasoningEffort.HIGH: "high",
    ReasoningEffort.XHIGH: "max",
}
_MAX_SEED = 2**31 - 1

Images = Mapping[str, str]
"""Images in base64, by the path of the request field that named them."""


def chat_body(request: ChatRequest, model: str, images: Images, keep_alive: str) -> dict[str, Any]:
    """Build the body for one choice.

    Args:
        request: what the client wants.
        model: the model as the daemon knows it.
        images: the request's images.
        keep_alive: what the operator wants where the client does not say; empty for the daemon's own.

    Raises:
        InvalidRequest: an earlier tool call has arguments that are not a JSON object.

    """
    is_forced = request.tool_choice.mode is ToolChoiceMode.REQUIRED
    body: dict[str, Any] = {
        "model": model,
        "messages": _messages(request, images, instruction=forced_call_instruction(request) if is_forced else None),
        "stream": True,
        # the daemon would drop the oldest messages until the rest fits, and say nothing
        "truncate": False,
        # nor is it to drop the beginning while the completion grows: the completion ends with the context
        "shift": False,
        "options": _options(request),
    }
    if request.tools and request.tool_choice.mode is ToolChoiceMode.AUTO:
        body["tools"] = [_tool(tool) for tool in request.tools]
    if (wanted := forced_call_format(request) if is_forced else _format(request)) is not None:
        body["format"] = wanted
    if request.reasoning_effort is not None:
        body["think"] = _THINK[request.reasoning_effort]
    if (duration := request.keep_alive if request.keep_alive is not None else keep_alive) != "":
        body["keep_alive"] = duration
    if request.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    return body


def seed_of_choice(sampling: SamplingParameters, index: int) -> int | None:
    """Return the seed of one of several choices, or ``None`` for a random one.

    The daemon's seed goes through a C int, where a negative one is random.
    """
    return None if sampling.seed is None else (sampling.seed + index) % _MAX_SEED


def _options(request: ChatRequest) -> dict[str, Any]:
    options = {name: getattr(request.sampling, name) for name in _OPTIONS if name in request.given_sampling}
    if request.max_tokens is not None:
        options["num_predict"] = request.max_tokens
    if request.stop:
        options["stop"] = list(request.stop)
    if request.num_ctx is not None:
        options["num_ctx"] = request.num_ctx
    if (seed := seed_of_choice(request.sampling, 0)) is not None:
        options["seed"] = seed
    return options


def _format(request: ChatRequest) -> object:
    if isinstance(request.response_format, JsonSchemaFormat):
        return dict(request.response_format.schema) or "json"
    return "json" if isinstance(request.response_format, JsonObjectFormat) else None


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": dict(tool.parameters)}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _messages(request: ChatRequest, images: Images, instruction: str | None) -> list[dict[str, Any]]:
    names: dict[str, str] = {}  # of the calls so far: an id may come again
    messages = []
    for index, message in enumerate(request.messages):
        messages.append(_message(message, f"messages[{index}]", names, images))
        names |= {call.id: call.name for call in message.tool_calls}
    return messages if instruction is None else _with_instruction(messages, instruction)


def _message(message: Message, path: str, names: Mapping[str, str], images: Images) -> dict[str, Any]:
    role = Role.SYSTEM if message.role is Role.DEVELOPER else message.role
    entry: dict[str, Any] = {"role": role.value, "content": message.content}
    if message.reasoning:
        entry["thinking"] = message.reasoning
    if message.images:
        entry["images"] = [images[image.path] for image in message.images]
    if message.tool_calls:
        entry["tool_calls"] = [
            {
                "id": call.id,
                "function": {
                    "index": index,
                    "name": call.name,
                    "arguments": _arguments(call.arguments, f"{path}.tool_calls[{index}].function.arguments"),
                },
            }
            for index, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        entry["tool_call_id"] = message.tool_call_id
        if message.tool_call_id in names:
            entry["tool_name"] = names[message.tool_call_id]
    return entry


def _arguments(text: str, path: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"Invalid value for '{path}': expected a JSON object as text.", param=path)
    return arguments


def _with_instruction(messages: Sequence[dict[str, Any]], instruction: str) -> list[dict[str, Any]]:
    """Add to the system message, because many templates take only one, and that first."""
    first, *rest = messages
    if first["role"] == Role.SYSTEM.value:
        return [{**first, "content": f"{first['content']}\n\n{instruction}"}, *rest]
    return [{"role": Role.SYSTEM.value, "content": instruction}, *messages]
