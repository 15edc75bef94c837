"""Who shares which prefix: what a new prompt copies, awaits or computes, and what is forgotten first.

Nothing here touches KV memory. ``PrefixCache`` decides; the engine acts on the runner and reports back. A sequence
is free (empty), in use by a generation, or idle: finished, with its tokens kept until its cells or itself are needed.
What an idle sequence holds can also be saved outside of the cells. A saved prefix is found as that of an idle sequence
is, under the same key, but it can only be a source: it is brought back into the sequence that goes on with it.

Whoever waits holds no sequence and is not registered anywhere. It waits for a sequence in use, which computes its
prompt or is released; either ends the wait, and the claim is made again. So waits cannot form a circle, a waiter that
leaves leaves nothing behind, and when a computation is aborted the first waiter to claim again continues it, while the
others find that it does and wait for it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count
from math import inf

import numpy as np

from server.engine.radix_tree import RadixTree
from server.engine.runner import KVMemory, Tokens

_NO_TOKENS: Tokens = np.empty(0, dtype=np.int32)
_EVERYBODY = None
"""The key of prompts that anybody may share."""


class SequenceState(Enum):
    """What a sequence is doing."""

    FREE = auto()
    IN_USE = auto()
    IDLE = auto()


@dataclass(frozen=True, slots=True)
class Claim:
    """A sequence to compute a prompt in, and where its first ``length`` tokens are.

    ``source`` is another sequence to copy them from, or ``sequence_id`` itself: to be cut back to ``length`` tokens
    (emptied, if that is 0), and then computed further. Or it is a saved prefix, to be brought back and cut; if a
    sequence has the beginning of that in its cells, they are to be shared: the first ``num_joined`` of ``joined``.
    ``displaced`` is what the sequence has held so far, if that is not all kept: its last chance to be saved.
    """

    sequence_id: int
    source: int
    length: int
    joined: int | None = None
    num_joined: int = 0
    displaced: Held | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Held:
    """What a sequence holds that will not be found there any more.

    Attributes:
        sequence_id: the sequence; its cells are as they were until somebody acts on them.
        tokens: what is in them.
        lowest: position of the first one that is remembered.
        key: whose they are.
        last_used: when, as ``PrefixCache`` counts.
        num_lost: tokens that nobody else has, in cells or saved.
        loss: that, the less the older.

    """

    sequence_id: int
    tokens: Tokens
    lowest: int
    key: Hashable
    last_used: int
    num_lost: int
    loss: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Another generation, in ``sequence_id``, is about to have computed the first ``length`` tokens of its prompt.

    ``number`` tells that generation from others in the same sequence. ``num_present`` tokens could be had at once.
    """

    sequence_id: int
    length: int
    number: int
    num_present: int = 0


@dataclass(eq=False, slots=True)
class _Slot:
    """A sequence, or a place for a saved prefix, which is never in use.

    In use, ``tokens`` is its prompt, computed or not; otherwise, what it holds.
    """

    sequence_id: int
    tokens: Tokens = field(default_factory=lambda: _NO_TOKENS)
    num_computed: int = 0
    lowest: int = 0
    key: Hashable = _EVERYBODY
    public_lens: tuple[int, ...] = ()
    in_use: bool = False
    number: int = 0
    last_used: int = 0

    @property
    def num_public(self) -> int:
        """Tokens that everybody may share, whosever they are: the longest public prefix that is computed whole."""
        return max((length for length in self.public_lens if length <= self.num_computed), default=0)


@dataclass(slots=True)
class _Found:
    """The longest prefix that is there, and the longest that will be: of which slot, and when it can be taken.

    One that is saved is only noted where it is longer by enough to be worth bringing back.
    """

    source: _Slot | None = None
    length: int = 0
    saved: _Slot | None = None
    num_saved: int = 0
    computing: _Slot | None = None
    promised: int = 0
    awaited: int = 0


