"""The answers of most models: thinking between tags, then text for the user, with calls in it that a marker begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.chat.answer_format import AnswerParser, AnswerPlan, Content, ControlToken, Family, Part, ReasoningStart
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, sequence
from server.chat.scanner import Malformed, Reading, Scanner


@dataclass(frozen=True, slots=True)
class ThinkingTags:
    """What stands before and after a model's thinking.

    Attributes:
        opening: the text before it.
        closing: the text behind it; alone at the beginning of an answer it says that there was no thinking.
        markers: the control tokens that the two are made of, where they are not such tokens as a whole.
        is_repeated: whether the model may think again later; content then never has these texts in it.
        unsaid: other texts around what is said that are not said to anybody.
        is_ended_by_calls: whether the model may begin to call without closing its thinking.

    """

    opening: str
    closing: str
    markers: frozenset[str] = frozenset()
    is_repeated: bool = False
    unsaid: tuple[str, ...] = ()
    is_ended_by_calls: bool = False


@dataclass(frozen=True, slots=True)
class SpeechTags:
    """What stands before and after what a model says to the user, if that stands between tags, too."""

    opening: str
    closing: str


class CallSyntax(Family, Protocol):
    """How a family of models writes calls; one small module each. Its ``markers`` include the trigger."""

    @property
    def trigger(self) -> str:
        """The text with which calls begin; it occurs nowhere else."""
        ...

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read what follows the trigger, to the end of the call, or of the group of calls that it begins.

        Raises:
            Malformed: it is no call; if none has been begun, it becomes content.

        """
        ...

    def rest(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for what follows the trigger: one call, or a group if the syntax knows groups.

        A syntax with groups respects ``plan.is_parallel`` in there.
        """
        ...


class TaggedFormat:
    """``AnswerFormat`` made of thinking tags and a syntax for calls."""

    def __init__(
        self, calls: CallSyntax, thinking: ThinkingTags | None = None, speech: SpeechTags | None = None
    ) -> None:
        self._calls = calls
        self._thinking = thinking
        self._speech = speech

    @property
    def name(self) -> str:
        """What the documentation calls the way to call."""
        return self._calls.name

    @property
    def families(self) -> tuple[str, ...]:
        """The families of models that call so."""
        return self._calls.families

    @property
    def example(self) -> str:
        """One call."""
        return self._calls.example

    @property
    def markers(self) -> frozenset[str]:
        """Texts that the parser has to see even where the model writes them as control tokens."""
        markers = self._calls.markers
        if self._thinking is not None:
            tags = self._thinking.markers or {self._thinking.opening, self._thinking.closing}
            markers = markers.union(tags, self._thinking.unsaid)
        return markers if self._speech is None else markers.union((self._speech.opening, self._speech.closing))

    @property
    def thinking_end(self) -> str | None:
        """The closing tag."""
        return None if self._thinking is None else self._thinking.closing

    def thinking_closing(self, _plan: AnswerPlan) -> str | None:
        """Return the closing tag on a line of its own, and an empty line."""
        return None if self._thinking is None else f"\n{self._thinking.closing}\n\n"

    @property
    def speaks_plainly(self) -> bool:
        """Whether what is said to the user stands without tags."""
        return self._speech is None

    def reasoning_start(self, prompt: str) -> ReasoningStart:
        """Look for tags at the end of the prompt, where some templates open thinking, or close it at once."""
        if self._thinking is None:
            return ReasoningStart.NEVER
        end = prompt.rstrip()
        if end.endswith(self._thinking.opening.rstrip()):
            return ReasoningStart.OPEN
        if end.endswith(self._thinking.closing.rstrip()):
            return ReasoningStart.NEVER
        return ReasoningStart.POSSIBLE

    def parser(self, plan: AnswerPlan) -> AnswerParser:
        """Make the parser for one choice."""
        return ReadingParser(lambda scanner, writer: self._read(scanner, writer, plan), plan=plan)

    def grammar(self, plan: AnswerPlan, control_token: ControlToken) -> str | None:
        """Return the grammar of the whole answer, ``None`` if it may be anything."""
        if plan.is_free:
            return None
        grammar = LarkGrammar(self.markers, control_token)
        space = "/[ \\n]{0,2}/" if plan.must_call else ""  # which some families write before calls
        return grammar.build(sequence([self._thought(grammar, plan), space, self._answer(grammar, plan)]))

    def _thought(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        if self._thinking is None or plan.reasoning is ReasoningStart.NEVER:
            return ""
        through = grammar.through(self._thinking.closing)
        if plan.reasoning is ReasoningStart.OPEN:
            return sequence([through, "/\\n{0,2}/"])
        opened = f"{grammar.literal(self._thinking.opening)} {through}"
        return f"(/\\n?/ ({opened} | {grammar.literal(self._thinking.closing)}) /\\n{{0,2}}/)?"

    def _answer(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        if not plan.tools:
            return self._content(grammar, plan)
        rest = grammar.rule(self._calls.rest(grammar, plan))
        call = grammar.rule(sequence([grammar.literal(self._calls.trigger), rest]))
        calls = f"{call} (/\\n?/ {call})*" if plan.is_parallel else call
        if plan.must_call:
            return calls
        if plan.response_format is not None:
            return f"({calls} | {self._content(grammar, plan)})"
        later = sequence([grammar.through(self._calls.trigger), rest])
        text = grammar.any_text(without=self._calls.trigger)
        free = f"({later})* {text}" if plan.is_parallel else f"({later} | {text})"
        return free if self._speech is None else f"({free} | {self._spoken(grammar, text)})"

    def _content(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        if plan.response_format is None:
            return ""
        return self._spoken(grammar, grammar.content(plan.response_format))

    def _spoken(self, grammar: LarkGrammar, content: str) -> str:
        if self._speech is None:
            return content
        return f"{grammar.literal(self._speech.opening)} {content} ({grammar.literal(self._speech.closing)})?"

    def _read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        yield from self._read_thinking_first(scanner, writer, plan)
        calls = (self._calls.trigger,) if plan.tools else ()
        thinking, unsaid = "", frozenset[str]()
        if self._thinking is not None:
            thinking = self._thinking.opening if self._thinking.is_repeated else ""
            unsaid = frozenset(self._thinking.unsaid).union([self._thinking.closing] if thinking else [])
        if self._speech is not None:
            unsaid = unsaid.union((self._speech.opening, self._speech.closing))
        markers = (*calls, *sorted(unsaid), *([thinking] if thinking else []))
        while (marker := (yield from scanner.until(markers, writer.content))) is not None:
            if marker in calls:
                yield from read_calls(scanner, writer, self._calls, plan)
            elif plan.is_reasoning_raw:
                writer.content(marker, scanner.offset - len(marker))
            elif marker == thinking:
                yield from self._read_thinking(scanner, writer, plan)
            else:
                writer.leave_out()

    def _read_thinking_first(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        if self._thinking is None or plan.reasoning is ReasoningStart.NEVER:
            return
        if plan.reasoning is ReasoningStart.POSSIBLE:
            scanner.mark()
            yield from scanner.skip_space()
            opens = yield from scanner.take(self._thinking.opening)
            closes = not opens and (yield from scanner.take(self._thinking.closing))
            before = scanner.lift()
            if plan.is_reasoning_raw or not (opens or closes):
                writer.content(*before)
            elif closes:
                writer.leave_out()
            if not opens:
                return
        yield from self._read_thinking(scanner, writer, plan)

    def _read_thinking(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read thinking that has been opened."""
        if self._thinking is None:
            return
        writer.begin_reasoning(is_apart=not plan.is_reasoning_raw)
        emit = writer.content if plan.is_reasoning_raw else writer.reasoning
        closing, trigger = self._thinking.closing, self._calls.trigger
        may_call = self._thinking.is_ended_by_calls and bool(plan.tools)
        marker = yield from scanner.until((closing, trigger) if may_call else (closing,), emit)
        if marker == trigger:
            scanner.step_back(len(trigger))
        elif marker is not None and plan.is_reasoning_raw:
            writer.content(marker, scanner.offset - len(marker))
        writer.end_reasoning(is_apart=not plan.is_reasoning_raw)


def read_calls(scanner: Scanner, writer: AnswerWriter, calls: CallSyntax, plan: AnswerPlan) -> Reading[None]:
    """Read calls whose trigger has been read; what turns out to be none is content."""
    yield from read_or_say(scanner, writer, calls.trigger, calls.read(scanner, writer, plan))


def read_or_say(scanner: Scanner, writer: AnswerWriter, trigger: str, reading: Reading[None]) -> Reading[bool]:
    """Read what should be calls, after their trigger; if it turns out to be none, all of it is content.

    Returns:
        Whether a call has begun.

    """
    trigger_begin, num_before = scanner.offset - len(trigger), writer.num_calls

    def has_begun() -> bool:
        return writer.has_open_call or writer.num_calls > num_before

    scanner.mark()
    try:
        for _ in reading:
            if has_begun():
                scanner.lift()  # a long call is not kept
            yield
        is_call = has_begun()
    except Malformed:
        is_call = has_begun()
        writer.abandon_call()
    text, _ = scanner.lift()
    if not is_call:
        writer.content(trigger + text, trigger_begin)
    return is_call


class ReadingParser:
    """``AnswerParser`` around a generator that reads from a scanner and writes what it finds."""

    def __init__(self, read: Callable[[Scanner, AnswerWriter], Reading[None]], *, plan: AnswerPlan) -> None:
        self._scanner = Scanner()
        self._writer = AnswerWriter(trims_content=bool(plan.tools))
        self._must_call = plan.must_call
        self._reading = read(self._scanner, self._writer)
        self._is_done = False
        self._resume()

    @property
    def is_reasoning(self) -> bool:
        """Whether the model is thinking."""
        return self._writer.is_reasoning

    @property
    def num_calls(self) -> int:
        """Calls that are complete."""
        return self._writer.num_calls

    def push(self, text: str) -> Sequence[Part]:
        """Take the next text and return what became certain."""
        self._scanner.feed(text)
        self._resume()
        return self._writer.take()

    def finish(self) -> Sequence[Part]:
        """End the answer and return what was held back."""
        self._scanner.end()
        self._resume()
        self._writer.finish()
        parts = self._writer.take()
        # what is no call in an answer that has to be one is the beginning of a call that was cut off
        return [part for part in parts if not isinstance(part, Content)] if self._must_call else parts

    def _resume(self) -> None:
        if not self._is_done:
            try:
                next(self._reading)
            except StopIteration:
                self._is_done = True
