"""A chat request after validation: unchecked input cannot reach a backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from server.core.model_spec import ModelSpec


class Role(StrEnum):
    """Who speaks; ``developer`` is OpenAI's newer name for ``system``."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an earlier assistant message made; ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image that a message shows: a ``data:`` or ``http(s):`` URL, not yet read; ``path`` names it in errors."""

    url: str
    path: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; text parts are already joined with newlines.

    ``reasoning`` is what an assistant thought before it said ``content``, when the client sends that back.
    """

    role: Role
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    images: tuple[ImageInput, ...] = ()
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; ``parameters`` is the JSON schema of its arguments.

    ``strict`` demands arguments that the schema describes, by whatever way the call comes about.
    """

    name: str
    description: str | None
    parameters: Mapping[str, object]
    strict: bool = False


class ToolChoiceMode(StrEnum):
    """Whether the model calls functions: as it likes, never, or at least one."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which functions the model calls; ``name`` with ``REQUIRED`` asks for this one."""

    mode: ToolChoiceMode = ToolChoiceMode.AUTO
    name: str | None = None


@dataclass(frozen=True, slots=True)
class JsonObjectFormat:
    """The completion is any JSON object."""


@dataclass(frozen=True, slots=True)
class JsonSchemaFormat:
    """The completion is JSON that a schema describes.

    ``strict`` demands that names in ``format`` are enforced, too, and not taken for remarks where nobody knows them.
    """

    schema: Mapping[str, object]
    strict: bool = False


@dataclass(frozen=True, slots=True)
class GrammarFormat:
    """The completion is what a grammar in llama.cpp's GBNF describes."""

    grammar: str


@dataclass(frozen=True, slots=True)
class RegexFormat:
    """The completion matches a regular expression as a whole."""

    pattern: str


@dataclass(frozen=True, slots=True)
class ChoiceFormat:
    """The completion is one of several texts."""

    choices: tuple[str, ...]


ResponseFormat = JsonObjectFormat | JsonSchemaFormat | GrammarFormat | RegexFormat | ChoiceFormat


class ReasoningEffort(StrEnum):
    """How long a model thinks before it answers."""

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"


class ReasoningOutput(StrEnum):
    """What becomes of a model's thinking in the answer: left out, given apart, or given as content, as it is."""

    HIDE = "hide"
    SPLIT = "split"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is chosen. The defaults are OpenAI's; zero ``top_k`` and ``min_p`` are off.

    ``temperature`` 0 is greedy. ``repeat_penalty`` is llama.cpp's multiplicative penalty (1 is off); the two OpenAI
    penalties are subtracted from the logits of tokens that the completion already contains.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    seed: int | None = None

    @property
    def uses_penalties(self) -> bool:
        """Whether what was said changes what is chosen."""
        return self.frequency_penalty != 0 or self.presence_penalty != 0 or self.repeat_penalty != 1


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a backend is asked to do.

    ``max_tokens`` is ``None`` when the client set no limit: the completion may then fill the context.
    ``top_logprobs`` is ``None`` when no log probabilities are wanted, else the number of alternatives per token.
    ``given_sampling`` names the fields of ``sampling`` that the client set: where a model brings defaults of its own,
    these hold for the others. ``keep_alive`` is as Ollama writes it: seconds, or a duration such as ``"5m"``; a
    negative one is for ever. ``num_ctx`` is the context length in tokens that the model is to be loaded with.
    ``template_options`` are variables for the chat template. ``thinking_budget`` is the number of tokens after which a
    model that thinks is made to answer; ``None`` for no limit but ``max_tokens``.
    ``client_key`` tells clients apart that send different API keys; ``None`` for those that send none.
    """

    spec: ModelSpec
    messages: tuple[Message, ...]
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    given_sampling: frozenset[str] = frozenset()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    top_logprobs: int | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    reasoning_effort: ReasoningEffort | None = None
    template_options: Mapping[str, object] = field(default_factory=dict)
    thinking_budget: int | None = None
    keep_alive: str | float | None = None
    num_ctx: int | None = None
    client_key: str | None = None
