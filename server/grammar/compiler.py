"""Compiling grammars for the vocabulary of one model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from threading import Lock
from weakref import ref

from llguidance import LLMatcher, LLTokenizer

from server.core.errors import InvalidOutput, InvalidRequest
from server.grammar.matcher import GrammarMatcher
from server.grammar.probe import LIMITS, brief
from server.grammar.recent import Recent

_MOST_GRAMMARS = 128
_MOST_GRAMMARS_LEN = 8 << 20
_LONGEST_GRAMMAR = 4 << 20
_SAMPLES = (b'{"', b"name", b'": ')

# Sets of tokens whose place in a grammar is looked up as a whole: what occurs within JSON strings, short or not. One
# more makes masks no cheaper, and takes a fifth of a second of a start.
_SLICES = [r'[^"\\\x00-\x1F\x7F]{1,10}', r'[^"\\\x00-\x1F\x7F]+']


class GrammarCompiler:
    """Grammars for one loaded model. Any thread may ask; what blocks is for worker threads.

    The vocabulary is made ready at the first use, or by ``prepare``: it takes some tenths of a second, in which
    llguidance lets no other thread run Python.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        control: Collection[int],
        end_tokens: Sequence[int],
        tokenize: Callable[[bytes], Sequence[int]] | None,
    ) -> None:
        """Take what is known of the vocabulary.

        Args:
            tokens: the bytes of every token; those of control tokens do not count.
            control: control tokens: grammars know them by their ids, ``<[128009]>``, and no text matches them.
            end_tokens: with which the model ends its turn.
            tokenize: the model's own tokens for a text in the middle of an answer, empty if it cannot tell; ``None``
                to force no tokens.

        """
        self._tokens = tokens
        self._control = frozenset(control).union(end_tokens)
        self._end_tokens = tuple(end_tokens)
        self._tokenize = tokenize
        self._lock = Lock()
        self._vocabulary: _Vocabulary | None = None
        self._grammars = Recent[CompiledGrammar](most=_MOST_GRAMMARS, most_size=_MOST_GRAMMARS_LEN)

    def prepare(self) -> None:
        """Make the vocabulary ready, so that the first grammar need not wait for it; blocking."""
        self._prepared()

    def _prepared(self) -> _Vocabulary:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _Vocabulary(self._tokens, self._control, self._end_tokens, self._tokenize)
                self._tokens = ()
            return self._vocabulary

    def compile(self, lark: str) -> CompiledGrammar:
        """Compile a grammar in llguidance's variant of Lark, or its JSON of several; blocking, but for known ones.

        Raises:
            InvalidRequest: it is not a grammar, too large, or nothing satisfies it.

        """
        if len(lark) > _LONGEST_GRAMMAR:
            raise InvalidRequest(
                f"What the request demands of the answer makes a grammar of {len(lark)} characters, which is more than "
                f"{_LONGEST_GRAMMAR}. Use fewer functions, or smaller schemas."
            )
        return self._grammars.get(lark, lambda: self._compile(lark))

    def _compile(self, lark: str) -> CompiledGrammar:
        vocabulary = self._prepared()
        matcher = LLMatcher(vocabulary.tokenizer, lark, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise InvalidRequest(
                f"The demanded form of the answer cannot be enforced: {brief(matcher.get_error())}. Make it simpler."
            )
        beginning = GrammarMatcher(
            matcher,
            vocabulary.tokenizer.vocab_size,
            self._end_tokens,
            forces=vocabulary.knows_tokens,
            owner=vocabulary,
        )
        try:
            beginning.copy().allowed()
        except InvalidOutput as error:
            raise InvalidRequest(f"No answer can have the form that the request demands. ({error.message})") from error
        return CompiledGrammar(beginning)


class CompiledGrammar:
    """A grammar that answers of one model can be held to."""

    def __init__(self, beginning: GrammarMatcher) -> None:
        """Keep a constraint at its beginning, to be copied."""
        self._beginning = beginning

    def start(self) -> GrammarMatcher:
        """Return a constraint at the beginning of the grammar; some microseconds, but for huge ones."""
        return self._beginning.copy()


class _Vocabulary:
    """The tokenizer that llguidance makes of a vocabulary."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        control: Collection[int],
        end_tokens: Sequence[int],
        tokenize: Callable[[bytes], Sequence[int]] | None,
    ) -> None:
        self.knows_tokens = tokenize is not None and all(tokenize(text) for text in _SAMPLES)
        # the byte 0xff marks control tokens; a text that no other has keeps them apart from each other
        marked = [b"\xff<|%d|>" % token if token in control else piece for token, piece in enumerate(tokens)]
        # Of Python's cycles the collector sees nothing that leads through llguidance: this one has to have an end.
        owner = ref(self)
        table = _Table(marked, end_tokens[0], tokenize if self.knows_tokens else None, owner)
        # in two parts, between which other threads have their turn
        plain = LLTokenizer(table, eos_token=list(end_tokens), slices=[])  # type: ignore[arg-type]
        self.tokenizer = plain.with_slices(_SLICES)
        table.tokens = ()  # llguidance has its own copy


class _Table:
    """A vocabulary in the shape that llguidance wants."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(
        self,
        tokens: Sequence[bytes],
        eos_token_id: int,
        tokenize: Callable[[bytes], Sequence[int]] | None,
        owner: ref[_Vocabulary],
    ) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_token_id
        self._tokenize = tokenize
        self._owner = owner

    def __call__(self, text: str) -> Sequence[int]:
        """Return the tokens of a text within an answer, the longest possible ones where the model cannot tell."""
        known = self._tokenize(text.encode()) if self._tokenize is not None else ()
        owner = self._owner()
        return list(known) if known or owner is None else owner.tokenizer.greedy_tokenize(text)
