from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest

from server.engine.prefix_cache import Claim, Held, PrefixCache, SequenceState, Wait
from server.engine.runner import KVMemory, Tokens

Ids = tuple[int, ...]


def tokens(*ids: int) -> Tokens:
    return np.array(ids, dtype=np.int32)


def sharing(num_sequences: int = 3, *, least_wait: int = 1, public: Sequence[Tokens] = ()) -> PrefixCache:
    return PrefixCache(num_sequences, KVMemory(), least_wait=least_wait, public=public)


def claimed(prefixes: PrefixCache, prompt: Tokens, *, key: str | None = None) -> Claim:
    claim = prefixes.claim(prompt, key=key)
    assert isinstance(claim, Claim), claim
    return claim


def waiting(prefixes: PrefixCache, prompt: Tokens, *, key: str | None = None) -> Wait:
    wait = prefixes.claim(prompt, key=key)
    assert isinstance(wait, Wait), wait
    return wait


def evicted(prefixes: PrefixCache) -> int | None:
    held = prefixes.evict()
    return None if held is None else held.sequence_id


def saved(prefixes: PrefixCache, prompt: Tokens, *, key: str | None = None) -> int:
    """Compute a prompt, evict it and save it."""
    held = prefixes.evict(served(prefixes, prompt, key=key).sequence_id)
    assert held is not None
    number = prefixes.save(held)
    assert number is not None
    return number


def served(prefixes: PrefixCache, prompt: Tokens, *, key: str | None = None) -> Claim:
    """Compute a prompt and finish at once."""
    claim = claimed(prefixes, prompt, key=key)
    prefixes.update(claim.sequence_id, len(prompt))
    prefixes.release(claim.sequence_id, prompt)
    return claim


# What is reused


def test_a_conversation_continues_in_its_own_sequence() -> None:
    prefixes = sharing()
    first = served(prefixes, tokens(1, 2, 3, 4))
    assert claimed(prefixes, tokens(1, 2, 3, 4, 5, 6)) == Claim(first.sequence_id, first.sequence_id, 4)


def test_the_last_token_of_a_prompt_is_left_to_compute() -> None:
    prefixes = sharing()
    served(prefixes, tokens(1, 2, 3))
    assert claimed(prefixes, tokens(1, 2, 3)).length == 2
    assert claimed(sharing(), tokens(1)).length == 0


def test_nothing_in_common_is_computed_alone_in_an_empty_sequence() -> None:
    prefixes = sharing()
    first = served(prefixes, tokens(1, 2, 3))
    second = claimed(prefixes, tokens(4, 5))
    assert second == Claim(second.sequence_id, second.sequence_id, 0)
    assert second.sequence_id != first.sequence_id


def test_a_running_sequence_shares_what_it_has_computed() -> None:
    prefixes = sharing()
    running = claimed(prefixes, tokens(1, 2, 3, 4))
    prefixes.update(running.sequence_id, 3)
    other = claimed(prefixes, tokens(1, 2, 3, 9))
    assert (other.source, other.length) == (running.sequence_id, 3)
    assert other.sequence_id != running.sequence_id


def test_a_branch_of_a_conversation_leaves_the_trunk() -> None:
    prefixes = sharing(2)
    trunk = served(prefixes, tokens(1, 2, 3, 4))
    branch = served(prefixes, tokens(1, 2, 9, 9))
    assert branch == Claim(1 - trunk.sequence_id, trunk.sequence_id, 2)
    assert claimed(prefixes, tokens(1, 2, 3, 4, 5)) == Claim(trunk.sequence_id, trunk.sequence_id, 4)


def test_the_only_sequence_is_cut_back_to_what_matches() -> None:
    prefixes = sharing(1)
    served(prefixes, tokens(1, 2, 3, 4))
    assert claimed(prefixes, tokens(1, 2, 9, 9)) == Claim(0, 0, 2)


def test_what_a_finished_generation_said_is_reused() -> None:
    prefixes = sharing(1)
    prefixes.release(claimed(prefixes, tokens(1, 2)).sequence_id, tokens(1, 2, 8, 9))
    assert claimed(prefixes, tokens(1, 2, 8, 9, 1)).length == 4


def test_a_prompt_of_the_full_context_twice() -> None:
    prompt = np.arange(131_072, dtype=np.int32)
    prefixes = sharing(2)
    served(prefixes, prompt)
    assert claimed(prefixes, prompt.copy()).length == len(prompt) - 1


def test_states() -> None:
    prefixes = sharing(1)
    assert prefixes.state(0) is SequenceState.FREE
    claimed(prefixes, tokens(1, 2))
    assert prefixes.state(0) is SequenceState.IN_USE
    prefixes.release(0, tokens(1, 2))
    assert prefixes.state(0) is SequenceState.IDLE
    assert evicted(prefixes) == 0
    assert prefixes.state(0) is SequenceState.FREE
    assert evicted(prefixes) is None


def test_only_sequences_in_use_are_reported_on() -> None:
    prefixes = sharing(1)
    with pytest.raises(ValueError, match="Sequence 0 is not in use"):
        prefixes.update(0, 1)
    with pytest.raises(ValueError, match="Sequence 0 is not in use"):
        prefixes.release(0, tokens())


