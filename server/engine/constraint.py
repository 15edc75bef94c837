"""What restricts the tokens of a sequence: the seam between the engine and grammars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Allowed = npt.NDArray[np.bool_]


class Constraint(Protocol):
    """How far one sequence has come in its grammar. Only the engine's thread calls it.

    End tokens of the model count like others: they are allowed where the text may end.
    """

    def allows(self, token: int) -> bool:
        """Whether a token may come next. Cheap: sampling asks this first."""
        ...

    def allowed(self) -> Allowed:
        """Return which tokens may come next: shape (vocabulary_size,), valid until the next call of any method.

        At least one is; a grammar with no way on is complete.
        """
        ...

    def accept(self, token: int) -> None:
        """Go on by a token that is allowed.

        Raises:
            LlmspellError: the grammar cannot go on: it has become too complex, say.

        """
        ...

    def forced(self) -> Sequence[int]:
        """Return tokens that have to come next, whatever the model thinks of them; they are not accepted yet."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow any more but the end."""
        ...