class PrefixCache:
    """The sequences of one runner. Only the engine's thread calls it.

    Args:
        num_sequences: sequences that can be held at once, numbered from 0.
        memory: what the runner's memory can do.
        public: token prefixes that the operator declares public: shared whatever the keys, once computed whole.
        least_wait: tokens that a wait must save; what all prompts begin with is not worth a step's delay.
        most_saved: prefixes that can be saved at once, numbered from ``num_sequences``.
        least_restored: tokens that bringing back a saved prefix must save.

    """

    def __init__(
        self,
        num_sequences: int,
        memory: KVMemory,
        *,
        public: Sequence[Tokens] = (),
        least_wait: int = 32,
        most_saved: int = 0,
        least_restored: int = 32,
    ) -> None:
        self._memory = memory
        self._public = _PublicPrefixes(public)
        self._least_wait = max(least_wait, 1)
        self._least_restored = max(least_restored, 1)
        self._slots = [_Slot(slot_id) for slot_id in range(num_sequences + most_saved)]
        self._sequences, self._saved = self._slots[:num_sequences], self._slots[num_sequences:]
        self._cells = _Cells(num_sequences, is_unified=memory.is_unified)
        self._trees: dict[Hashable, RadixTree] = {}
        self._uses = count(1)
        self._now = 0
        self._is_stopped = False

    @property
    def num_cells(self) -> int:
        """Cells that are occupied; those that sequences share count once."""
        return self._cells.count(range(len(self._sequences)))

    @property
    def num_running_cells(self) -> int:
        """Cells that sequences in use occupy, shared ones counted once; the others are had by evicting."""
        return self._cells.count([slot.sequence_id for slot in self._sequences if slot.in_use])

    @property
    def num_saved(self) -> int:
        """Prefixes that are saved."""
        return sum(slot.num_computed > 0 for slot in self._saved)

    def num_tokens(self, number: int) -> int:
        """Tokens that a sequence holds, or a saved prefix."""
        return self._slots[number].num_computed

    def num_idle_cells(self, sequence_id: int) -> int:
        """Cells of an idle sequence that no sequence in use has, too."""
        in_use = [slot.sequence_id for slot in self._sequences if slot.in_use]
        return self._cells.count([sequence_id]) - self._cells.num_shared(sequence_id, in_use)

    def held(self, sequence_id: int) -> Held:
        """Return what would be lost by evicting an idle sequence."""
        return self._held(self._sequences[sequence_id])

    def state(self, sequence_id: int) -> SequenceState:
        """What a sequence is doing."""
        slot = self._sequences[sequence_id]
        if slot.in_use:
            return SequenceState.IN_USE
        return SequenceState.IDLE if slot.num_computed else SequenceState.FREE

    def claim(
        self,
        prompt: Tokens,
        *,
        key: Hashable = None,
        can_wait: bool = True,
        num_reserved: int = 0,
        room: int | None = None,
    ) -> Claim | Wait | None:
        """Find the best way to compute ``prompt``; at least its last token is computed, because its logits are needed.

        Args:
            prompt: token ids, kept without a copy.
            key: whose prompt it is. It shares prefixes of the same key, of no key (``None``) and public ones. The
                prompt of ``None`` is shared by everybody.
            can_wait: whether ``Wait`` may be the answer.
            num_reserved: tokens that the sequence may come to hold.
            room: cells that the sequences in use may grow by, this one included; ``None`` for any number.

        Returns:
            ``Claim``: the sequence is in use from now on, until it is released. ``Wait``: nothing was taken; claim
            again when ``is_over``. ``None``: all sequences are in use, or there is not that much room.

        """
        available = [slot for slot in self._sequences if not slot.in_use]
        if not available:
            return None
        found = self._search(prompt[:-1], key)
        if room is not None and num_reserved > room:
            found.saved, found.num_saved = None, 0  # what is brought back shares no cells, and would not be let in
        length = found.num_saved or found.length
        if can_wait and found.computing is not None and found.promised - length >= self._least_wait:
            return Wait(found.computing.sequence_id, found.awaited, found.computing.number, length)
        if room is not None and num_reserved - self._num_in_use(found) > room:
            return None
        target = self._choose_target(available, found)
        source = found.saved or found.source or target
        displaced = self._displaced(target, length if source is target else 0)
        joined = self._joined(target, found)
        self._unindex(target)
        if found.saved is None:
            self._cells.share(source.sequence_id, target.sequence_id, length)
        else:
            source.last_used = next(self._uses)
            self._cells.resize(target.sequence_id, 0)
            if joined is not None:
                self._cells.share(joined, target.sequence_id, found.length)
            self._cells.resize(target.sequence_id, length)
        target.lowest = source.lowest if length else 0
        target.in_use, target.number = True, self._use(target)
        self._index(target, prompt, key)
        target.num_computed = length
        num_joined = 0 if joined is None else found.length
        return Claim(target.sequence_id, source.sequence_id, length, joined, num_joined, displaced)

    def is_over(self, wait: Wait) -> bool:
        """Whether what was waited for is there, or will not come."""
        slot = self._slots[wait.sequence_id]
        return slot.number != wait.number or slot.num_computed >= wait.length

    def update(self, sequence_id: int, num_computed: int) -> None:
        """Record how many tokens a sequence in use holds by now; 0 if it was cleared, as when copying has failed.

        Raises:
            ValueError: the sequence is not in use.

        """
        self._hold(self._in_use(sequence_id), num_computed)

    def release(self, sequence_id: int, tokens: Tokens) -> None:
        """Give a sequence back, finished or aborted; ``tokens`` are what its cells hold (empty if it was cleared).

        Raises:
            ValueError: the sequence is not in use.

        """
        slot = self._in_use(sequence_id)
        self._unindex(slot)
        self._hold(slot, len(tokens))
        self._use(slot)
        slot.in_use, slot.number = False, 0
        self._index(slot, tokens, slot.key)

    def evict(self, sequence_id: int | None = None) -> Held | None:
        """Forget an idle sequence and return what it holds; ``None`` if there is none.

        Unless it is named, it is the one whose loss is the least: the number of tokens that nobody else has, divided by
        the time since the last use.
        """
        wanted = self._sequences if sequence_id is None else [self._sequences[sequence_id]]
        idle = [slot for slot in wanted if not slot.in_use and slot.num_computed]
        if not idle:
            return None
        slot = self._least(idle)
        held = self._held(slot)
        self._unindex(slot)
        self._hold(slot, 0)
        return held

    def save(self, held: Held) -> int | None:
        """Note that what a sequence held is saved, and return the number of the copy; ``None`` if there is no place."""
        slot = next((slot for slot in self._saved if not slot.num_computed), None)
        if slot is None or self._is_stopped:
            return None
        slot.num_computed, slot.last_used = len(held.tokens), held.last_used
        slot.lowest = self._memory.lowest_saved(held.lowest, slot.num_computed)
        self._index(slot, held.tokens, held.key)
        return slot.sequence_id

    def outdated(self, held: Held) -> list[int]:
        """Return the saved prefixes that are of no more use when this is saved: it can be cut back to each of them."""
        tree = self._trees.get(held.key)
        if tree is None:
            return []
        num_held = len(held.tokens)
        lowest = self._memory.lowest_saved(held.lowest, num_held)
        return [
            entry
            for length, entries in tree.match(held.tokens)
            for entry in sorted(entries)
            if entry >= len(self._sequences)
            and (self._slots[entry].num_computed, self._slots[entry].key) == (length, held.key)
            and self._memory.can_take(length, num_computed=num_held, lowest=lowest)
        ]

    def forget(self, saved: int) -> None:
        """Forget a saved prefix."""
        slot = self._slots[saved]
        self._unindex(slot)
        slot.num_computed = slot.lowest = 0

    def forget_least(self, *, below: float = inf, spared: int | None = None) -> int | None:
        """Forget the saved prefix whose loss is the least, and return its number.

        Args:
            below: how great the loss may be; ``None`` is returned if it is not less.
            spared: one that is needed right now.

        """
        saved = [slot for slot in self._saved if slot.num_computed and slot.sequence_id != spared]
        slot = self._least(saved) if saved else None
        if slot is None or self._loss(slot, 0) >= below:
            return None
        self.forget(slot.sequence_id)
        return slot.sequence_id

    def shrink(self, sequence_id: int) -> None:
        """Note that a sequence remembers no more than its window, though it could have remembered more."""
        slot = self._slots[sequence_id]
        slot.lowest = max(slot.lowest, slot.num_computed - self._memory.window_len)

    def stop(self) -> None:
        """Find nothing any more: the memory cannot do what was said of it."""
        self._is_stopped = True

    def _in_use(self, sequence_id: int) -> _Slot:
        slot = self._sequences[sequence_id]
        if not slot.in_use:
            raise ValueError(f"Sequence {sequence_id} is not in use.")
        return slot

    def _use(self, slot: _Slot) -> int:
        self._now = slot.last_used = next(self._uses)
        return self._now

    def _hold(self, slot: _Slot, num_computed: int) -> None:
        slot.num_computed = num_computed
        slot.lowest = self._memory.lowest_kept(slot.lowest, num_computed) if num_computed else 0
        self._cells.resize(slot.sequence_id, num_computed)

    def _index(self, slot: _Slot, tokens: Tokens, key: Hashable) -> None:
        """Make a slot findable by its key, and by everybody as far as it is public."""
        slot.tokens, slot.key = tokens, key
        if len(tokens) == 0:
            return
        self._trees.setdefault(key, RadixTree()).insert(slot.sequence_id, tokens)
        slot.public_lens = self._public.lens(tokens) if key is not _EVERYBODY else ()
        if slot.public_lens:
            shared = self._trees.setdefault(_EVERYBODY, RadixTree())
            shared.insert(slot.sequence_id, tokens[: slot.public_lens[-1]])

    def _unindex(self, slot: _Slot) -> None:
        for key in {slot.key, _EVERYBODY}:
            tree = self._trees.get(key)
            if tree is not None and slot.sequence_id in tree:
                tree.remove(slot.sequence_id)
                if not tree:
                    del self._trees[key]
        slot.tokens, slot.public_lens = _NO_TOKENS, ()

    def _search(self, wanted: Tokens, key: Hashable) -> _Found:
        found = _Found()
        if self._is_stopped:
            return found
        for slot, length in self._agreements(wanted, key, found):
            is_foreign = slot.key is not _EVERYBODY and slot.key != key
            num_visible = slot.num_public if is_foreign else slot.num_computed
            self._consider_present(found, slot, min(length, num_visible))
            if slot.in_use and length > num_visible:
                self._consider_promise(found, slot, length, is_foreign=is_foreign)
        if found.num_saved - found.length < self._least_restored:
            found.saved, found.num_saved = None, 0
        return found

    def _agreements(self, wanted: Tokens, key: Hashable, found: _Found) -> Iterator[tuple[_Slot, int]]:
        """Slots that may be shared, each with how far it agrees, until only worse than what was found is left."""
        for tree in [self._trees[name] for name in {key, _EVERYBODY} if name in self._trees]:
            seen: set[int] = set()
            for length, entries in tree.match(wanted):
                if length < found.length:
                    break
                for sequence_id in sorted(entries - seen):
                    yield self._slots[sequence_id], length
                seen |= entries

    def _consider_present(self, found: _Found, slot: _Slot, length: int) -> None:
        if not length or not self._memory.can_take(length, num_computed=slot.num_computed, lowest=slot.lowest):
            return
        if slot.sequence_id >= len(self._sequences):
            if found.saved is None or _worth(slot, length) > _worth(found.saved, found.num_saved):
                found.saved, found.num_saved = slot, length
        elif found.source is None or _worth(slot, length) > _worth(found.source, found.length):
            found.source, found.length = slot, length

    def _consider_promise(self, found: _Found, slot: _Slot, length: int, *, is_foreign: bool) -> None:
        """Note a prefix that is being computed, if it can still be taken when the whole prompt has been."""
        end = len(slot.tokens)
        if not self._memory.can_take(length, num_computed=end, lowest=self._memory.lowest_kept(slot.lowest, end)):
            return
        if found.computing is None or (length, slot.num_computed) > (found.promised, found.computing.num_computed):
            found.computing, found.promised = slot, length
            found.awaited = min(whole for whole in slot.public_lens if whole >= length) if is_foreign else length

    def _num_in_use(self, found: _Found) -> int:
        """Cells of what was found that sequences in use have anyway."""
        if found.source is None or found.saved is not None:
            return 0
        in_use = [slot.sequence_id for slot in self._sequences if slot.in_use]
        return min(found.length, self._cells.num_shared(found.source.sequence_id, in_use))

    def _choose_target(self, available: list[_Slot], found: _Found) -> _Slot:
        """Continue an idle sequence where it ends; else take an empty one, or the one whose loss is the least."""
        source = None if found.saved is not None else found.source
        if source is not None and _continues(source, found.length):
            return source

        def cost(slot: _Slot) -> tuple[bool, float, int]:
            kept = found.length if slot is source else 0
            return slot.num_computed > 0, self._loss(slot, kept), slot.last_used

        return min(available, key=cost)

    def _least(self, slots: Sequence[_Slot]) -> _Slot:
        return min(slots, key=lambda slot: (self._loss(slot, 0), slot.last_used))

    def _loss(self, slot: _Slot, kept: int) -> float:
        """What cutting an idle slot back to ``kept`` tokens costs: tokens that nobody else has, the less the older."""
        return self._num_lost(slot, kept) / (self._now - slot.last_used + 1)

    def _num_lost(self, slot: _Slot, kept: int) -> int:
        if not slot.num_computed:
            return 0
        num_unshared = self._trees[slot.key].num_unshared(slot.sequence_id)
        if slot.public_lens:  # others may have the public part, under other keys
            num_public_shared = slot.public_lens[-1] - self._trees[_EVERYBODY].num_unshared(slot.sequence_id)
            num_unshared = min(num_unshared, slot.num_computed - num_public_shared)
        return min(num_unshared, slot.num_computed - kept)

    def _joined(self, target: _Slot, found: _Found) -> int | None:
        """Return the sequence whose cells hold enough of what is brought back to be shared in place of new ones."""
        if found.saved is None or found.source is None or found.source is target:
            return None
        is_enough = found.length >= self._least_restored
        return found.source.sequence_id if is_enough and self._memory.can_join else None

    def _displaced(self, target: _Slot, kept: int) -> Held | None:
        return self._held(target, kept) if target.num_computed > kept else None

    def _held(self, slot: _Slot, kept: int = 0) -> Held:
        return Held(
            slot.sequence_id,
            slot.tokens,
            slot.lowest,
            slot.key,
            slot.last_used,
            self._num_lost(slot, kept),
            self._loss(slot, kept),
        )