def test_all_sequences_in_use_is_none_even_for_who_could_wait() -> None:
    prefixes = sharing(2)
    for first in (1, 2):
        claimed(prefixes, tokens(first, 7, 7))
    assert prefixes.claim(tokens(1, 7, 7)) is None
    assert evicted(prefixes) is None


# Waiting


def test_a_prefix_that_is_being_computed_is_awaited_and_then_shared() -> None:
    prefixes = sharing()
    first = claimed(prefixes, tokens(1, 2, 3, 4))
    wait = waiting(prefixes, tokens(1, 2, 3, 9))
    assert (wait.sequence_id, wait.length) == (first.sequence_id, 3)
    prefixes.update(first.sequence_id, 2)
    assert not prefixes.is_over(wait)
    prefixes.update(first.sequence_id, 3)
    assert prefixes.is_over(wait)
    second = claimed(prefixes, tokens(1, 2, 3, 9))
    assert (second.source, second.length) == (first.sequence_id, 3)


def test_choices_of_one_request_wait_for_the_first() -> None:
    prefixes = sharing()
    first = claimed(prefixes, tokens(1, 2, 3))
    waits = [waiting(prefixes, tokens(1, 2, 3)) for _ in range(2)]
    prefixes.update(first.sequence_id, 3)
    assert all(prefixes.is_over(wait) for wait in waits)
    assert [claimed(prefixes, tokens(1, 2, 3)).length for _ in waits] == [2, 2]


def test_a_few_common_tokens_are_not_waited_for() -> None:
    prefixes = sharing(least_wait=3)
    claimed(prefixes, tokens(1, 2, 3, 4))
    assert claimed(prefixes, tokens(1, 2, 9)).length == 0
    waiting(prefixes, tokens(1, 2, 3, 9))


def test_what_saves_too_little_beyond_what_is_there_is_not_waited_for() -> None:
    prefixes = sharing(4, least_wait=3)
    served(prefixes, tokens(1, 2, 3))
    claimed(prefixes, tokens(1, 2, 3, 4, 5, 6))
    assert claimed(prefixes, tokens(1, 2, 3, 4, 5, 9)).length == 3


def test_who_may_not_wait_computes_what_is_missing() -> None:
    prefixes = sharing()
    first = claimed(prefixes, tokens(1, 2, 3, 4))
    prefixes.update(first.sequence_id, 1)
    claim = prefixes.claim(tokens(1, 2, 3, 9), can_wait=False)
    assert isinstance(claim, Claim)
    assert (claim.source, claim.length) == (first.sequence_id, 1)


def test_of_two_that_compute_the_same_the_one_ahead_is_awaited() -> None:
    prefixes = sharing(3)
    claims = [prefixes.claim(tokens(1, 2, 3, 4, last), can_wait=False) for last in (5, 6)]
    for claim, num_computed in zip(claims, (1, 2), strict=True):
        assert isinstance(claim, Claim)
        prefixes.update(claim.sequence_id, num_computed)
        assert waiting(prefixes, tokens(1, 2, 3, 4, 7)).sequence_id == claim.sequence_id


def test_when_the_computing_one_is_aborted_one_waiter_takes_over() -> None:
    prefixes = sharing(4)
    prompts = [tokens(1, 2, 3, 4, last) for last in (5, 6, 7, 8)]
    first = claimed(prefixes, prompts[0])
    waits = [waiting(prefixes, prompt) for prompt in prompts[1:]]
    prefixes.update(first.sequence_id, 2)
    prefixes.release(first.sequence_id, tokens(1, 2))
    assert all(prefixes.is_over(wait) for wait in waits)
    # where the aborted one was, from where it had come to
    assert claimed(prefixes, prompts[1]) == Claim(first.sequence_id, first.sequence_id, 2)
    waits = [waiting(prefixes, prompt) for prompt in prompts[2:]]
    assert [(wait.sequence_id, wait.length) for wait in waits] == [(first.sequence_id, 4)] * 2
    assert not any(prefixes.is_over(wait) for wait in waits)


def test_who_took_over_may_be_aborted_too() -> None:
    prefixes = sharing(2)
    for _ in range(5):
        running = claimed(prefixes, tokens(1, 2, 3, 4))
        wait = waiting(prefixes, tokens(1, 2, 3, 9))
        prefixes.release(running.sequence_id, tokens())
        assert prefixes.is_over(wait)
    assert claimed(prefixes, tokens(1, 2, 3, 9)).length == 0


def test_a_wait_ends_with_the_generation_even_when_its_sequence_is_taken_again() -> None:
    prefixes = sharing(2)
    first = claimed(prefixes, tokens(1, 2, 3, 4))
    wait = waiting(prefixes, tokens(1, 2, 3, 9))
    prefixes.release(first.sequence_id, tokens())
    again = [claimed(prefixes, tokens(number, 5, 5)) for number in (7, 8)]
    assert first.sequence_id in [claim.sequence_id for claim in again]
    assert prefixes.is_over(wait)


def test_a_copy_that_failed_is_computed_and_awaited() -> None:
    prefixes = sharing(4)
    served(prefixes, tokens(1, 2, 3, 4))
    evicted(prefixes)
    first = claimed(prefixes, tokens(1, 2, 3, 5))
    prefixes.update(first.sequence_id, 3)
    second = claimed(prefixes, tokens(1, 2, 3, 6))
    prefixes.update(second.sequence_id, 0)
    prefixes.release(first.sequence_id, tokens())
    assert waiting(prefixes, tokens(1, 2, 3, 7)).sequence_id == second.sequence_id


