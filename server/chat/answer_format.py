"""What families of models agree on with their chat templates: where an answer thinks, where it speaks, where it calls.

An ``AnswerFormat`` belongs to a model. For each request it makes a parser for every choice, which takes the text as it
is generated apart, and a grammar, which keeps the model to the format where the request demands something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, runtime_checkable

from server.core.request import ResponseFormat, Tool


@dataclass(frozen=True, slots=True)
class Content:
    """What the model says to the user.

    ``begin`` is the offset of its first character in all the text that the parser was given: content is never
    rewritten, so that tokens and what is said of them can be told apart by their place.
    """

    text: str
    begin: int


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model thinks before it answers, without the tags around it."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A call of a function begins; its arguments follow."""

    name: str
    call_id: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next piece of the latest call's arguments; the pieces of a complete call together are a JSON object."""

    text: str


Part = Content | Reasoning | CallBegan | CallArguments


class AnswerParser(Protocol):
    """Takes one answer apart while it is generated. Text that may still become a marker is held back."""

    @property
    def is_reasoning(self) -> bool:
        """Whether the model is thinking: what it says next is no content yet."""
        ...

    @property
    def num_calls(self) -> int:
        """Calls that are complete."""
        ...

    def push(self, text: str) -> Sequence[Part]:
        """Take the next text and return what became certain."""
        ...

    def finish(self) -> Sequence[Part]:
        """End the answer and return what was held back. A call that was cut off stays as incomplete as it is."""
        ...


class ReasoningStart(Enum):
    """Where an answer stands, with regard to thinking, when the prompt ends."""

    NEVER = auto()
    """There is no thinking, or the prompt has ended it already."""
    POSSIBLE = auto()
    """The model may open its thinking."""
    OPEN = auto()
    """The prompt has opened it."""


@dataclass(frozen=True, slots=True)
class LarkFormat:
    """The content is what a grammar in llguidance's variant of Lark describes."""

    grammar: str


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """What the answer to a request may be.

    Attributes:
        tools: functions that may be called; none if the request has none, or wants none to be called.
        must_call: whether at least one of them has to be.
        is_parallel: whether more than one call is wanted.
        response_format: what the content has to be, where the model does not call.
        reasoning: whether the model thinks first.
        is_reasoning_raw: whether thinking is content like any other, with its tags, for clients that split it.

    """

    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    is_parallel: bool = True
    response_format: ResponseFormat | LarkFormat | None = None
    reasoning: ReasoningStart = ReasoningStart.NEVER
    is_reasoning_raw: bool = False

    @property
    def is_free(self) -> bool:
        """Whether the answer may be anything."""
        return not self.tools and self.response_format is None


ControlToken = Callable[[str], int | None]
"""The id of the control token with a text; ``None`` if the model writes that text with ordinary tokens."""


class Family(Protocol):
    """A way to write that families of models have in common. Stateless, shared by all requests of a model."""

    @property
    def name(self) -> str:
        """What the documentation calls it."""
        ...

    @property
    def families(self) -> tuple[str, ...]:
        """The families of models that write so, for the documentation."""
        ...

    @property
    def example(self) -> str:
        """One call as the model writes it, for the documentation."""
        ...

    @property
    def markers(self) -> frozenset[str]:
        """Texts that the parser has to see even where the model writes them as control tokens."""
        ...


@runtime_checkable
class AnswerFormat(Family, Protocol):
    """One family's way to think, speak and call."""

    @property
    def thinking_end(self) -> str | None:
        """The text that ends thinking, as the model writes it; ``None`` if it never thinks."""
        ...

    def thinking_closing(self, plan: AnswerPlan) -> str | None:
        """Return what is written for a model to end its thinking, and to go on with what the plan wants then."""
        ...

    @property
    def speaks_plainly(self) -> bool:
        """Whether an answer is content as it is, where there are no tools and no thinking: it needs no parser then."""
        ...

    def reasoning_start(self, prompt: str) -> ReasoningStart:
        """Tell from the end of a rendered prompt whether the answer begins with thinking."""
        ...

    def parser(self, plan: AnswerPlan) -> AnswerParser:
        """Make the parser for one choice."""
        ...

    def grammar(self, plan: AnswerPlan, control_token: ControlToken) -> str | None:
        """Return a grammar for the whole answer, thinking included; ``None`` where nothing needs to be enforced.

        It is written for llguidance, in its variant of Lark:
        https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
        """
        ...
