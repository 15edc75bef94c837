"""Following a compiled grammar token by token, for one sequence."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from server.core.errors import InvalidOutput
from server.grammar.probe import brief

Allowed = npt.NDArray[np.bool_]

_WORD_BITS = 32
_PATIENCE = 0.5
_SECONDS_PER_TOKEN = 0.01
"""A hundred times of what usual schemas take."""


class GrammarMatcher:
    """``engine.constraint.Constraint`` over a matcher of llguidance.

    Once something has gone wrong, a limit that was reached, say, llguidance answers as if only the end were allowed.
    Here that is an error, so that an answer is never taken for complete.
    """

    def __init__(
        self, matcher: LLMatcher, vocabulary_size: int, end_tokens: Collection[int], *, forces: bool, owner: object
    ) -> None:
        """Start where a matcher stands.

        Args:
            matcher: nobody else uses it.
            vocabulary_size: number of tokens.
            end_tokens: with which a model ends its turn.
            forces: whether it is known which tokens the model writes a text with.
            owner: what llguidance asks for tokens; it is kept as long as the matcher.

        """
        self._owner = owner
        self._matcher = matcher
        self._size = vocabulary_size
        self._end_tokens = end_tokens
        self._ends = list(end_tokens)
        self._forces = forces
        self._seconds = 0.0
        self._num_accepted = 0
        self._words: npt.NDArray[np.int32] | None = None

    def copy(self) -> GrammarMatcher:
        """Return one that goes its own way from here."""
        return GrammarMatcher(
            self._matcher.deep_copy(), self._size, self._end_tokens, forces=self._forces, owner=self._owner
        )

    def allows(self, token: int) -> bool:
        """Whether a token may come next.

        Raises:
            InvalidOutput: the grammar has become too complex.

        """
        if self.is_complete:
            return token in self._end_tokens
        if not 0 <= token < self._size:
            return False
        with self._accounted():
            return self._matcher.validate_tokens([token]) == 1

    def allowed(self) -> Allowed:
        """Return which tokens may come next: shape (vocabulary_size,).

        Where the text is certain, those are the tokens that the model would write it with itself.

        Raises:
            InvalidOutput: the grammar has become too complex, or there is no way on.

        """
        if self.is_complete:
            only_ends = np.zeros(self._size, dtype=np.bool_)
            only_ends[self._ends] = True
            return only_ends
        if self._words is None:
            self._words = np.empty(-(-self._size // _WORD_BITS), dtype=np.int32)
        with self._accounted():
            self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little", count=self._size)
        allowed: Allowed = bits.view(np.bool_)
        if not self._matcher.is_accepting():
            allowed[self._ends] = (
                False  # a grammar that goes on by one: whoever reads it would take the answer for whole
            )
        if not allowed.any():
            raise InvalidOutput("The model has no token that goes on as the grammar of the answer demands.")
        return allowed

    def accept(self, token: int) -> None:
        """Go on by a token that is allowed.

        Raises:
            InvalidOutput: the grammar cannot go on: the token is not allowed, or the grammar has become too complex.

        """
        if self.is_complete:
            if token not in self._end_tokens:
                raise InvalidOutput("The answer goes on after its grammar's end.")
            return
        self._num_accepted += 1
        with self._accounted():
            self._matcher.consume_token(token)

    def forced(self) -> Sequence[int]:
        """Return tokens that have to come next; they are not accepted yet.

        Raises:
            InvalidOutput: the grammar has become too complex.

        """
        if not self._forces or self.is_complete:
            return ()
        with self._accounted():
            return self._matcher.compute_ff_tokens()

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow any more but the end."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @contextmanager
    def _accounted(self) -> Iterator[None]:
        """Notice errors, and give up what takes too long: everybody else's tokens wait for this one's."""
        before = time.thread_time()
        yield
        self._seconds += time.thread_time() - before
        if self._matcher.is_error():
            raise InvalidOutput(
                "The answer could not be held to its grammar any longer: make the schema or the grammar simpler. "
                f"({brief(self._matcher.get_error())})"
            )
        if self._seconds > _PATIENCE and self._seconds > _SECONDS_PER_TOKEN * self._num_accepted:
            raise InvalidOutput(
                "Holding the answer to its grammar takes too long: there are too many ways to read it. Make it simpler."
            )
