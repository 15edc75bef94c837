"""What the engine and a model runner exchange; both know it, neither knows the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunnerShape:
    """The fixed sizes of a loaded model's context.

    Attributes:
        num_sequences: sequences that can be held at once, numbered from 0.
        num_cells: KV cells shared by all sequences; a token of a sequence takes one.
        sequence_len: most tokens of one sequence.
        batch_size: most tokens of one decode call.
        vocabulary_size: length of a row of logits.

    """

    num_sequences: int
    num_cells: int
    sequence_len: int
    batch_size: int
    vocabulary_size: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence to compute in a step; the first one has position ``start``."""

    sequence_id: int
    start: int
    tokens: Sequence[int]
    wants_logits: bool
