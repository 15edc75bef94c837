"""From the wire to ``core.request``: what the values mean, and whether they go together. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from server.api.config import ApiConfig
from server.api.convert_answer import check_finite, to_response_format, to_tools
from server.api.errors import invalid_body
from server.api.schemas import ChatCompletionBody, WireContentPart, WireMessage, WireModel
from server.chat.history import check_history
from server.core.duration import duration_seconds, is_duration
from server.core.errors import InvalidRequest, UnsupportedParameter
from server.core.model_spec import ModelSpec
from server.core.request import (
    ChatRequest,
    ImageInput,
    Message,
    ReasoningEffort,
    Role,
    SamplingParameters,
    ToolCall,
)

_TOKEN_ID = re.compile(r"[0-9]{1,10}\Z")
_MAX_TOKEN_ID = 2**31 - 1
_MAX_METADATA, _MAX_METADATA_KEY_LEN, _MAX_METADATA_VALUE_LEN = 16, 64, 512
_IMAGE = "image_url"
_UNSERVED_PARTS = frozenset({"input_audio", "file", "video_url"})
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repeat_penalty",
    "seed",
    "ignore_eos",
)
_LONGEST_SECONDS = 2**31

Body = TypeVar("Body", bound=WireModel)


def parse_body(kind: type[Body], body: bytes) -> Body:
    """Parse a request body, whatever its content type says.

    Raises:
        InvalidRequest: the body is not JSON, or not of the right shape; the message names the first wrong field.

    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise invalid_body(error) from None


def to_chat_request(
    body: ChatCompletionBody, spec: ModelSpec, config: ApiConfig, client_key: str | None = None
) -> ChatRequest:
    """Check what the types alone cannot say, and build what a backend gets.

    ``client_key`` names the API key that the request came with.

    Raises:
        InvalidRequest: values are over a limit, or contradict each other; calls and results do not belong together.
        UnsupportedParameter: a message holds something else than text.

    """
    _check_stream_options(body)
    _check_metadata(body.metadata)
    if len(body.messages) > config.max_messages:
        raise InvalidRequest(
            f"Invalid value for 'messages': {len(body.messages)} messages, at most {config.max_messages} are accepted.",
            param="messages",
        )
    messages = tuple(_to_message(message, f"messages[{index}]") for index, message in enumerate(body.messages))
    check_history(messages)
    tools, tool_choice = to_tools(body, config)
    return ChatRequest(
        spec=spec,
        messages=messages,
        sampling=_to_sampling(body, config),
        given_sampling=frozenset(name for name in _SAMPLING if getattr(body, name) is not None),
        max_tokens=_max_tokens(body),
        stop=_stop_strings(body.stop, config),
        n=_number_of_choices(body.n, config),
        top_logprobs=_top_logprobs(body),
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=to_response_format(body, config),
        reasoning_effort=None if body.reasoning_effort is None else ReasoningEffort(body.reasoning_effort),
        template_options=_template_options(body),
        thinking_budget=body.thinking_budget,
        keep_alive=_keep_alive(body.keep_alive),
        num_ctx=body.num_ctx,
        client_key=client_key,
    )


def _check_stream_options(body: ChatCompletionBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is true.", param="stream_options"
        )


def _check_metadata(metadata: Mapping[str, Any] | None) -> None:
    if not metadata:
        return
    if len(metadata) > _MAX_METADATA:
        raise InvalidRequest(
            f"Invalid value for 'metadata': {len(metadata)} entries, at most {_MAX_METADATA} are accepted.",
            param="metadata",
        )
    for key, value in metadata.items():
        if len(key) > _MAX_METADATA_KEY_LEN:
            raise InvalidRequest(
                f"Invalid key in 'metadata': at most {_MAX_METADATA_KEY_LEN} characters are accepted.", param="metadata"
            )
        if not isinstance(value, str) or len(value) > _MAX_METADATA_VALUE_LEN:
            raise InvalidRequest(
                f"Invalid value for 'metadata.{key}': expected a string of <= {_MAX_METADATA_VALUE_LEN} characters.",
                param=f"metadata.{key}",
            )


def _to_message(message: WireMessage, path: str) -> Message:
    if message.role == "function":
        raise UnsupportedParameter(
            f"Unsupported value for '{path}.role': 'function' is older than tools. Declare functions in 'tools', and "
            "send what they return in messages with the role 'tool' and a 'tool_call_id'.",
            param=f"{path}.role",
        )
    role = Role(message.role)
    if message.tool_calls and role is not Role.ASSISTANT:
        raise InvalidRequest(
            f"Invalid value for '{path}.tool_calls': only assistant messages call tools.", param=f"{path}.tool_calls"
        )
    if role is Role.TOOL and not message.tool_call_id:
        raise InvalidRequest(f"Missing required parameter: '{path}.tool_call_id'.", param=f"{path}.tool_call_id")
    return Message(
        role=role,
        content=_content(message, path),
        name=message.name,
        tool_calls=tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls or ()
        ),
        tool_call_id=message.tool_call_id,
        images=tuple(_images(message, f"{path}.content")),
        reasoning=message.reasoning_content or message.reasoning or "",
    )


def _content(message: WireMessage, path: str) -> str:
    if isinstance(message.content, str):
        return message.content
    path = f"{path}.content"
    if message.content is not None:
        return _join_parts(message.content, message.role, path)
    if message.role == "assistant" and (message.tool_calls or message.refusal):
        return message.refusal or ""
    raise InvalidRequest(
        f"Invalid type for '{path}': expected a string or an array of content parts, but got null.", param=path
    )