def test_a_thousand_prompts_with_one_token_of_difference_compute_their_prefix_once() -> None:
    common = np.arange(500, dtype=np.int32)
    prompts = [np.append(common, np.int32(1000 + number)) for number in range(1000)]
    prefixes = PrefixCache(16, KVMemory())
    num_computed = 0
    queue: list[tuple[Tokens, Wait | None]] = [(prompt, None) for prompt in prompts]
    running: dict[int, tuple[Tokens, int]] = {}
    num_rounds = 0
    while queue or running:
        num_rounds += 1
        assert num_rounds < 200
        blocked: list[tuple[Tokens, Wait | None]] = []
        for position, (prompt, wait) in enumerate(queue):
            answer = wait if wait is not None and not prefixes.is_over(wait) else prefixes.claim(prompt)
            if answer is None:
                blocked += queue[position:]
                break
            if isinstance(answer, Wait):
                blocked.append((prompt, answer))
            else:
                running[answer.sequence_id] = prompt, answer.length
        queue = blocked
        for sequence_id, (prompt, length) in [*running.items()]:
            num_computed += len(prompt) - length
            prefixes.update(sequence_id, len(prompt))
            prefixes.release(sequence_id, prompt)
        running.clear()
        assert prefixes.num_cells <= 500 + 16
    assert num_computed == 500 + 1000


# Isolation


def test_keys_do_not_share() -> None:
    prefixes = sharing()
    served(prefixes, tokens(1, 2, 3, 4), key="a")
    assert claimed(prefixes, tokens(1, 2, 3, 4), key="b").length == 0
    assert claimed(prefixes, tokens(1, 2, 3, 4), key="a").length == 3


def test_keys_do_not_wait_for_each_other() -> None:
    prefixes = sharing()
    claimed(prefixes, tokens(1, 2, 3, 4), key="a")
    claimed(prefixes, tokens(1, 2, 3, 4), key="b")
    waiting(prefixes, tokens(1, 2, 3, 4), key="b")


def test_what_has_no_key_is_shared_with_everybody_and_takes_from_nobody() -> None:
    prefixes = sharing()
    served(prefixes, tokens(1, 2, 3, 4))
    served(prefixes, tokens(5, 6, 7, 8), key="a")
    assert claimed(prefixes, tokens(1, 2, 3, 9), key="a").length == 3
    assert claimed(prefixes, tokens(5, 6, 7, 9)).length == 0


def test_public_prefixes_are_shared_by_all_and_nothing_behind_them() -> None:
    prefixes = sharing(public=[tokens(1, 2), tokens(1, 2, 3)])
    served(prefixes, tokens(1, 2, 3, 4, 5), key="a")
    claim = claimed(prefixes, tokens(1, 2, 3, 4, 9), key="b")
    assert claim.length == 3
    prefixes.release(claim.sequence_id, tokens())
    assert claimed(prefixes, tokens(1, 2, 3, 4, 9)).length == 3


def test_a_part_of_a_public_prefix_is_as_private_as_what_followed_it() -> None:
    """Whoever could see how far others came along a public prefix would learn where their prompts leave it."""
    prefixes = sharing(public=[tokens(1, 2, 3)])
    served(prefixes, tokens(1, 2, 9), key="a")
    assert claimed(prefixes, tokens(1, 2, 3, 4), key="b").length == 0


def test_a_public_prefix_is_awaited_whole() -> None:
    prefixes = sharing(public=[tokens(1, 2, 3)])
    first = claimed(prefixes, tokens(1, 2, 3, 4), key="a")
    prefixes.update(first.sequence_id, 2)
    wait = waiting(prefixes, tokens(1, 2, 9), key="b")
    assert wait.length == 3
    assert not prefixes.is_over(wait)
    prefixes.update(first.sequence_id, 3)
    assert prefixes.is_over(wait)
    assert claimed(prefixes, tokens(1, 2, 9), key="b").length == 2


def test_keys_come_and_go() -> None:
    prefixes = sharing(1)
    for number in range(50):
        served(prefixes, tokens(1, 2), key=str(number))
    assert len(prefixes._trees) == 1


# Eviction and cells


def test_a_stranger_takes_an_empty_sequence_before_one_worth_keeping() -> None:
    prefixes = sharing(3)
    for number in range(3):
        served(prefixes, tokens(number, 7, 7))
    for number in range(3):
        assert claimed(prefixes, tokens(number, 7, 7, 8)).length == 3


def test_of_equals_the_least_recently_used_goes_first() -> None:
    prefixes = sharing(3)
    ids = [served(prefixes, tokens(number, 7, 7)).sequence_id for number in range(3)]
    assert [evicted(prefixes) for _ in range(4)] == [*ids, None]


def test_what_is_cheap_to_compute_again_goes_before_what_is_older() -> None:
    prefixes = sharing(3)
    long = served(prefixes, np.arange(100, 1100, dtype=np.int32))
    short = served(prefixes, tokens(1, 2, 3))
    assert [evicted(prefixes), evicted(prefixes)] == [short.sequence_id, long.sequence_id]


