"""A chat request after validation: unchecked input cannot reach a backend."""

from __future__ import annotations

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
class Message:
    """One message of a conversation; text parts are already joined with newlines."""

    role: Role
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


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


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a backend is asked to do.

    ``max_tokens`` is ``None`` when the client set no limit: the completion may then fill the context.
    ``top_logprobs`` is ``None`` when no log probabilities are wanted, else the number of alternatives per token.
    """

    spec: ModelSpec
    messages: tuple[Message, ...]
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    top_logprobs: int | None = None
