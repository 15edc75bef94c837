"""Which running sequence has which KV cells: the only one who has the runner copy, cut, clear, save and restore them.

A sequence reserves at admission what it may come to need, so that it can always finish. Cells that it shares with
another running sequence count once. What is left of the cache holds prefixes of finished sequences, which make room
when a reservation needs it. Those that nobody else has are saved in main memory then, up to a number of bytes, and
brought back for a prompt that goes on with them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Several
from dataclasses import dataclass

from server.engine.prefix_cache import Claim, Held, PrefixCache, SequenceState, Wait
from server.engine.runner import Runner, State, Tokens
from server.engine.sequence import Sequence

_MOST_WAITS = 3
_MOST_SAVED = 256
_MUCH_LESS = 4
_MOST_MOVED_BYTES = 64 << 20  # before a step, some milliseconds; what comes last may be more
_MOST_BYTES_AT_ONCE = 256 << 20  # what is larger stays in place until its cells are needed


@dataclass(frozen=True, slots=True)
class Saving:
    """What is saved of finished sequences in main memory.

    Attributes:
        most_bytes: that saved prefixes may take; 0 to save nothing.
        least_tokens: that nobody else has; fewer are computed again sooner than they are worth their bytes. Half as
            many must be gained by bringing a prefix back.
        patience: steps of others that a finished sequence stays in place for. ``None`` until its cells or itself are
            needed.

    """

    most_bytes: int = 0
    least_tokens: int = 16
    patience: int | None = 1


_log = logging.getLogger(__name__)


class KVCells:
    """The cells of one runner. Only the engine's thread calls it."""

    def __init__(
        self,
        runner: Runner,
        public: Several[Tokens],
        least_wait: int,
        *,
        isolates_keys: bool,
        saving: Saving,
    ) -> None:
        """Start with empty cells.

        Args:
            runner: whose cells they are.
            public: token prefixes that all keys share.
            least_wait: tokens that waiting for another sequence's prefix must save.
            isolates_keys: share nothing else between keys; requests without a key count as of one.
            saving: what is kept beside them.

        """
        self._runner = runner
        self._isolates_keys = isolates_keys
        self._num_cells = runner.shape.num_cells
        self._saving = saving
        # cells that belong to one sequence each are in nobody's way
        self._patience = saving.patience if saving.most_bytes and runner.shape.memory.is_unified else None
        self._prefixes = PrefixCache(
            runner.shape.num_sequences,
            runner.shape.memory,
            public=public,
            least_wait=least_wait,
            most_saved=_MOST_SAVED if saving.most_bytes else 0,
            least_restored=saving.least_tokens // 2,
        )
        self._placed: dict[int, Sequence] = {}
        self._num_reserved = 0
        self._states: dict[int, State] = {}
        self._num_saved_bytes = 0
        self._finished: dict[int, int] = {}  # by sequence, in which step; who finished first comes first
        self._num_steps = 0

    @property
    def num_reserved(self) -> int:
        """Cells that the running sequences have or may come to need; any thread may ask."""
        return self._num_reserved

    @property
    def num_saved(self) -> int:
        """Prefixes that are in main memory; any thread may ask."""
        return len(self._states)

    @property
    def num_saved_bytes(self) -> int:
        """Bytes that these take; any thread may ask."""
        return self._num_saved_bytes

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
        self._finished.pop(claim.sequence_id, None)
        sequence.sequence_id = claim.sequence_id
        sequence.num_computed = claim.length
        if claim.displaced is not None:
            self._save(claim.displaced, spared=claim.source)
        # before anything is evicted, which may be the source
        num_brought = self._bring(claim) if claim.length else 0
        if num_brought == 0:
            self.forget(sequence)
        elif num_brought < claim.length:
            sequence.num_computed = num_brought
            self._prefixes.update(claim.sequence_id, num_brought)
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
        self._finished[sequence.sequence_id] = self._num_steps
        self._reserve()

    def evict(self, *, spared: int | None = None) -> bool:
        """Give up the finished sequence that is the least loss; ``False`` if there is none.

        ``spared`` is a saved prefix that must not be forgotten for it.
        """
        held = self._prefixes.evict()
        if held is None:
            return False
        self._finished.pop(held.sequence_id, None)
        self._save(held, spared=spared)
        self._runner.clear(held.sequence_id)
        return True

    def clear_away(self) -> None:
        """Before a step: move sequences that were finished some steps ago to main memory.

        Attention passes over all cells up to the last one that is used, whosever they are.
        """
        if self._patience is None or not self._placed:
            return
        self._num_steps += 1
        num_bytes = self._num_saved_bytes
        while self._num_saved_bytes - num_bytes < _MOST_MOVED_BYTES:
            sequence_id = next(iter(self._finished), None)
            if sequence_id is None or self._num_steps - self._finished[sequence_id] < self._patience:
                return
            self._move(sequence_id)

    def _move(self, sequence_id: int) -> None:
        del self._finished[sequence_id]
        if self._prefixes.state(sequence_id) is not SequenceState.IDLE:
            return
        if not self._can_move(sequence_id):
            self._finished[sequence_id] = self._num_steps  # later, perhaps
            return
        held = self._prefixes.evict(sequence_id)
        if held is not None:
            self._save(held)
            self._runner.clear(sequence_id)

    def close(self) -> None:
        """Give back the main memory of what was saved; nothing may be saved or found any more."""
        self._num_saved_bytes = 0
        self._states.clear()

    def _wait(self, sequence: Sequence, wait: Wait) -> None:
        """Have a sequence wait; those before count only if they have brought nothing."""
        if wait.num_present > sequence.num_present:
            sequence.num_waits = 0
        sequence.wait, sequence.num_present = wait, wait.num_present
        sequence.num_waits += 1

    def _is_waiting(self, sequence: Sequence) -> bool:
        return sequence.wait is not None and not self._prefixes.is_over(sequence.wait)

    def _bring(self, claim: Claim) -> int:
        """Have the cells of a claimed sequence hold what was found for it, and return how many tokens they do hold."""
        state = self._states.get(claim.source)
        if state is not None:
            return self._restore(claim, state)
        if self._runner.share_prefix(claim.source, claim.sequence_id, claim.length):
            return claim.length
        if self._runner.shape.memory.window_len:
            self._prefixes.shrink(claim.source)
            return 0
        _log.warning("The model's memory cannot share prefixes as expected; prompts are computed whole from now on.")
        self._prefixes.stop()
        self._saving, self._patience = Saving(), None
        self.close()
        return 0

    def _restore(self, claim: Claim, state: State) -> int:
        """Bring back what was saved, and cut it: first all of it has to find room, also what is shared afterwards."""
        target, source, joined = claim.sequence_id, claim.source, claim.joined
        excess = self._prefixes.num_tokens(source) - claim.length
        has_room = True
        while has_room and self._prefixes.num_cells + claim.num_joined + excess > self._num_cells:
            has_room = self.evict(spared=source)
        if joined is not None and self._prefixes.state(joined) is SequenceState.FREE:
            joined = None  # it had to make room, and whoever shares its cells does not share these
            self._prefixes.update(target, 0)
            self._prefixes.update(target, claim.length)
        if not has_room:
            is_shared = joined is not None and self._runner.share_prefix(joined, target, claim.num_joined)
            return claim.num_joined if is_shared else 0
        self._runner.clear(target)
        is_there = self._runner.restore(target, state)
        is_there = is_there and (not excess or self._runner.share_prefix(target, target, claim.length))
        if is_there and (joined is None or self._runner.join_prefix(joined, target, claim.num_joined)):
            return claim.length
        if self._runner.shape.memory.is_unified:  # elsewhere a copy that is not made yet may be in the way
            _log.warning("A prompt that was saved in main memory could not be brought back; it is computed again.")
            self._drop(source)
        return 0

    def _save(self, held: Held, *, spared: int | None = None) -> None:
        """Keep a copy of what a sequence has to give up, if it is worth that."""
        if held.num_lost < self._saving.least_tokens:
            return
        if not self._find_bytes(held, below=held.loss, spared=spared):
            return
        state = self._runner.save(held.sequence_id)
        saved_as = None if state is None else self._prefixes.save(held)
        if state is not None and saved_as is not None:
            self._states[saved_as] = state
            self._num_saved_bytes += state.num_bytes

    def _find_bytes(self, held: Held, *, below: float, spared: int | None = None) -> bool:
        """Forget what this makes useless, then what is a loss below that; ``False`` if there is no room even then."""
        most_bytes = self._saving.most_bytes
        num_bytes = self._runner.num_state_bytes(held.sequence_id) if most_bytes else 0
        if not 0 < num_bytes <= most_bytes:
            return False
        for saved in self._prefixes.outdated(held):
            if saved != spared:
                self._drop(saved)
        while self._num_saved_bytes + num_bytes > most_bytes or len(self._states) == _MOST_SAVED:
            least = self._prefixes.forget_least(below=below, spared=spared)
            if least is None:
                return False
            self._give_back(least)
        return True

    def _can_move(self, sequence_id: int) -> bool:
        """Whether moving a finished sequence away frees cells, and loses nothing that is worth as much by far.

        Of several that have cells together, all but the last leave without being saved.
        """
        if self._prefixes.num_idle_cells(sequence_id) < self._saving.least_tokens:
            return False
        held = self._prefixes.held(sequence_id)
        if held.num_lost < self._saving.least_tokens:
            return True
        is_quick = self._runner.num_state_bytes(sequence_id) <= _MOST_BYTES_AT_ONCE
        return is_quick and self._find_bytes(held, below=held.loss / _MUCH_LESS)

    def _drop(self, saved: int) -> None:
        self._prefixes.forget(saved)
        self._give_back(saved)

    def _give_back(self, saved: int) -> None:
        self._num_saved_bytes -= self._states.pop(saved).num_bytes

    def _reserve(self) -> None:
        # computing moves cells from one of these to the other, so only who comes and goes changes the sum
        self._num_reserved = self._prefixes.num_running_cells + self._growth

    @property
    def _growth(self) -> int:
        """Cells that the running sequences have reserved and not filled."""
        return sum(sequence.num_reserved - sequence.num_computed for sequence in self._placed.values())
