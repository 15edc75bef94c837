"""What the engine needs of a model: protocols that the llama layer implements and tests script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from server.core.batch import Chunk, DeviceSampling, KVMemory, RunnerShape, State

__all__ = ["Chunk", "DeviceSampling", "KVMemory", "Logits", "Runner", "RunnerShape", "State", "Tokens", "Vocabulary"]

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]


class Runner(Protocol):
    """A loaded model with its KV cache. Only the engine's thread calls it."""

    @property
    def shape(self) -> RunnerShape:
        """The sizes that admission and scheduling respect."""
        ...

    def warm_up(self) -> None:
        """Compute something small, so that no user pays for first use. Called once, on the engine's thread.

        Raises:
            Exception: the model cannot compute.

        """
        ...

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        """Compute the chunks in one batch.

        Returns:
            The rows of logits that the chunks ask for, in order: shape (rows, vocabulary_size), float32. The memory is
            valid until the next call.

        Raises:
            NoFreeCells: the batch finds no room; nothing was computed, and no cell has changed.
            Exception: nothing can be said about the sequences of this batch any more.

        """
        ...

    def sample_on_device(self, sequence_id: int, sampling: DeviceSampling | None) -> bool:
        """Have the device draw the tokens of a sequence from now on, or (``None``) leave that to the caller again.

        Returns:
            False if it cannot: sampling on the device is off, or not every filter is supported there.

        """
        ...

    def drawn(self) -> Tokens:
        """Tokens that the device drew in the last ``decode``, one for each of its rows.

        It is -1 where it did not, and only there the row of logits is valid.
        """
        ...

    def share_prefix(self, source: int, target: int, length: int) -> bool:
        """Make ``target`` hold exactly the first ``length`` tokens of ``source``, which may be ``target`` itself.

        Returns:
            False if the model's memory cannot do that (recurrent state, a sliding window that moved on); ``target`` is
            then empty and ``source``, when it is another sequence, untouched.

        """
        ...

    def join_prefix(self, source: int, target: int, length: int) -> bool:
        """Have ``target`` use the cells of ``source`` for the first ``length`` tokens, which are the same in both.

        Returns:
            False if the memory cannot do that (``KVMemory.can_join``); nobody knows what ``target`` holds then.

        """
        ...

    def clear(self, sequence_id: int) -> None:
        """Drop all tokens of a sequence."""
        ...

    def num_state_bytes(self, sequence_id: int) -> int:
        """Return what ``save`` would take now; 0 if it cannot."""
        ...

    def save(self, sequence_id: int) -> State | None:
        """Copy what a sequence holds into main memory; ``None`` if that is impossible."""
        ...

    def restore(self, sequence_id: int, state: State) -> bool:
        """Fill an empty sequence with what was saved of any.

        Returns:
            False if it cannot, for want of cells, say; the sequence is empty again.

        """
        ...

    def rest(self) -> None:
        """Nothing is to be computed for a while: give up what an idle thread holds and others could use."""
        ...


class Vocabulary(Protocol):
    """The token table of a model."""

    def piece(self, token: int) -> bytes:
        """Bytes that the token adds to the text; empty for control tokens."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        ...

    @property
    def end_tokens(self) -> Sequence[int]:
        """All tokens for which ``is_end`` holds."""
        ...
