"""What a test tells the stand-in to say, and what it tells it to do wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Body = Mapping[str, Any]
Ending = Literal["fin", "rst"]


@dataclass(frozen=True)
class Call:
    """A tool call of the model."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What the model says.

    Without ``text`` it repeats the last message, or makes the JSON that the request's ``format`` asks for. ``tokens``
    are the text in pieces, in place of the usual ones. ``thinking`` is said only when the request lets a model think
    that can. ``calls`` are made, after the words ``before`` them and in place of the text, when the request offers
    tools, has no ``format``, and does not end with the result of a tool.
    """

    text: str | None = None
    tokens: Sequence[str] | None = None
    thinking: str = "Let me think about that."
    calls: Sequence[Call] = ()
    before: str = ""


Speaker = Callable[[Body], Reply]
"""Makes a reply of a request's body, on the stand-in's thread."""


@dataclass(frozen=True)
class Answer:
    """This answer in place of the daemon's; with ``error`` its body is the daemon's form of an error."""

    status: int = 200
    error: str | None = None
    body: str = ""
    content_type: str = "application/json; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Garbage:
    """These bytes in place of HTTP, then the end of the connection; without bytes it just ends."""

    data: str = ""
    ending: Ending = "fin"


@dataclass(frozen=True)
class Pause:
    """Silence for a time, or until the rule is released or removed.

    It falls before the request is looked at, while the model loads (it is listed as running then), or after a number
    of lines; after 0 lines the headers are out.
    """

    where: Literal["request", "load"] | int = "request"
    seconds: float | None = None


@dataclass(frozen=True)
class Cut:
    """The answer ends after so many lines.

    ``partial`` sends half of the next line first. ``whole`` ends the answer as HTTP wants it: only the last line is
    missing. An answer that is not a stream ends in the middle of its body.
    """

    after: int = 1
    ending: Ending | Literal["whole"] = "fin"
    partial: bool = False


@dataclass(frozen=True)
class Insert:
    """A line of its own after so many lines; it may be the last."""

    line: str
    after: int = 1
    repeat: int = 1
    last: bool = False


@dataclass(frozen=True)
class Reframe:
    """The body in pieces of these numbers of bytes, over and over; without sizes it is one piece."""

    sizes: Sequence[int] = (1,)


@dataclass(frozen=True)
class CloseIdle:
    """The connection ends right after the answer, unannounced, as a keep-alive timeout ends it."""


Action = Answer | Garbage | Pause | Cut | Insert | Reframe | CloseIdle

_ACTIONS: dict[str, type[Action]] = {
    "answer": Answer,
    "garbage": Garbage,
    "pause": Pause,
    "cut": Cut,
    "insert": Insert,
    "reframe": Reframe,
    "close_idle": CloseIdle,
}


def error_line(message: str, after: int = 1) -> Insert:
    """The line with which the daemon ends a stream that went wrong."""
    return Insert(f'{{"error":"{message}"}}', after=after, last=True)


@dataclass(eq=False)
class Rule:
    """What happens to the requests that match: so many ``times``, or (``None``) until the rule is removed.

    ``reused`` matches requests that are not the first on their connection; ``skip`` lets that many pass before.
    """

    action: Action
    path: str | None = None
    model: str | None = None
    reused: bool | None = None
    skip: int = 0
    times: int | None = 1
    hits: int = 0
    released: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    post: Callable[[Callable[[], object]], object] = field(default=lambda act: act(), repr=False)
    """Runs something on the stand-in's thread."""

    def release(self) -> None:
        """End this rule's pauses, now and later."""
        self.released = True
        self.post(self.gate.set)

    def renew(self) -> None:
        """Forget who waited, on a loop that is no more."""
        self.gate = asyncio.Event()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rule:
        """Read a rule such as ``{"do": "cut", "after": 2, "path": "/api/chat"}``."""
        chosen = _ACTIONS[data["do"]]
        of_action = {name.name for name in fields(chosen)} & data.keys()
        of_rule = data.keys() - of_action - {"do"}
        action = chosen(**{name: data[name] for name in of_action})
        return cls(action, **{name: data[name] for name in of_rule})

    def takes(self, path: str, model: str, *, reused: bool) -> bool:
        """Whether the rule acts on this request, which then counts; ``model`` is the key of the model's name."""
        if self.path not in {None, path} or self.reused not in {None, reused}:
            return False
        if self.model not in {None, model}:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True
