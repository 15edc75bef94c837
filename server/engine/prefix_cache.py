"""Which sequence holds which tokens: what a new prompt can reuse instead of computing it.

The cache owns no KV memory. It decides; the engine acts on the runner and reports back. A sequence is free (empty), in
use by a generation, or idle: finished, with its tokens kept until its cells are needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import numpy as np

from server.engine.runner import Tokens

_NO_TOKENS: Tokens = np.empty(0, dtype=np.int32)


@dataclass(slots=True)
class _Slot:
    sequence_id: int
    tokens: Tokens = field(default_factory=lambda: _NO_TOKENS)
    in_use: bool = False
    last_used: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """A sequence to compute a prompt in, and where its first ``length`` tokens already are."""

    sequence_id: int
    source: int
    length: int


class PrefixCache:
    """The sequences of one runner. Only the engine's thread calls it."""

    def __init__(self, num_sequences: int) -> None:
        self._slots = [_Slot(sequence_id) for sequence_id in range(num_sequences)]
        self._uses = count(1)

    @property
    def num_idle_tokens(self) -> int:
        """Cells that idle sequences may occupy; shared cells count once for each sequence."""
        return sum(len(slot.tokens) for slot in self._slots if not slot.in_use)

    def claim(self, prompt: Tokens) -> Claim | None:
        """Take a sequence for ``prompt`` that reuses as much as possible; ``None`` if all are in use.

        At least the last token of the prompt is left to compute, because its logits are needed.
        """
        available = [slot for slot in self._slots if not slot.in_use]
        if not available:
            return None
        source, length = self._longest_match(prompt[:-1])
        continues = length and not source.in_use and length == len(source.tokens)
        target = source if continues else _least_worth_keeping(available, source if length else None)
        if not length:
            source = target
        target.in_use = True
        target.tokens = prompt[:length]
        target.last_used = next(self._uses)
        return Claim(target.sequence_id, source.sequence_id, length)

    def update(self, sequence_id: int, tokens: Tokens) -> None:
        """Record what a sequence in use has computed so far, so that others can share it."""
        self._slots[sequence_id].tokens = tokens

    def release(self, sequence_id: int, tokens: Tokens) -> None:
        """Give a sequence back; ``tokens`` are what its cells hold (empty if it was cleared)."""
        slot = self._slots[sequence_id]
        slot.in_use = False
        slot.tokens = tokens
        slot.last_used = next(self._uses)

    def evict(self) -> int | None:
        """Forget the least recently used idle sequence and return its id; ``None`` if there is none."""
        idle = [slot for slot in self._slots if not slot.in_use and len(slot.tokens)]
        if not idle:
            return None
        slot = min(idle, key=lambda candidate: candidate.last_used)
        slot.tokens = _NO_TOKENS
        return slot.sequence_id

    def _longest_match(self, prompt: Tokens) -> tuple[_Slot, int]:
        """Return the slot with the longest common prefix; of equals an idle one that the prompt continues whole."""

        def worth(candidate: tuple[_Slot, int]) -> tuple[int, bool, int]:
            slot, length = candidate
            return length, not slot.in_use and length == len(slot.tokens), slot.last_used

        return max(((slot, common_prefix_len(slot.tokens, prompt)) for slot in self._slots), key=worth)


def common_prefix_len(left: Tokens, right: Tokens) -> int:
    """Count the equal tokens at the beginning of both."""
    length = min(len(left), len(right))
    if length == 0:
        return 0
    differs = left[:length] != right[:length]
    first = int(differs.argmax())
    return first if differs[first] else length


def _least_worth_keeping(available: list[_Slot], source: _Slot | None) -> _Slot:
    """Empty slots first, then the least recently used; the source of the prefix last."""
    return min(available, key=lambda slot: (slot is source, len(slot.tokens) > 0, slot.last_used))
