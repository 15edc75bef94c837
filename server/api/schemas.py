"""The wire types of the OpenAI API: what a request body may look like before anyone asks what it means.

Types are strict (a string is not a number, a bool is not an integer). Keys that are not listed here are refused, or
kept aside in ``model_extra`` for ``server.api.unsupported`` to judge. What depends on the configuration or on several
fields is checked in ``server.api.convert``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

_INT32_MAX = 2**31 - 1
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1

# Far beyond real conversations. Parsing stops there: it holds up all other requests meanwhile.
MAX_MESSAGES, MAX_PARTS, MAX_TOOL_CALLS, MAX_TOOLS, MAX_CHOICES = 100_000, 4096, 1024, 1024, 65_536
_MAX_CONTEXT = 2**24

# OpenAI's names have no dots; those of tools that agents get from MCP servers have.
FUNCTION_NAME = r"^[A-Za-z0-9_.\-]{1,64}$"
SCHEMA_NAME = r"^[A-Za-z0-9_\-]{1,64}$"

# Pydantic puts the tag of a union's branch into the location of an error; `server.api.errors` takes these out again.
STRING, ARRAY, OBJECT, NUMBER, ALLOWED = "(string)", "(array)", "(object)", "(number)", "(allowed)"
UNION_TAGS = frozenset({STRING, ARRAY, OBJECT, NUMBER, ALLOWED})


def _string_or_array(value: object) -> str | None:
    if isinstance(value, str):
        return STRING
    return ARRAY if isinstance(value, list) else None


def _string_or_tool_choice(value: object) -> str | None:
    if isinstance(value, str):
        return STRING
    if not isinstance(value, dict):
        return None
    return ALLOWED if value.get("type") == "allowed_tools" else OBJECT


def _string_or_number(value: object) -> str | None:
    if isinstance(value, str):
        return STRING
    return NUMBER if isinstance(value, int | float) and not isinstance(value, bool) else None


def _choice(expected: str, tag: Callable[[object], str | None] = _string_or_array) -> Discriminator:
    return Discriminator(tag, custom_error_type="wrong_type", custom_error_message=expected)


class WireModel(BaseModel):
    """Base of all request types."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class WireImageUrl(WireModel):
    """Where an image is: an ``http(s):`` URL, or the image itself as a ``data:`` URL."""

    url: str
    detail: Literal["auto", "low", "high"] | None = Field(default=None, description="Accepted; it has no effect.")


class WireContentPart(WireModel):
    """One part of a message's content: ``text``, ``image_url``, or an assistant's ``refusal``."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: WireImageUrl | None = None


class WireFunctionCall(WireModel):
    """The function that an assistant called, with its arguments as JSON text."""

    name: str = Field(min_length=1)
    arguments: str


class WireToolCall(WireModel):
    """A tool call of an earlier assistant message."""

    id: str
    type: Literal["function"] = "function"
    function: WireFunctionCall
    index: int | None = Field(default=None, description="What chunks of a stream carry; sent back, it has no effect.")


_Parts = Annotated[list[WireContentPart], Field(fail_fast=True, max_length=MAX_PARTS)]
Content = Annotated[
    Annotated[str, Tag(STRING)] | Annotated[_Parts, Tag(ARRAY)],
    _choice("a string or an array of content parts"),
]


class WireMessage(WireModel):
    """One message of the conversation."""

    # the last one is older than tools, and refused with advice in `convert`
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[WireToolCall], Field(fail_fast=True, max_length=MAX_TOOL_CALLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = Field(default=None, description="What an assistant thought before it answered.")
    reasoning: str | None = Field(default=None, description="Another name of reasoning_content.")


class WireFunction(WireModel):
    """A function that the model may call."""

    name: str = Field(pattern=FUNCTION_NAME, description="Letters, digits, and any of _ . -")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        default=None, description="A JSON schema of an object; without one, the function takes no arguments."
    )
    strict: bool | None = Field(
        default=None,
        description="Whether arguments must be as the schema says even where the model calls by its own choice.",
    )


class WireTool(WireModel):
    """A tool of the request."""

    type: Literal["function"]
    function: WireFunction


class WireFunctionName(WireModel):
    """A function by its name."""

    name: str = Field(min_length=1)


class WireToolChoice(WireModel):
    """The one function to call."""

    type: Literal["function"]
    function: WireFunctionName


class WireAllowedTools(WireModel):
    """Some of the tools of the request, and whether the model has to call one of them."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[WireToolChoice], Field(fail_fast=True, min_length=1, max_length=MAX_TOOLS)]


class WireAllowedToolChoice(WireModel):
    """Only some of the tools may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: WireAllowedTools


class WireJsonSchema(WireModel):
    """What the completion is to look like."""

    name: str = Field(pattern=SCHEMA_NAME, description="Letters, digits, and any of _ -")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema", description="A JSON schema.")
    strict: bool | None = None


class WireResponseFormat(WireModel):
    """The format of the completion."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: WireJsonSchema | None = None


