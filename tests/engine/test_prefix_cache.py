from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.engine.prefix_cache import Claim, PrefixCache, common_prefix_len
from server.engine.runner import Tokens


def tokens(*ids: int) -> Tokens:
    return np.array(ids, dtype=np.int32)


def claimed(cache: PrefixCache, prompt: Tokens) -> Claim:
    claim = cache.claim(prompt)
    assert claim is not None
    return claim


def served(cache: PrefixCache, prompt: Tokens) -> Claim:
    """Compute a prompt and finish at once."""
    claim = claimed(cache, prompt)
    cache.release(claim.sequence_id, prompt)
    return claim


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((), (), 0),
        ((1,), (), 0),
        ((1, 2), (1, 2), 2),
        ((1, 2), (1, 2, 3), 2),
        ((1, 2, 3), (1, 9, 3), 1),
        ((0, 2), (1, 2), 0),
    ],
)
def test_common_prefix_len(left: tuple[int, ...], right: tuple[int, ...], expected: int) -> None:
    assert common_prefix_len(tokens(*left), tokens(*right)) == expected
    assert common_prefix_len(tokens(*right), tokens(*left)) == expected


def test_a_conversation_continues_in_its_own_sequence() -> None:
    cache = PrefixCache(3)
    first = served(cache, tokens(1, 2, 3, 4))
    second = claimed(cache, tokens(1, 2, 3, 4, 5, 6))
    assert second == Claim(first.sequence_id, first.sequence_id, 4)


def test_the_last_token_of_a_prompt_is_left_to_compute() -> None:
    cache = PrefixCache(2)
    served(cache, tokens(1, 2, 3))
    assert claimed(cache, tokens(1, 2, 3)).length == 2
    assert claimed(PrefixCache(1), tokens(1)).length == 0


def test_a_running_sequence_shares_its_prefix_and_stays_untouched() -> None:
    cache = PrefixCache(2)
    running = claimed(cache, tokens(1, 2, 3, 4))
    cache.update(running.sequence_id, tokens(1, 2, 3))
    other = claimed(cache, tokens(1, 2, 3, 9))
    assert other == Claim(1 - running.sequence_id, running.sequence_id, 3)


def test_a_branch_of_a_conversation_leaves_the_trunk() -> None:
    cache = PrefixCache(2)
    trunk = served(cache, tokens(1, 2, 3, 4))
    branch = served(cache, tokens(1, 2, 9, 9))
    assert branch == Claim(1 - trunk.sequence_id, trunk.sequence_id, 2)
    assert claimed(cache, tokens(1, 2, 3, 4, 5)) == Claim(trunk.sequence_id, trunk.sequence_id, 4)


def test_a_stranger_takes_an_empty_sequence_before_one_worth_keeping() -> None:
    cache = PrefixCache(3)
    for number in range(3):
        served(cache, tokens(number, 7, 7))
    for number in range(3):
        assert claimed(cache, tokens(number, 7, 7, 8)).length == 3


def test_a_stranger_takes_the_least_recently_used_sequence() -> None:
    cache = PrefixCache(3)
    ids = [served(cache, tokens(number, 7, 7)).sequence_id for number in range(3)]
    served(cache, tokens(0, 7, 7, 8))
    assert claimed(cache, tokens(9, 9, 9)).sequence_id == ids[1]
    assert claimed(cache, tokens(9, 8, 8)).sequence_id == ids[2]
    assert claimed(cache, tokens(9, 7, 7)).sequence_id == ids[0]
    assert cache.claim(tokens(9, 6, 6)) is None


def test_the_only_free_sequence_is_cut_back_to_what_matches() -> None:
    cache = PrefixCache(1)
    served(cache, tokens(1, 2, 3, 4))
    assert claimed(cache, tokens(1, 2, 9, 9)) == Claim(0, 0, 2)


def test_eviction_takes_idle_sequences_oldest_first() -> None:
    cache = PrefixCache(3)
    ids = [served(cache, tokens(number, 7)).sequence_id for number in range(3)]
    busy = claimed(cache, tokens(1, 7, 8)).sequence_id
    assert busy == ids[1]
    assert cache.num_idle_tokens == 4
    assert [cache.evict(), cache.evict(), cache.evict()] == [ids[0], ids[2], None]
    assert cache.num_idle_tokens == 0


def test_what_ended_last_is_evicted_last_whenever_it_began() -> None:
    cache = PrefixCache(2)
    first, second = claimed(cache, tokens(1, 7)), claimed(cache, tokens(2, 7))
    cache.release(second.sequence_id, tokens(2, 7))
    cache.release(first.sequence_id, tokens(1, 7))
    assert [cache.evict(), cache.evict()] == [second.sequence_id, first.sequence_id]


class PrefixCacheMachine(RuleBasedStateMachine):
    """Random use over a two-token vocabulary, beside a plain list of what each sequence holds."""

    SEQUENCES = 3
    prompts = st.lists(st.sampled_from([0, 1]), min_size=1, max_size=6).map(tuple)

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(self.SEQUENCES)
        self.held: list[tuple[int, ...]] = [()] * self.SEQUENCES
        self.running: dict[int, tuple[int, ...]] = {}
        self.idle_since: dict[int, int] = {}
        self.time = 0

    @rule(prompt=prompts, can_share=st.booleans())
    def claim(self, prompt: tuple[int, ...], *, can_share: bool) -> None:
        longest = max(common_prefix_len(tokens(*held), tokens(*prompt[:-1])) for held in self.held)
        had_empty = any(not held for i, held in enumerate(self.held) if i not in self.running)
        claim = self.cache.claim(tokens(*prompt))
        if claim is None:
            assert len(self.running) == self.SEQUENCES
            return
        target = claim.sequence_id
        assert target not in self.running
        assert claim.length == longest
        assert self.held[claim.source][: claim.length] == prompt[: claim.length]
        if had_empty:  # then nothing that is worth keeping is lost
            assert not self.held[target] or self.held[target] == prompt[: claim.length]
        elif claim.source != target:
            others = [i for i in self.idle_since if i not in self.running and i != claim.source]
            assert target == min(others, key=lambda i: self.idle_since[i])
        self.held[target] = prompt[: claim.length] if can_share else ()
        if not can_share:
            self.cache.update(target, tokens())
        self.running[target] = prompt

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        target = data.draw(st.sampled_from(sorted(self.running)))
        more = data.draw(st.integers(len(self.held[target]), len(self.running[target])))
        self.held[target] = self.running[target][:more]
        self.cache.update(target, tokens(*self.held[target]))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), completion=st.lists(st.sampled_from([0, 1]), max_size=3), failed=st.booleans())
    def release(self, data: st.DataObject, completion: list[int], *, failed: bool) -> None:
        target = data.draw(st.sampled_from(sorted(self.running)))
        computed = self.held[target] == self.running.pop(target)
        if computed:
            self.held[target] += tuple(completion)
        if failed:
            self.held[target] = ()
        self.cache.release(target, tokens(*self.held[target]))
        self.time += 1
        self.idle_since[target] = self.time

    @rule()
    def evict(self) -> None:
        idle = [i for i in range(self.SEQUENCES) if i not in self.running and self.held[i]]
        evicted = self.cache.evict()
        assert evicted == min(idle, key=lambda i: self.idle_since[i], default=None)
        if evicted is not None:
            self.held[evicted] = ()

    @invariant()
    def idle_tokens_are_counted(self) -> None:
        idle = sum(len(held) for i, held in enumerate(self.held) if i not in self.running)
        assert self.cache.num_idle_tokens == idle


PrefixCacheMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestPrefixCache = PrefixCacheMachine.TestCase
