"""What the engine and a model runner exchange; both know it, neither knows the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

_LEAST_ROWS = 16


def most_rows(num_sequences: int) -> int:
    """Most rows of logits of a step: one for each sequence, and enough to verify a draft of one."""
    return max(num_sequences, _LEAST_ROWS)


@dataclass(frozen=True, slots=True)
class KVMemory:
    """What the memory of a context can do with sequences.

    Attributes:
        is_unified: all sequences share the cells, and those that share a prefix share its cells; otherwise each has
            cells of its own, and a prefix is copied.
        can_cut: tokens can be dropped from the end of a sequence; recurrent state exists at its very end only.
        window_len: tokens that a sliding window sees; 0 without one.
        num_kept: tokens at the end of a sequence that a sliding window remembers; never less than ``window_len``.
            A sequence can be cut back as long as the whole window before the cut is still remembered.

    """

    is_unified: bool = True
    can_cut: bool = True
    window_len: int = 0
    num_kept: int = 0

    @property
    def can_join(self) -> bool:
        """Whether a sequence can take over cells of another one for a part of its tokens."""
        return self.is_unified and self.can_cut and not self.window_len

    def lowest_kept(self, lowest: int, num_computed: int) -> int:
        """First position that is remembered after a sequence that remembered those from ``lowest`` on has grown."""
        if not self.window_len:
            return 0
        return max(lowest, num_computed - max(self.num_kept, self.window_len))

    def lowest_saved(self, lowest: int, num_computed: int) -> int:
        """First position that is remembered in a saved copy of a sequence: the window before its last token."""
        return max(lowest, num_computed - 1 - self.window_len) if self.window_len else 0

    def can_take(self, length: int, *, num_computed: int, lowest: int) -> bool:
        """Whether the first ``length`` tokens of a sequence can be had without what follows them."""
        if length > num_computed:
            return False
        if not self.can_cut:
            return length == num_computed
        return lowest <= max(0, length - self.window_len)


@dataclass(frozen=True, slots=True)
class RunnerShape:
    """The fixed sizes of a loaded model's context.

    Attributes:
        num_sequences: sequences that can be held at once, numbered from 0.
        num_cells: KV cells of all sequences together; a token of a sequence takes one.
        sequence_len: most tokens of one sequence.
        batch_size: most tokens of one decode call.
        vocabulary_size: length of a row of logits.
        num_rows: most rows of logits of one decode call, at least ``num_sequences``.
        memory: what can be cut and shared.

    """

    num_sequences: int
    num_cells: int
    sequence_len: int
    batch_size: int
    vocabulary_size: int
    num_rows: int
    memory: KVMemory = KVMemory()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence to compute in a step.

    Attributes:
        sequence_id: which sequence.
        start: position of the first token.
        tokens: token ids.
        num_rows: how many of the tokens, the last ones, need a row of logits.

    """

    sequence_id: int
    start: int
    tokens: Sequence[int]
    num_rows: int


class State(Protocol):
    """What a runner has saved of a sequence, in main memory, which is given back with the last reference to it."""

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceSampling:
    """How tokens are drawn where the logits are computed; what a request asks for beyond that is for the caller to do.

    Attributes:
        seed: of the random numbers.
        temperature: 0 takes the likeliest token.
        top_k: 0 or less for all tokens.
        top_p: 1 for all tokens.
        min_p: 0 for all tokens.
        logit_bias: what is added to the logits of tokens, ``-inf`` to forbid one.

    """

    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
