"""Formats whose answers are not text with calls in it, but have a shape of their own from the first character."""

from __future__ import annotations

from abc import ABC, abstractmethod

from server.chat.answer_format import AnswerParser, AnswerPlan, ControlToken, ReasoningStart
from server.chat.answer_writer import AnswerWriter
from server.chat.lark import LarkGrammar, sequence
from server.chat.scanner import Reading, Scanner
from server.chat.tagged import ReadingParser


class WholeFormat(ABC):
    """``AnswerFormat`` made of one reader for all of an answer, and one expression for it."""

    name: str
    """What the documentation calls it."""
    families: tuple[str, ...]
    """The families of models that answer so, for the documentation."""
    example: str
    """One call, for the documentation."""
    markers: frozenset[str] = frozenset()
    """Texts that the parser has to see even where the model writes them as control tokens."""
    thinking_end: str | None = None
    """The text that ends thinking."""
    speaks_plainly: bool = False
    """Whether an answer is content as it is, where there are no tools and no thinking."""
    thinking_opening: str | None = None
    """The end of a prompt that has opened the thinking."""

    def thinking_closing(self, _plan: AnswerPlan) -> str | None:
        """Return what ends the thinking."""
        return self.thinking_end

    def reasoning_start(self, prompt: str) -> ReasoningStart:
        """Look whether the prompt has opened the thinking."""
        if self.thinking_opening is None:
            return ReasoningStart.NEVER
        return ReasoningStart.OPEN if prompt.rstrip().endswith(self.thinking_opening) else ReasoningStart.POSSIBLE

    def parser(self, plan: AnswerPlan) -> AnswerParser:
        """Make the parser for one choice."""
        return ReadingParser(lambda scanner, writer: self.read(scanner, writer, plan), plan=plan)

    def grammar(self, plan: AnswerPlan, control_token: ControlToken) -> str | None:
        """Return the grammar of the whole answer, ``None`` if it may be anything."""
        if plan.is_free:
            return None
        grammar = LarkGrammar(self.markers, control_token)
        return grammar.build(self.expression(grammar, plan))

    @abstractmethod
    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read an answer from its first character to its end."""

    @abstractmethod
    def expression(self, grammar: LarkGrammar, plan: AnswerPlan) -> str:
        """Return an expression for the answers that a plan allows, which is not free."""


class MessagesFormat(WholeFormat):
    """Answers in several messages, of which the prompt has begun the first."""

    message_opening: str
    """The token that begins a message, before the word ``assistant``."""
    speech_opening: str
    """What says of a message that it is for the user, before its text."""
    call_opening: str = ""
    """What says of a message that it is a call, as far as all calls begin alike."""
    endings: tuple[str, ...]
    """The tokens that end one; ``message_opening`` too, in case they are missing."""

    def thinking_closing(self, plan: AnswerPlan) -> str | None:
        """Return what ends the message of thoughts, and the beginning of one that has no more of them."""
        opening = self.call_opening if plan.must_call else self.speech_opening
        return None if self.thinking_end is None else f"{self.thinking_end}{self.message_opening}assistant{opening}"

    def read(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[None]:
        """Read messages up to the end."""
        is_open = plan.reasoning is ReasoningStart.OPEN
        ending = yield from (self.read_thought if is_open else self.read_message)(scanner, writer, plan)
        while ending is not None:
            if ending != self.message_opening:
                yield from scanner.skip_space()
                yield from scanner.take(self.message_opening)
            yield from scanner.take("assistant")
            ending = yield from self.read_message(scanner, writer, plan)

    @abstractmethod
    def read_message(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[str | None]:
        """Read a message, behind the word ``assistant``, through its ending; return that, ``None`` if none comes."""

    def read_thought(self, scanner: Scanner, writer: AnswerWriter, plan: AnswerPlan) -> Reading[str | None]:
        """Read what a message of thoughts holds, through its ending, which is returned."""
        is_apart = not plan.is_reasoning_raw
        writer.begin_reasoning(is_apart=is_apart)
        endings = () if self.thinking_end is None else (self.thinking_end,)
        ending = yield from scanner.until(endings, writer.reasoning if is_apart else writer.content)
        if ending is not None and not is_apart:
            writer.content(ending, scanner.offset - len(ending))
        writer.end_reasoning(is_apart=is_apart)
        return ending

    def thoughts(self, grammar: LarkGrammar, plan: AnswerPlan, ending: str) -> str:
        """Return an expression for the messages of thoughts that a plan allows, and for the opening of the next."""
        if plan.reasoning is ReasoningStart.NEVER or self.thinking_opening is None:
            return ""
        through = sequence([grammar.through(ending), grammar.literal(f"{self.message_opening}assistant")])
        more = f"({grammar.literal(self.thinking_opening)} {through})*"
        return sequence([through, more]) if plan.reasoning is ReasoningStart.OPEN else more