def test_what_has_not_been_used_for_long_goes_however_long_it_is() -> None:
    prefixes = sharing(2)
    old = served(prefixes, np.arange(100, 200, dtype=np.int32))
    for length in range(100):
        served(prefixes, np.arange(9, 15 + length, dtype=np.int32) % 50)
    assert evicted(prefixes) == old.sequence_id


def test_what_others_hold_as_well_is_no_loss() -> None:
    prefixes = sharing(3)
    common = tuple(range(50))
    trunk = served(prefixes, tokens(*common, 60))
    branch = served(prefixes, tokens(*common, 61, 62))
    single = served(prefixes, tokens(*range(100, 110)))
    assert evicted(prefixes) == trunk.sequence_id
    # now nobody else has the trunk
    assert evicted(prefixes) == single.sequence_id
    assert evicted(prefixes) == branch.sequence_id


def test_shared_cells_count_once() -> None:
    prefixes = sharing(3)
    first = claimed(prefixes, tokens(1, 2, 3, 4))
    prefixes.update(first.sequence_id, 4)
    second = claimed(prefixes, tokens(1, 2, 3, 5, 6))
    prefixes.update(second.sequence_id, 5)
    assert prefixes.num_cells == prefixes.num_running_cells == 6
    prefixes.release(first.sequence_id, tokens(1, 2, 3, 4))
    assert (prefixes.num_cells, prefixes.num_running_cells) == (6, 5)
    assert evicted(prefixes) == first.sequence_id
    assert prefixes.num_cells == 5


def test_what_was_computed_twice_counts_twice() -> None:
    prefixes = sharing(2)
    claims = [prefixes.claim(tokens(1, 2, 3), can_wait=False) for _ in range(2)]
    for claim in claims:
        assert isinstance(claim, Claim)
        prefixes.update(claim.sequence_id, 3)
    assert prefixes.num_cells == 6


def test_copies_of_separate_sequences_count_each() -> None:
    prefixes = PrefixCache(2, KVMemory(is_unified=False), least_wait=1)
    served(prefixes, tokens(1, 2, 3, 4))
    assert claimed(prefixes, tokens(1, 2, 9)).length == 2
    assert prefixes.num_cells == 4 + 2


# Memory that cannot be cut everywhere


def test_recurrent_state_is_continued_whole_or_not_at_all() -> None:
    prefixes = PrefixCache(3, KVMemory(can_cut=False), least_wait=1)
    first = served(prefixes, tokens(1, 2, 3, 4))
    assert claimed(prefixes, tokens(1, 2, 3, 9)).length == 0
    assert claimed(prefixes, tokens(1, 2, 3, 4)).length == 0
    assert claimed(prefixes, tokens(1, 2, 3, 4, 5)) == Claim(first.sequence_id, first.sequence_id, 4)


def test_recurrent_state_is_awaited_only_at_the_end_of_a_prompt() -> None:
    prefixes = PrefixCache(3, KVMemory(can_cut=False), least_wait=1)
    first = claimed(prefixes, tokens(1, 2, 3))
    assert waiting(prefixes, tokens(1, 2, 3, 4)).length == 3
    assert claimed(prefixes, tokens(1, 2, 4)).length == 0
    prefixes.update(first.sequence_id, 3)
    assert claimed(prefixes, tokens(1, 2, 3, 4)).length == 3


@pytest.mark.parametrize(("length", "expected"), [(9, 9), (7, 7), (6, 0), (3, 0)])
def test_a_sliding_window_is_cut_near_its_end_only(length: int, expected: int) -> None:
    prefixes = PrefixCache(1, KVMemory(window_len=4, num_kept=7), least_wait=1)
    served(prefixes, tokens(*range(10)))  # positions 3 to 9 are remembered
    assert claimed(prefixes, tokens(*range(length), 99, 98)).length == expected


def test_a_sliding_window_that_has_not_moved_is_cut_anywhere() -> None:
    prefixes = PrefixCache(2, KVMemory(window_len=4, num_kept=7), least_wait=1)
    served(prefixes, tokens(*range(7)))
    assert claimed(prefixes, tokens(0, 99, 98)).length == 1


def test_what_a_sliding_window_forgot_does_not_come_back_by_cutting() -> None:
    prefixes = PrefixCache(1, KVMemory(window_len=4, num_kept=7), least_wait=1)
    served(prefixes, tokens(*range(10)))
    assert served(prefixes, tokens(*range(7), 99)).length == 7
    assert claimed(prefixes, tokens(*range(6), 98)).length == 0


def test_what_a_sliding_window_will_have_forgotten_is_not_waited_for() -> None:
    prefixes = PrefixCache(3, KVMemory(window_len=4, num_kept=7), least_wait=1)
    claimed(prefixes, tokens(*range(10)))
    assert claimed(prefixes, tokens(0, 1, 2, 99)).length == 0
    assert waiting(prefixes, tokens(*range(8), 99)).length == 8


# Random operations beside a naive model: tuples of tokens, lists of numbered cells, brute force


@dataclass(frozen=True)
class World:
    """What the random operations work on."""

    num_sequences: int
    memory: KVMemory
    least_wait: int = 1
    keys: tuple[str | None, ...] = (None,)
    public: tuple[Ids, ...] = ()
    most_saved: int = 0
    least_restored: int = 1


