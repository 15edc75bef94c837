"""Which running sequence has which KV cells: the only one who has the runner copy, cut and clear them.

A sequence reserves at admission what it may come to need, so that it can always finish. Cells that it shares with
another running sequence count once. What is left of the cache holds prefixes of finished sequences, which make room
when a reservation needs it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Several

from server.engine.prefix_cache import Claim, PrefixCache, Wait
from server.engine.runner import Runner, Tokens
from server.engine.sequence import Sequence

_MOST_WAITS = 3

_log = logging.getLogger(__name__)


class KVCells:
    """The cells of one runner. Only the engine's thread calls it."""

    def __init__(self, runner: Runner, public: Several[Tokens], least_wait: int, *, isolates_keys: bool) -> None:
        """Start with empty cells.

        Args:
            runner: whose cells they are.
            public: token prefixes that all keys share.
            least_wait: tokens that waiting for another sequence's prefix must save.
            isolates_keys: share nothing else between keys; requests without a key count as of one.

        """
        self._runner = runner
        self._isolates_keys = isolates_keys
        self._num_cells = runner.shape.num_cells
        self._prefixes = PrefixCache(
            runner.shape.num_sequences, runner.shape.memory, public=public, least_wait=least_wait
        )
        self._placed: dict[int, Sequence] = {}
        self._num_reserved = 0

    @property
    def num_reserved(self) -> int:
        """Cells that the running sequences have or may come to need; any thread may ask."""
        return self._num_reserved

    def place(self, sequence: Sequence) -> bool:
        """Give a sequence its cells, with as much of its prompt in them as there is.

        Returns:
            Whether there was room. If not, and ``sequence.wait`` is set, the sequence waits for another one's prompt.

        """
        if self._is_waiting(sequence):
            return False
        request = sequence.generation.request
        claim = self._prefixes.claim(
            request.prompt,
            key=(request.key or "") if self._isolates_keys else None,
            can_wait=sequence.num_waits < _MOST_WAITS,
            num_reserved=sequence.num_reserved,
            room=self._num_cells - self._prefixes.num_running_cells - self._growth,
        )
        sequence.wait = None
        if isinstance(claim, Wait):
            self._wait(sequence, claim)
        if not isinstance(claim, Claim):
            return False
        self._placed[claim.sequence_id] = sequence
        sequence.sequence_id = claim.sequence_id
        sequence.num_computed = claim.length
        # before anything is evicted, which may be the source
        if not claim.length or not self._share(claim):
            self.forget(sequence)
        self._reserve()
        if self._num_reserved > self._num_cells:  # it was let in for what it would share, and cannot
            self.release(sequence)
            return False
        while self._prefixes.num_cells + self._growth > self._num_cells and self.evict():
            pass
        return True

    def fill(self, sequence: Sequence, num_tokens: int) -> None:
        """Note that a step has computed further tokens of a sequence."""
        sequence.num_computed += num_tokens
        self._prefixes.update(sequence.sequence_id, sequence.num_computed)

    def cut(self, sequence: Sequence, num_computed: int) -> None:
        """Keep just the first tokens of a sequence: those after them were guessed wrong, or are not wanted."""
        if num_computed == sequence.num_computed:
            return
        if self._runner.share_prefix(sequence.sequence_id, sequence.sequence_id, num_computed):
            sequence.num_computed = num_computed
            self._prefixes.update(sequence.sequence_id, num_computed)
        else:
            self.forget(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Empty the cells of a sequence: their contents are of no use to it, or nobody knows them."""
        sequence.num_computed = 0
        self._runner.clear(sequence.sequence_id)
        self._prefixes.update(sequence.sequence_id, 0)
        self._reserve()

    def release(self, sequence: Sequence) -> None:
        """Take a sequence's reservation back; what it has computed stays for others until cells are needed."""
        self.cut(sequence, min(sequence.num_computed, len(sequence.tokens)))  # a draft that nobody will verify
        del self._placed[sequence.sequence_id]
        self._prefixes.release(sequence.sequence_id, sequence.computed_tokens())
        self._reserve()

    def evict(self) -> bool:
        """Give up the finished sequence that is the least loss; ``False`` if there is none."""
        sequence_id = self._prefixes.evict()
        if sequence_id is not None:
            self._runner.clear(sequence_id)
        return sequence_id is not None

    def _wait(self, sequence: Sequence, wait: Wait) -> None:
        """Have a sequence wait; those before count only if they have brought nothing."""
        if wait.num_present > sequence.num_present:
            sequence.num_waits = 0
        sequence.wait, sequence.num_present = wait, wait.num_present
        sequence.num_waits += 1

    def _is_waiting(self, sequence: Sequence) -> bool:
        return sequence.wait is not None and not self._prefixes.is_over(sequence.wait)

    def _share(self, claim: Claim) -> bool:
        if self._runner.share_prefix(claim.source, claim.sequence_id, claim.length):
            return True
        if self._runner.shape.memory.window_len:
            self._prefixes.shrink(claim.source)
            return False
        _log.warning("The model's memory cannot share prefixes as expected; prompts are computed whole from now on.")
        self._prefixes.stop()
        return False

    def _reserve(self) -> None:
        # computing moves cells from one of these to the other, so only who comes and goes changes the sum
        self._num_reserved = self._prefixes.num_running_cells + self._growth

    @property
    def _growth(self) -> int:
        """Cells that the running sequences have reserved and not filled."""
        return sum(sequence.num_reserved - sequence.num_computed for sequence in self._placed.values())