class WireStreamOptions(WireModel):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(
        default=None, description="Send a last chunk without choices that carries the usage of the whole request."
    )
    include_timings: bool | None = Field(
        default=None,
        description="Extension: send one more chunk without choices, after the one with the usage, whose timings say "
        "where the time of the request went, in milliseconds: queue_ms (waiting for memory and for a turn), load_ms "
        "(waiting for the model to be loaded), prompt_ms, first_token_ms (all of these) and decode_ms (from the first "
        "token to the last); with cached_tokens, prompt_tokens, completion_tokens and the backend.",
    )


class ChatCompletionBody(WireModel):
    """Body of ``POST /v1/chat/completions``."""

    model: str = Field(description="A model spec such as local/llama3.1:8b, or an alias; GET /v1/models lists them.")
    messages: Annotated[list[WireMessage], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: WireStreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=_INT32_MAX, description="Older name of the next one.")
    max_completion_tokens: int | None = Field(default=None, ge=1, le=_INT32_MAX)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=_INT64_MIN, le=_INT64_MAX)
    stop: (
        Annotated[
            Annotated[str, Tag(STRING)] | Annotated[Annotated[list[str], Field(fail_fast=True)], Tag(ARRAY)],
            _choice("a string or an array of strings"),
        ]
        | None
    ) = None
    n: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    # values are checked one by one in `convert`: a million wrong ones must not become a million error records
    logit_bias: dict[str, Any] | None = Field(
        default=None,
        description="Token ids (as strings) and what to add to their logits, from -100 to 100.",
        json_schema_extra={"additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
    )
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, Any] | None = Field(
        default=None,
        description="At most 16 strings with keys of at most 64 and values of at most 512 characters.",
        json_schema_extra={"additionalProperties": {"type": "string", "maxLength": 512}},
    )
    top_k: int | None = Field(default=None, ge=0, le=_INT32_MAX, description="Extension of llama.cpp; 0 is off.")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Extension of llama.cpp; 0 is off.")
    repeat_penalty: float | None = Field(default=None, ge=0.1, le=10, description="Extension of llama.cpp; 1 is off.")
    ignore_eos: bool | None = Field(default=None, description="Extension of llama.cpp: go on until max_tokens.")
    tools: Annotated[list[WireTool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag(STRING)]
            | Annotated[WireToolChoice, Tag(OBJECT)]
            | Annotated[WireAllowedToolChoice, Tag(ALLOWED)],
            _choice("a string or an object", _string_or_tool_choice),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    response_format: WireResponseFormat | None = None
    grammar: str | None = Field(
        default=None,
        min_length=1,
        description="Extension of llama.cpp: the completion is what this grammar (GBNF) describes.",
    )
    guided_regex: str | None = Field(
        default=None,
        min_length=1,
        description="Extension of vLLM: the completion matches this regular expression as a whole.",
    )
    guided_choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES)
        ]
        | None
    ) = Field(default=None, description="Extension of vLLM: the completion is one of these texts.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    thinking_budget: int | None = Field(
        default=None,
        ge=0,
        le=_INT32_MAX,
        description="Extension: tokens after which a model that thinks is made to answer; 0 is no thinking at all.",
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Extension of vLLM: variables for the chat template, such as enable_thinking."
    )
    keep_alive: (
        Annotated[
            Annotated[str, Tag(STRING)] | Annotated[float, Tag(NUMBER)],
            _choice("a string or a number", _string_or_number),
        ]
        | None
    ) = Field(
        default=None,
        description="Extension of Ollama; how long the model stays in memory after the answer: seconds, or a duration "
        "such as 5m; a negative value is for ever.",
    )
    num_ctx: int | None = Field(
        default=None, ge=1, le=_MAX_CONTEXT, description="Extension of Ollama; context length to load the model with."
    )


class ModelActionOptions(WireModel):
    """Body of ``POST /admin/models/{spec}/{action}``; a key that is not listed is refused."""

    model_config = ConfigDict(extra="forbid")

    force: bool = Field(
        default=False,
        description="With unload: end the requests that use the model, with an error, instead of waiting for them.",
    )


class ModelActionBody(ModelActionOptions):
    """Body of ``POST /admin/models/{action}``; a key that is not listed is refused."""

    model: str = Field(description="A spec or alias of the model.")


class PullName(WireModel):
    """Body of ``POST /admin/models/pull/cancel``; a key that is not listed is refused."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="A spec or alias, such as ollama/phi3:3.8b or hf.co/owner/repository:Q4_K_M.")
    quantization: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Which file of a repository, such as Q8_0, if the spec does not say it.",
    )


class PullBody(PullName):
    """Body of ``POST /admin/models/pull``; a key that is not listed is refused."""

    stream: bool = Field(
        default=True, description="Send the progress as server-sent events; else answer when the model is here."
    )