@dataclass(eq=False)
class NaiveSequence:
    """A sequence, or a saved prefix, which has no cells."""

    sequence_id: int
    key: str | None = None
    known: Ids = ()
    """In use: the prompt; idle: what is held."""
    goal: Ids = ()
    """In use: the prompt and what will be said."""
    cells: list[int] = field(default_factory=list)
    remembered: set[int] = field(default_factory=set)
    in_use: bool = False
    number: int = 0
    last_used: int = 0
    is_saved: bool = False

    @property
    def num_held(self) -> int:
        return len(self.known) if self.is_saved else len(self.cells)

    @property
    def held(self) -> Ids:
        return self.known if self.is_saved else (self.goal if self.in_use else self.known)[: len(self.cells)]


@dataclass(eq=False)
class Request:
    prompt: Ids
    key: str | None
    wait: Wait | None = None


class Bench:
    """The real thing and the naive model, which is asked what is right."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.memory = world, world.memory
        self.dice = random.Random(seed)
        public = [tokens(*prefix) for prefix in world.public]
        self.prefixes = PrefixCache(
            world.num_sequences,
            world.memory,
            public=public,
            least_wait=world.least_wait,
            most_saved=world.most_saved,
            least_restored=world.least_restored,
        )
        self.sequences = [NaiveSequence(number) for number in range(world.num_sequences)]
        self.saved: dict[int, NaiveSequence] = {}
        self.queue: list[Request] = []
        self.new_cells, self.uses = count(), count(1)
        self.now = 0
        self.seen: dict[str, int] = {}

    # operations

    def arrive(self) -> None:
        if len(self.queue) < 8:
            self.queue.append(Request(self.some_prompt(), self.dice.choice(self.world.keys)))

    def some_prompt(self) -> Ids:
        pool = [holder.known for holder in self.holders()] + [request.prompt for request in self.queue]
        start = self.dice.choice([*pool, *self.world.public, ()])
        start = start[: self.dice.randrange(len(start) + 1)] if self.dice.random() < 0.4 else start
        more = self.dice.choices((0, 1), k=self.dice.randrange(4))
        return (*start, *more)[:14] or (self.dice.randrange(2),)

    def admit(self) -> None:
        """Claim for those that do not wait, in order, until sequences run out."""
        for request in [*self.queue]:
            if request.wait is not None and not self.prefixes.is_over(request.wait):
                continue
            answer = self.claim(request)
            if answer is None:
                return
            if isinstance(answer, Wait):
                request.wait = answer
            else:
                self.queue.remove(request)

    def claim(self, request: Request) -> Claim | Wait | None:
        can_wait = self.dice.random() < 0.9
        wanted = request.prompt[:-1]
        longest = max(self.available(sequence, wanted, request.key) for sequence in self.sequences)
        longest_saved = max((self.available(saved, wanted, request.key) for saved in self.saved.values()), default=0)
        restores = longest_saved >= longest + self.world.least_restored
        longest_live, longest = longest, longest_saved if restores else longest
        promised = max(self.promised(sequence, wanted, request.key) for sequence in self.sequences)
        answer = self.prefixes.claim(tokens(*request.prompt), key=request.key, can_wait=can_wait)
        self.saw(answer)
        if all(sequence.in_use for sequence in self.sequences):
            assert answer is None
        elif can_wait and promised - longest >= self.world.least_wait:
            assert isinstance(answer, Wait), (answer, longest, promised)
            self.check_wait(answer, request, promised)
        else:
            assert isinstance(answer, Claim), (answer, longest, promised)
            assert answer.length == longest
            assert (answer.source in self.saved) is restores
            self.check_joined(answer, request, longest_live if restores else 0)
            self.check_target(answer, request)
            self.check_displaced(answer)
            self.begin(answer, request)
            if answer.displaced is not None:
                self.save(answer.displaced)
        return answer

    def begin(self, claim: Claim, request: Request) -> None:
        source, target = self.holder(claim.source), self.sequences[claim.sequence_id]
        if source.is_saved:
            self.touch(source)
            source.cells = [next(self.new_cells) for _ in source.known]
        shared = self.memory.is_unified or source is target
        cells = source.cells[: claim.length]
        if claim.joined is not None:
            cells[: claim.num_joined] = self.sequences[claim.joined].cells[: claim.num_joined]
        target.cells = cells if shared else [next(self.new_cells) for _ in cells]
        target.remembered = {position for position in source.remembered if position < claim.length}
        target.key, target.known, target.in_use = request.key, request.prompt, True
        if source.is_saved:
            source.cells = []
        target.goal = (*request.prompt, *self.dice.choices((0, 1), k=self.dice.randrange(4)))
        self.touch(target)
        target.number = self.now
        if self.dice.random() < 0.05:  # the runner could not copy after all
            self.hold(target, 0)
            self.prefixes.update(target.sequence_id, 0)

    def progress(self, most: int = 4) -> None:
        if running := self.running():
            sequence = self.dice.choice(running)
            held, known, goal = len(sequence.cells), len(sequence.known), len(sequence.goal)
            # a step ends with the prompt: what is said comes later
            end = min(held + self.dice.randint(1, most), known if held < known else goal)
            self.hold(sequence, end)
            self.prefixes.update(sequence.sequence_id, end)

    def finish(self) -> None:
        done = [sequence for sequence in self.running() if len(sequence.cells) >= len(sequence.known)]
        if done:
            self.release(self.dice.choice(done))

    def abort(self) -> None:
        if running := self.running():
            sequence = self.dice.choice(running)
            if self.dice.random() < 0.2:  # a step failed: nobody knows what the cells hold
                self.hold(sequence, 0)
            self.release(sequence)

    def release(self, sequence: NaiveSequence) -> None:
        held = sequence.held
        sequence.known, sequence.in_use, sequence.number = held, False, 0
        self.touch(sequence)
        self.prefixes.release(sequence.sequence_id, tokens(*held))

    def leave(self) -> None:
        if self.queue:
            self.queue.remove(self.dice.choice(self.queue))

    def evict(self) -> None:
        idle = [sequence for sequence in self.sequences if not sequence.in_use and sequence.cells]
        is_named = bool(idle) and self.dice.random() < 0.3
        expected = (
            self.dice.choice(idle)
            if is_named
            else min(idle, key=lambda sequence: (self.loss(sequence), sequence.last_used), default=None)
        )
        held = self.prefixes.evict(expected.sequence_id if is_named and expected is not None else None)
        if expected is None:
            assert held is None
            return
        assert held is not None
        self.check_held(held, expected)
        remembered = set(expected.remembered)
        expected.known = ()
        self.hold(expected, 0)
        self.save(held, remembered)

    def save(self, held: Held, remembered: set[int] | None = None) -> None:
        """Keep what was given up, now and then."""
        if not self.world.most_saved or self.dice.random() < 0.2:
            return
        num_held = len(held.tokens)
        if remembered is None:
            remembered = set(range(held.lowest, num_held))
        if self.memory.window_len:
            remembered = {position for position in remembered if position >= num_held - 1 - self.memory.window_len}
        known = tuple(held.tokens.tolist())
        outdated = {
            number
            for number, saved in self.saved.items()
            if saved.key == held.key
            and known[: len(saved.known)] == saved.known
            and self.can_take(len(saved.known), held=num_held, remembered=remembered)
        }
        assert set(self.prefixes.outdated(held)) == outdated
        for number in outdated:
            self.drop(number)
        saved_as = self.prefixes.save(held)
        first, most = self.world.num_sequences, self.world.most_saved
        assert saved_as == next((free for free in range(first, first + most) if free not in self.saved), None)
        if saved_as is not None:
            assert isinstance(held.key, str | None)
            self.saved[saved_as] = NaiveSequence(
                saved_as, held.key, known, remembered=remembered, last_used=held.last_used, is_saved=True
            )

    def forget(self) -> None:
        """Give up what was saved: one of them, or the one whose loss is the least."""
        if self.saved and self.dice.random() < 0.3:
            self.drop(self.dice.choice([*self.saved]))
            return
        spared = self.dice.choice([None, *self.saved])
        below = self.dice.choice([0.0, 0.5, 2.0, 100.0])
        left = [saved for number, saved in self.saved.items() if number != spared]
        least = min(left, key=lambda saved: (self.loss(saved), saved.last_used), default=None)
        number = self.prefixes.forget_least(below=below, spared=spared)
        if least is None or self.loss(least) >= below:
            assert number is None
        else:
            assert number == least.sequence_id
            del self.saved[number]

    def drop(self, number: int) -> None:
        self.prefixes.forget(number)
        del self.saved[number]

    def drain(self) -> None:
        """Everybody who waits gets a turn, in a number of rounds that is known beforehand."""
        for _ in range(3 * len(self.queue) + 3 * len(self.sequences) + 3):
            self.admit()
            for sequence in self.running():
                self.hold(sequence, len(sequence.known))
                self.prefixes.update(sequence.sequence_id, len(sequence.known))
            self.check()
            self.admit()
            for sequence in self.running():
                if len(sequence.cells) >= len(sequence.known):
                    self.release(sequence)
            self.check()
        assert not self.queue
        assert not self.running()

    # the naive model

    def holders(self) -> list[NaiveSequence]:
        return [*self.sequences, *self.saved.values()]

    def holder(self, number: int) -> NaiveSequence:
        return self.saved[number] if number in self.saved else self.sequences[number]

    def running(self) -> list[NaiveSequence]:
        return [sequence for sequence in self.sequences if sequence.in_use]

    def touch(self, sequence: NaiveSequence) -> None:
        self.now = sequence.last_used = next(self.uses)

    def hold(self, sequence: NaiveSequence, length: int) -> None:
        sequence.remembered |= set(range(len(sequence.cells), length))
        sequence.remembered = self.remember(sequence.remembered, length)
        sequence.cells = sequence.cells[:length]
        sequence.cells += [next(self.new_cells) for _ in range(length - len(sequence.cells))]

    def remember(self, positions: set[int], length: int) -> set[int]:
        lowest = length - self.memory.num_kept if self.memory.window_len else 0
        return {position for position in positions if lowest <= position < length}

    def can_take(self, length: int, *, held: int, remembered: set[int]) -> bool:
        if length > held:
            return False
        if not self.memory.can_cut:
            return length == held
        first = max(0, length - self.memory.window_len) if self.memory.window_len else 0
        return set(range(first, length)) <= remembered

    def may_see(self, sequence: NaiveSequence, held: Ids, length: int, key: str | None) -> bool:
        if sequence.key is None or sequence.key == key:
            return True
        return any(len(prefix) >= length and held[: len(prefix)] == prefix for prefix in self.world.public)

    def available(self, sequence: NaiveSequence, wanted: Ids, key: str | None) -> int:
        """The longest prefix that can be taken right now."""
        held = sequence.held[: len(sequence.known)] if sequence.in_use else sequence.known
        for length in range(min(len(wanted), len(held)), 0, -1):
            if (
                held[:length] == wanted[:length]
                and self.may_see(sequence, held, length, key)
                and self.can_take(length, held=sequence.num_held, remembered=sequence.remembered)
            ):
                return length
        return 0

    def promised(self, sequence: NaiveSequence, wanted: Ids, key: str | None) -> int:
        """The longest prefix that is not there yet and can be taken once the prompt is computed; 0 if there is none."""
        if not sequence.in_use:
            return 0
        end = len(sequence.known)
        grown = sequence.remembered | set(range(len(sequence.cells), end))
        remembered = self.remember(grown, end)
        held = sequence.held[:end]
        for length in range(min(len(wanted), end), 0, -1):
            if sequence.known[:length] == wanted[:length] and self.may_see(sequence, sequence.known, length, key):
                is_there = length <= len(held) and self.may_see(sequence, held, length, key)
                can_take = self.can_take(length, held=end, remembered=remembered)
                return length if can_take and not is_there else 0
        return 0

    def loss(self, sequence: NaiveSequence, kept: int = 0) -> float:
        return self.num_lost(sequence, kept) / (self.now - sequence.last_used + 1)

    def num_lost(self, sequence: NaiveSequence, kept: int = 0) -> int:
        length = len(sequence.known)
        num_shared = max((self.common(sequence, other) for other in self.holders() if other is not sequence), default=0)
        return min(length - num_shared, length - kept)

    def common(self, left: NaiveSequence, right: NaiveSequence) -> int:
        """Tokens of the left one that its owner could also have from the right one, by the same key or as public."""
        length = 0
        while length < min(len(left.known), len(right.known)) and left.known[length] == right.known[length]:
            length += 1
        if left.key == right.key:
            return length
        return min(length, self.public_len(left), self.public_len(right))

    def public_len(self, sequence: NaiveSequence) -> int:
        if sequence.key is None:
            return len(sequence.known)
        whole = [prefix for prefix in self.world.public if sequence.known[: len(prefix)] == prefix]
        return max((len(prefix) for prefix in whole), default=0)

    # what must be true

    def check_wait(self, wait: Wait, request: Request, promised: int) -> None:
        awaited = self.sequences[wait.sequence_id]
        others = [s for s in self.sequences if self.promised(s, request.prompt[:-1], request.key) == promised]
        assert awaited in others
        assert len(awaited.cells) == max(len(sequence.cells) for sequence in others)
        assert wait.number == awaited.number
        if awaited.key in (None, request.key):
            assert wait.length == promised
        else:
            whole = [len(prefix) for prefix in self.world.public if awaited.known[: len(prefix)] == prefix]
            assert wait.length == min(length for length in whole if length >= promised)
        assert not self.prefixes.is_over(wait)

    def check_target(self, claim: Claim, request: Request) -> None:
        source, target = self.holder(claim.source), self.sequences[claim.sequence_id]
        assert not target.in_use
        assert self.available(source, request.prompt[:-1], request.key) >= claim.length
        free = [sequence for sequence in self.sequences if not sequence.in_use]
        whole = [s for s in free if claim.length == len(s.cells) == self.available(s, request.prompt[:-1], request.key)]
        if claim.length and whole and not source.is_saved:
            assert source is target
            assert target in whole
        elif any(not sequence.cells for sequence in free):
            assert not target.cells
        else:
            losses = {s.sequence_id: self.loss(s, claim.length if s is source else 0) for s in free}
            assert losses[target.sequence_id] == min(losses.values())

    def check_joined(self, claim: Claim, request: Request, longest_live: int) -> None:
        """What is brought back shares its beginning with the cells of another sequence, if one has enough of it."""
        memory = self.memory
        can_join = memory.is_unified and memory.can_cut and not memory.window_len
        if not can_join or longest_live < self.world.least_restored:
            assert claim.joined is None
        elif claim.joined is None:
            assert self.available(self.sequences[claim.sequence_id], request.prompt[:-1], request.key) == longest_live
        else:
            assert claim.joined != claim.sequence_id
            assert claim.num_joined == longest_live
            assert self.available(self.sequences[claim.joined], request.prompt[:-1], request.key) == longest_live
            self.seen["join"] = self.seen.get("join", 0) + 1

    def check_displaced(self, claim: Claim) -> None:
        target = self.sequences[claim.sequence_id]
        kept = claim.length if claim.source == claim.sequence_id else 0
        if len(target.cells) == kept:
            assert claim.displaced is None
        else:
            assert claim.displaced is not None
            self.check_held(claim.displaced, target, kept)

    def check_held(self, held: Held, sequence: NaiveSequence, kept: int = 0) -> None:
        assert tuple(held.tokens.tolist()) == sequence.known
        assert (held.sequence_id, held.key) == (sequence.sequence_id, sequence.key)
        assert set(range(held.lowest, len(held.tokens))) == sequence.remembered
        assert held.last_used == sequence.last_used
        assert (held.num_lost, held.loss) == (self.num_lost(sequence, kept), self.loss(sequence, kept))

    def check(self) -> None:
        held = [sequence.cells for sequence in self.sequences]
        assert self.prefixes.num_cells == len({cell for cells in held for cell in cells})
        running = [sequence.cells for sequence in self.running()]
        assert self.prefixes.num_running_cells == len({cell for cells in running for cell in cells})
        for sequence in self.sequences:
            state = SequenceState.IDLE if sequence.cells else SequenceState.FREE
            assert self.prefixes.state(sequence.sequence_id) is (SequenceState.IN_USE if sequence.in_use else state)
            in_use = {cell for other in self.running() for cell in other.cells}
            if not sequence.in_use:
                assert self.prefixes.num_idle_cells(sequence.sequence_id) == len(set(sequence.cells) - in_use)
        assert self.prefixes.num_saved == len(self.saved) <= self.world.most_saved
        for holder in self.holders():
            assert self.prefixes.num_tokens(holder.sequence_id) == holder.num_held
        for request in self.queue:
            self.check_waiter(request.wait)
        self.check_trees()

    def check_waiter(self, wait: Wait | None) -> None:
        """Who waits, waits for somebody who will get there: nobody waits for ever."""
        if wait is None:
            return
        awaited = self.sequences[wait.sequence_id]
        is_coming = awaited.in_use and awaited.number == wait.number and len(awaited.cells) < wait.length
        assert self.prefixes.is_over(wait) is not is_coming
        if is_coming:
            assert wait.length <= len(awaited.known)

    def check_trees(self) -> None:
        """Every sequence is found under its key and nowhere else, and under no key as far as it is public."""
        expected: dict[str | None, set[int]] = {}
        for sequence in self.holders():
            if sequence.known:
                expected.setdefault(sequence.key, set()).add(sequence.sequence_id)
                if self.public_len(sequence):
                    expected.setdefault(None, set()).add(sequence.sequence_id)
        assert {key: set(tree._ends) for key, tree in self.prefixes._trees.items()} == expected

    def saw(self, answer: Claim | Wait | None) -> None:
        match answer:
            case None:
                kind = "none"
            case Wait():
                kind = "wait"
            case Claim() if answer.source in self.saved:
                kind = "restore"
            case Claim() if answer.source != answer.sequence_id:
                kind = "copy"
            case Claim():
                kind = "continue" if answer.length else "alone"
        self.seen[kind] = self.seen.get(kind, 0) + 1


PUBLIC: tuple[Ids, ...] = ((0, 1), (0, 1, 1, 0, 1), (1, 1, 1))
WORLDS = {
    "unified": World(4, KVMemory()),
    "unified, few waits": World(5, KVMemory(), least_wait=3),
    "many sequences": World(9, KVMemory(), least_wait=2),
    "one sequence": World(1, KVMemory()),
    "separate": World(4, KVMemory(is_unified=False)),
    "recurrent": World(4, KVMemory(can_cut=False)),
    "sliding window": World(4, KVMemory(window_len=3, num_kept=6)),
    "tight window": World(4, KVMemory(is_unified=False, window_len=4, num_kept=4)),
    "keys": World(5, KVMemory(), keys=("a", "b"), public=PUBLIC),
    "keys, window, no key": World(5, KVMemory(window_len=2, num_kept=5), keys=("a", "b", None), public=PUBLIC),
    "saved": World(3, KVMemory(), most_saved=6),
    "saved, one sequence": World(1, KVMemory(), most_saved=3, least_restored=2),
    "saved, separate": World(3, KVMemory(is_unified=False), most_saved=4, least_restored=3),
    "saved, recurrent": World(3, KVMemory(can_cut=False), most_saved=8),
    "saved, window": World(3, KVMemory(window_len=3, num_kept=20), most_saved=6),
    "saved, keys": World(3, KVMemory(), keys=("a", "b", None), public=PUBLIC, most_saved=8),
}


@pytest.mark.parametrize("name", WORLDS)
def test_ten_thousand_random_operations_beside_a_naive_model(name: str) -> None:
    bench = Bench(WORLDS[name], seed=len(name))
    operations = [bench.arrive, bench.admit, bench.progress, bench.finish, bench.abort, bench.leave, bench.evict]
    weights = [25, 25, 35, 20, 5, 2, 3]
    if bench.world.most_saved:
        operations.append(bench.forget)
        weights[-1:] = [10, 3]
    for number in range(10_000):
        bench.dice.choices(operations, weights)[0]()
        bench.check()
        if number % 500 == 499:
            bench.drain()
    possible = {"none", "continue", "alone"}
    possible |= {"wait", "copy"} if bench.world.num_sequences > 1 else set()
    possible |= {"restore"} if bench.world.most_saved else set()
    possible |= {"join"} if name in {"saved", "saved, keys"} else set()
    assert possible <= bench.seen.keys(), bench.seen
