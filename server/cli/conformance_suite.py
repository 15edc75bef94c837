"""A suite of checks on one model, each of which asks a server what OpenAI's clients ask it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from server.cli.conformance_answers import check_completion, check_error, described, expect
from server.cli.conformance_wire import Mismatch, Reply, Streamed, Wire

COUNT = "Count from 1 to 10."
CUT_SHORT = "the answer was cut short, so that it could not be checked"
_FEW_TOKENS, _TOKENS_FOR_THOUGHTS, _AMPLE_TOKENS = 24, 512, 256
_UNSUPPORTED_CODES = frozenset({"unsupported_parameter", "unsupported_value"})
_BAD_REQUEST = frozenset({400})
_IGNORED = "x-llmspell-ignored"


class Unsupported(Exception):
    """The server does not have a feature, and says so; the text is what it says."""


class Result(StrEnum):
    """How a check ended."""

    PASSES = "passes"
    FAILS = "fails"
    UNSUPPORTED = "unsupported"
    """The feature is refused, with an error that says so."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check ended, and why; a check that passes may have a remark."""

    check: str
    result: Result
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """The outcomes of one model, in the order of the suite; ``error`` says why there are none."""

    model: str
    outcomes: tuple[Outcome, ...] = ()
    error: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether anything is not as clients need it."""
        return bool(self.error) or any(each.result is Result.FAILS for each in self.outcomes)


@dataclass
class Subject:
    """A model behind a wire.

    Attributes:
        wire: the way to the server.
        model: its spec.
        card: what ``/v1/models`` says of it.
        can_be_quiet: whether it can be told not to think, so that all tokens are the answer's.

    """

    wire: Wire
    model: str
    card: Mapping[str, Any] = field(default_factory=dict)
    can_be_quiet: bool = False
    _streamed: Streamed | None = None

    @property
    def thinks(self) -> bool:
        """Whether it thinks before it answers, as far as the server says."""
        return "thinking" in (self.card.get("capabilities") or ())

    @property
    def room(self) -> int:
        """Tokens that an answer needs to say something."""
        return _TOKENS_FOR_THOUGHTS if self.thinks else _FEW_TOKENS

    @property
    def ample_room(self) -> int:
        """Tokens that an answer needs to come to its end."""
        return max(self.room, _AMPLE_TOKENS)

    def body(self, prompt: str = COUNT, **parameters: object) -> dict[str, Any]:
        """Return the body of a request with one message, whose answer is always the same."""
        given: dict[str, Any] = {"max_tokens": self.room, **parameters}
        if "max_completion_tokens" in given:
            del given["max_tokens"]
        messages = given.pop("messages", [{"role": "user", "content": prompt}])
        quiet = {"reasoning_effort": "none"} if self.can_be_quiet else {}
        return {"model": self.model, "messages": messages, "temperature": 0, **quiet, **given}

    async def ask(self, prompt: str = COUNT, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
        """Return a whole answer, which has the right shape.

        Raises:
            Mismatch: it has not, or there is none.
            Unsupported: a parameter is refused, or ignored, and the server says so.

        """
        reply = await self.wire.post(self.body(prompt, **parameters))
        _require_success(reply, parameters)
        return check_completion(reply.body, int(parameters.get("n") or 1))

    async def stream(self, prompt: str = COUNT, **parameters: Any) -> Streamed:  # noqa: ANN401 - any JSON
        """Return a stream, whatever is in it.

        Raises:
            Mismatch: there is none.
            Unsupported: a parameter is refused, or ignored, and the server says so.

        """
        streamed = await self.wire.stream(self.body(prompt, **parameters))
        if isinstance(streamed, Reply):
            _require_success(streamed, parameters)
            kind = streamed.headers.get("content-type")
            raise Mismatch(f"expected a stream (text/event-stream); got {kind}")
        _require_honoured(streamed.headers, parameters)
        return streamed

    async def usual_stream(self) -> Streamed:
        """Return a stream without special wishes, which several checks look at."""
        if self._streamed is None:
            self._streamed = await self.stream()
        return self._streamed

    async def retrieve(self) -> Reply:
        """Ask what ``/v1/models`` says of the model."""
        return await self.wire.get(f"/v1/models/{quote(self.model, safe='/:@')}")


@dataclass(frozen=True, slots=True)
class Check:
    """A feature that clients rely on, by name; ``run`` gives a remark, or nothing."""

    name: str
    run: Callable[[Subject], Awaitable[str | None]]


async def run_checks(
    wire: Wire, model: str, checks: Sequence[Check], tell: Callable[[str], None] = lambda _: None
) -> ModelReport:
    """Run the checks on a model, one after the other; ``tell`` is told which one comes."""
    subject = Subject(wire, model)
    try:
        await _prepare(subject)
    except Mismatch as error:
        return ModelReport(model, error=str(error))
    outcomes = []
    for number, check in enumerate(checks, start=1):
        tell(f"{model}: {check.name} ({number} of {len(checks)})")
        outcomes.append(await _outcome(check, subject))
    return ModelReport(model, tuple(outcomes))


async def _prepare(subject: Subject) -> None:
    """Have the model loaded, and look what it can do."""
    reply = await subject.wire.post(subject.body(max_tokens=1))
    expect(reply.status == 200, "an answer of the model", described(reply))
    card = await subject.retrieve()
    if card.status == 200 and isinstance(card.body, dict):
        subject.card = card.body
    if subject.thinks:
        quiet = await subject.wire.post(subject.body(max_tokens=1, reasoning_effort="none"))
        subject.can_be_quiet = quiet.status == 200


async def _outcome(check: Check, subject: Subject) -> Outcome:
    try:
        remark = await check.run(subject)
    except Unsupported as refusal:
        return Outcome(check.name, Result.UNSUPPORTED, str(refusal))
    except Mismatch as mismatch:
        return Outcome(check.name, Result.FAILS, str(mismatch))
    except (LookupError, TypeError, AttributeError) as error:
        # what a client's own code would stumble over
        return Outcome(check.name, Result.FAILS, f"an answer that cannot be read: {type(error).__name__}: {error}")
    return Outcome(check.name, Result.PASSES, remark or "")


def _require_success(reply: Reply, parameters: Mapping[str, object]) -> None:
    if reply.status != 200:
        if reply.error.get("code") in _UNSUPPORTED_CODES:
            check_error(reply, _BAD_REQUEST)
            raise Unsupported(str(reply.error["message"]))
        raise Mismatch(f"expected an answer; got {described(reply)}")
    _require_honoured(reply.headers, parameters)


def _require_honoured(headers: Mapping[str, str], parameters: Mapping[str, object]) -> None:
    ignored = [name.strip() for name in headers.get(_IGNORED, "").split(",")]
    if among := [name for name in ignored if name.partition("[")[0] in parameters]:
        raise Unsupported(f"ignored, and listed in {_IGNORED}: {', '.join(among)}")
