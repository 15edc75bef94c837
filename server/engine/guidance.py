"""Tokens within a grammar: sample first, ask for all that is allowed only where the model wants something else.

A token y that is drawn from the whole vocabulary and allowed is kept, which happens with probability p(y); otherwise a
second draw is made among the allowed ones, A, where it is y with p(y) / p(A). Together that is p(y) / p(A): what one
draw from the allowed tokens would give, at the price of one look-up for as long as the model agrees with its grammar.
Filters cut what is drawn from, in both draws, as in llama.cpp's own sampler. Where a model has not agreed for a while,
and its likeliest token is refused, too, the first draw is saved: what decides that is known before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from server.core.errors import InvalidOutput
from server.engine.constraint import Constraint
from server.engine.drafting import Rate
from server.engine.runner import Logits
from server.engine.sampling import Sampler

_MANY_REFUSALS = 0.6
_MEMORY = 12.0  # tokens; structure and strings of JSON change that often
_PRIOR = 0.0


class Guidance:
    """Which tokens a sequence may take, and which it has to, whatever the model thinks of them."""

    def __init__(self, sampler: Sampler, constraint: Constraint | None, overdue: Callable[[], Sequence[int]]) -> None:
        """Begin before the first token.

        Args:
            sampler: draws, and sees all tokens for its penalties.
            constraint: the grammar, if there is one; it goes with the tokens that are accepted.
            overdue: tells tokens that have to come next where the constraint demands none.

        """
        self._sampler = sampler
        self._constraint = constraint
        self._overdue = overdue
        self._forced: deque[int] = deque()
        self._refusals = Rate(_MEMORY)

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow any more but the end."""
        return self._constraint is not None and self._constraint.is_complete

    def next(self, logits: Logits) -> int:
        """Return the next token, and remember it for the penalties; ``logits`` is not changed."""
        forced = self.take_forced()
        return self._sample(logits) if forced is None else forced

    def take_forced(self) -> int | None:
        """Return, once, the token that has to come next, and remember it for the penalties; ``None`` if many may."""
        if not self._forced:
            self._forced.extend((self._constraint.forced() if self._constraint else ()) or self._overdue())
        if not self._forced:
            return None
        token = self._forced.popleft()
        if self._constraint is not None and not self._constraint.allows(token):
            self._forced.clear()  # thinking cannot be ended here; it is tried again one token later
            return None
        self._sampler.observe(token)
        return token

    def accept(self, token: int) -> None:
        """Go on by the token that was returned last.

        Raises:
            LlmspellError: the grammar cannot go on.

        """
        if self._constraint is not None:
            self._constraint.accept(token)

    def _sample(self, logits: Logits) -> int:
        if self._constraint is None:
            return self._sampler.sample(logits)
        token = self._sample_allowed(logits, self._constraint)
        self._sampler.observe(token)
        return token

    def _sample_allowed(self, logits: Logits, constraint: Constraint) -> int:
        adjusted = self._sampler.adjust(logits)
        is_refused_often = self._refusals.given(_PRIOR) > _MANY_REFUSALS
        if not is_refused_often or self._asks(constraint, int(adjusted.argmax())):
            token = self._sampler.draw(adjusted)
            if self._asks(constraint, token):
                return token
        return self._draw_allowed(logits, adjusted, constraint)

    def _asks(self, constraint: Constraint, token: int) -> bool:
        is_allowed = constraint.allows(token)
        self._refusals.observe(hit=not is_allowed)
        return is_allowed

    def _draw_allowed(self, logits: Logits, adjusted: Logits, constraint: Constraint) -> int:
        ids = np.flatnonzero(constraint.allowed())
        if len(ids) == 0:
            raise InvalidOutput("The grammar of this request leads to a place from which no token goes on.")
        values = adjusted[ids]
        if adjusted is not logits and not np.isfinite(values.max()):
            values = logits[ids]  # what the request forbids is all that its grammar allows, which goes first
        return int(ids[self._sampler.draw(values)])