def _join_parts(parts: Sequence[WireContentPart], role: str, path: str) -> str:
    if not parts:
        raise InvalidRequest(
            f"Invalid value for '{path}': expected an array with at least 1 element, but got an empty array.",
            param=path,
        )
    texts = (_part_text(part, role, f"{path}[{index}]") for index, part in enumerate(parts) if part.type != _IMAGE)
    return "\n".join(texts)


def _images(message: WireMessage, path: str) -> Iterator[ImageInput]:
    parts = message.content if isinstance(message.content, list) else ()
    for index, part in enumerate(parts):
        if part.type != _IMAGE:
            continue
        place = f"{path}[{index}].{_IMAGE}"
        if message.role != "user":
            raise InvalidRequest(f"Invalid value for '{place}': only user messages show images.", param=place)
        if part.image_url is None:
            raise InvalidRequest(f"Missing required parameter: '{place}'.", param=place)
        yield ImageInput(part.image_url.url, f"{place}.url")


def _part_text(part: WireContentPart, role: str, path: str) -> str:
    if part.type in _UNSERVED_PARTS:
        raise UnsupportedParameter(
            f"Unsupported content: '{path}' is of type {part.type}, but this server takes text and images only.",
            param=path,
        )
    is_refusal = part.type == "refusal" and role == "assistant"
    if part.type != "text" and not is_refusal:
        raise InvalidRequest(
            f"Invalid value for '{path}.type': supported values are 'text' and 'image_url'.", param=f"{path}.type"
        )
    text = part.refusal if is_refusal else part.text
    if text is None:
        raise InvalidRequest(f"Missing required parameter: '{path}.{part.type}'.", param=f"{path}.{part.type}")
    return text


def _to_sampling(body: ChatCompletionBody, config: ApiConfig) -> SamplingParameters:
    defaults = SamplingParameters()
    return SamplingParameters(
        temperature=_given(body.temperature, defaults.temperature),
        top_p=_given(body.top_p, defaults.top_p),
        top_k=defaults.top_k if body.top_k is None else body.top_k,
        min_p=_given(body.min_p, defaults.min_p),
        frequency_penalty=_given(body.frequency_penalty, defaults.frequency_penalty),
        presence_penalty=_given(body.presence_penalty, defaults.presence_penalty),
        repeat_penalty=_given(body.repeat_penalty, defaults.repeat_penalty),
        logit_bias=_logit_bias(body.logit_bias or {}, config),
        ignore_eos=bool(body.ignore_eos),
        seed=body.seed,
    )


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _logit_bias(bias: Mapping[str, Any], config: ApiConfig) -> tuple[tuple[int, float], ...]:
    if len(bias) > config.max_logit_bias:
        raise InvalidRequest(
            f"Invalid value for 'logit_bias': {len(bias)} entries, at most {config.max_logit_bias} are accepted.",
            param="logit_bias",
        )
    return tuple(_bias(token, value) for token, value in bias.items())


def _bias(token: str, value: object) -> tuple[int, float]:
    if not _TOKEN_ID.match(token) or int(token) > _MAX_TOKEN_ID:
        raise InvalidRequest(
            f"Invalid key in 'logit_bias': {token[:64]!r} is not a token id; write it as a decimal integer.",
            param="logit_bias",
        )
    if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
        raise InvalidRequest(
            f"Invalid value for 'logit_bias.{token}': expected a number from -100 to 100.", param=f"logit_bias.{token}"
        )
    return int(token), float(value)


def _max_tokens(body: ChatCompletionBody) -> int | None:
    newer, older = body.max_completion_tokens, body.max_tokens
    if newer is not None and older is not None and newer != older:
        raise InvalidRequest(
            "'max_tokens' and 'max_completion_tokens' differ; send 'max_completion_tokens' only.", param="max_tokens"
        )
    return older if newer is None else newer


def _stop_strings(stop: str | list[str] | None, config: ApiConfig) -> tuple[str, ...]:
    strings = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(strings) > config.max_stop_sequences:
        raise InvalidRequest(
            f"Invalid value for 'stop': {len(strings)} strings, at most {config.max_stop_sequences} are accepted.",
            param="stop",
        )
    for index, string in enumerate(strings):
        if not 1 <= len(string) <= config.max_stop_len:
            path = "stop" if isinstance(stop, str) else f"stop[{index}]"
            raise InvalidRequest(
                f"Invalid value for '{path}': expected a string of 1 to {config.max_stop_len} characters.", param=path
            )
    return strings


def _number_of_choices(n: int | None, config: ApiConfig) -> int:
    if n is not None and n > config.max_n:
        raise InvalidRequest(f"Invalid value for 'n': expected a value <= {config.max_n}.", param="n")
    return n or 1


def _top_logprobs(body: ChatCompletionBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequest("'top_logprobs' requires 'logprobs' to be true.", param="top_logprobs")
    return None


def _template_options(body: ChatCompletionBody) -> Mapping[str, object]:
    check_finite(body.chat_template_kwargs, "chat_template_kwargs")
    return body.chat_template_kwargs or {}


def _keep_alive(value: str | float | None) -> str | float | None:
    if isinstance(value, str) and not is_duration(value):
        raise InvalidRequest(
            f"Invalid value for 'keep_alive': {value[:64]!r} is not a duration; write seconds as a number, or a number "
            "with a unit, such as 90s, 5m or 1h30m.",
            param="keep_alive",
        )
    if value is not None and abs(duration_seconds(value)) > _LONGEST_SECONDS:
        raise InvalidRequest(
            "Invalid value for 'keep_alive': that is too long; -1 keeps the model in memory for ever.",
            param="keep_alive",
        )
    return int(value) if isinstance(value, float) and value.is_integer() else value