class _PublicPrefixes:
    def __init__(self, prefixes: Sequence[Tokens]) -> None:
        self._prefixes = [prefix for prefix in prefixes if len(prefix)]
        self._tree = RadixTree()
        for index, prefix in enumerate(self._prefixes):
            self._tree.insert(index, prefix)

    def lens(self, tokens: Tokens) -> tuple[int, ...]:
        """Lengths of the public prefixes that ``tokens`` begin with, the shortest first."""
        return tuple(
            level.length
            for level in reversed(self._tree.match(tokens))
            if any(len(self._prefixes[index]) == level.length for index in level.entries)
        )


class _Cells:
    """How many cells each sequence holds, and how many of them, from the first on, it shares with each other one.

    This is about cells and not about tokens: two sequences that computed the same prompt share nothing. Sharing is
    always of a prefix and passed on by copying, so of the cells of a sequence those that any of some others has, too,
    are as many as it shares most with one of them.
    """

    def __init__(self, num_sequences: int, *, is_unified: bool) -> None:
        self._held = np.zeros(num_sequences, dtype=np.int64)
        self._shared = np.zeros((num_sequences, num_sequences), dtype=np.int64)
        self._is_unified = is_unified

    def resize(self, sequence_id: int, length: int) -> None:
        """Cut a sequence back, or add cells of its own."""
        if length < self._held[sequence_id]:
            shared = np.minimum(self._shared[sequence_id], length)
            self._shared[sequence_id] = self._shared[:, sequence_id] = shared
        self._held[sequence_id] = length

    def share(self, source: int, target: int, length: int) -> None:
        """Have ``target`` hold just the first ``length`` cells of ``source``."""
        if source == target:
            self.resize(target, length)
            return
        self.resize(target, 0)
        self._held[target] = length
        if self._is_unified:
            shared = np.minimum(self._shared[source], length)
            shared[source], shared[target] = length, 0
            self._shared[target] = self._shared[:, target] = shared

    def num_shared(self, sequence_id: int, others: Sequence[int]) -> int:
        """Count the cells that a sequence has in common with one of the others, of which it may be one itself."""
        if not self._is_unified or not others:
            return 0
        if sequence_id in others:
            return int(self._held[sequence_id])
        return int(self._shared[sequence_id, np.array(others)].max())

    def count(self, sequence_ids: Sequence[int]) -> int:
        """Count the cells of some sequences, each once."""
        if not sequence_ids:
            return 0
        ids = np.array(sequence_ids)
        shared_with_earlier = np.tril(self._shared[np.ix_(ids, ids)], -1).max(axis=1)
        return int((self._held[ids] - shared_with_earlier).sum())


def _continues(slot: _Slot, length: int) -> bool:
    return not slot.in_use and length == slot.num_computed


def _worth(slot: _Slot, length: int) -> tuple[int, bool, int]:
    """Order sources: the longest prefix, of equals one that is continued where it ends, then the one used last."""
    return length, _continues(slot, length), slot.last_used
