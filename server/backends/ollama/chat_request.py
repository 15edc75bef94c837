"""From a chat request to the body of the daemon's ``/api/chat``. Pure.

The daemon's types: https://docs.ollama.com/api/chat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.backends.ollama.answer_form import AnswerForm
from server.core.errors import InvalidRequest, UnsupportedParameter
from server.core.parameters import ParameterSupport, emulated, listed, mapped, refused
from server.core.request import (
    ChatRequest,
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
    "stop": mapped("`options.stop`; the daemon also looks for them in what the model thinks, and in its calls"),
    "logprobs": mapped("`logprobs`"),
    "top_logprobs": mapped("`top_logprobs`"),
    "tools": mapped("`tools`; a call of a function that is not among them is an error"),
    "tools[].function.strict": emulated("arguments that the schema does not allow are an error"),
    "response_format": emulated(
        "`format`, and the whole answer is validated: one that is not as demanded ends with an error. With tools, the "
        "choice between a call and the answer is a schema in `format`, whose JSON is parsed back"
    ),
    "guided_choice": emulated("a schema in `format`, whose JSON string is parsed back"),
    "grammar": refused("the daemon has none"),
    "guided_regex": refused("the daemon has none"),
    "reasoning_effort": mapped("`think`"),
    "thinking_budget": refused("the daemon has none"),
    "chat_template_kwargs": mapped("`enable_thinking` or `thinking`: `think`; all others are refused"),
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
    "parallel_tool_calls": emulated(
        "false: calls after the first are dropped; a call that is required, or chosen instead of a response_format, is "
        "one in any case"
    ),
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
_THINK_OPTIONS = ("enable_thinking", "thinking")
"""What the chat templates call the switch that the daemon has."""
_MAX_SEED = 2**31 - 1

Images = Mapping[str, str]
"""Images in base64, by the path of the request field that named them."""


def chat_body(
    request: ChatRequest, form: AnswerForm | None, model: str, images: Images, keep_alive: str
) -> dict[str, Any]:
    """Build the body for one choice.

    Args:
        request: what the client wants.
        form: what the text of the answer has to be.
        model: the model as the daemon knows it.
        images: the request's images.
        keep_alive: what the operator wants where the client does not say; empty for the daemon's own.

    Raises:
        InvalidRequest: an earlier tool call has arguments that are not a JSON object, or the client says of thinking
            what cannot be.

    """
    body: dict[str, Any] = {
        "model": model,
        "messages": _messages(request, images, instruction=None if form is None else form.instruction),
        "stream": True,
        # the daemon would drop the oldest messages until the rest fits, and say nothing
        "truncate": False,
        # nor is it to drop the beginning while the completion grows: the completion ends with the context
        "shift": False,
        "options": _options(request, form),
    }
    if form is not None:
        body["format"] = form.format
    if request.tools and request.tool_choice.mode is ToolChoiceMode.AUTO and request.response_format is None:
        body["tools"] = [_tool(tool) for tool in request.tools]
    if (think := _think(request)) is not None:
        body["think"] = think
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


def _options(request: ChatRequest, form: AnswerForm | None) -> dict[str, Any]:
    options = {name: getattr(request.sampling, name) for name in _OPTIONS if name in request.given_sampling}
    if request.max_tokens is not None:
        options["num_predict"] = request.max_tokens
    if request.stop and (form is None or form.is_streamed):  # they are not for the JSON that stands for something else
        options["stop"] = list(request.stop)
    if request.num_ctx is not None:
        options["num_ctx"] = request.num_ctx
    if (seed := seed_of_choice(request.sampling, 0)) is not None:
        options["seed"] = seed
    return options


def _think(request: ChatRequest) -> bool | str | None:
    switch: bool | None = None
    for name, value in request.template_options.items():
        if value is None:
            continue
        path = f"chat_template_kwargs.{name}"
        if name not in _THINK_OPTIONS:
            raise UnsupportedParameter(
                f"Unsupported parameter: '{path}'. Ollama's templates take no variables but "
                f"{' and '.join(_THINK_OPTIONS)}; leave it out, or use a model of the other backend.",
                param=path,
            )
        if not isinstance(value, bool):
            raise InvalidRequest(f"Invalid value for '{path}': expected true or false.", param=path)
        if switch is not None and value is not switch:
            raise InvalidRequest(f"'{path}' contradicts another value of chat_template_kwargs.", param=path)
        switch = value
    if request.reasoning_effort is None:
        return switch
    level = _THINK[request.reasoning_effort]
    if switch is not None and switch is not bool(level):
        raise InvalidRequest(
            "'reasoning_effort' and 'chat_template_kwargs' contradict each other on whether to think; leave one out.",
            param="reasoning_effort",
        )
    return level


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
