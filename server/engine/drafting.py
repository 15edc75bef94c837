"""Speculation without a second model: guess tokens, compute them in the same step, keep what sampling confirms.

A draft is verified by sampling as if there were none: the sampler draws the next token from each row of logits, and the
rows count as long as what is drawn is what was drafted. For a draft that names one token this is the rule of
speculative sampling (https://arxiv.org/abs/2211.17192): the draft token x is kept with probability p(x), and otherwise
the draw is from p without x. It says more, too: the sampler sees the same logits and uses the same random number for
the same position as without speculation, so a seed gives the same completion, not only the same distribution, as far
as the model computes the same logits in a wider batch.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from server.engine.runner import Logits

Numbers = npt.NDArray[np.unsignedinteger]

SHORTEST_MATCH = 2
LONGEST_MATCH = 8
LONGEST_DRAFT = 15

_MOST_CANDIDATES = 16
_NUM_SLOTS = 1 << 16
_HASH_FACTORS = (0x9E3779B1, 0x85EBCA77)
_BULK_LEN = 64
_LEAST_GAIN = 1.1  # tokens per second that a draft has to promise, times those without it: measurements err
_NONE = -1


def verify(sample: Callable[[Logits], int], rows: Iterable[Logits], draft: Sequence[int]) -> Iterator[int]:
    """Sample along a draft: yield confirmed tokens and then the first one that differs or follows the draft.

    Lazy, so that a consumer who stops (at an end token, say) leaves no trace of later tokens in the sampler.

    Args:
        sample: draws a token from logits and remembers it for the penalties, as ``Sampler.sample`` does.
        rows: logits after the last known token and after each drafted one: one more than the draft has tokens.
        draft: the guess.

    """
    expected = iter(draft)
    for logits in rows:
        token = sample(logits)
        yield token
        if token != next(expected, None):
            return


@dataclass(frozen=True, slots=True)
class Draft:
    """A guess: tokens, and the chance of each to be confirmed when all before it are."""

    tokens: Sequence[int]
    chance: float


class Drafter(Protocol):
    """Guesses how one sequence goes on. It sees what came of its guesses in the tokens of the next call."""

    def propose(self, tokens: Sequence[int], most: int) -> Draft | None:
        """Guess at most ``most`` tokens to follow.

        Args:
            tokens: all known tokens of the sequence; they start with those of the call before.
            most: how many can be of use: what the completion may still have, but one.

        """
        ...


def draft_lengths(
    drafts: Sequence[Draft | None],
    *,
    num_decodes: int,
    seconds: Callable[[int], float | None],
    most_tokens: int,
    most_seconds: float,
) -> list[int]:
    """Decide how many tokens of each draft a step verifies: those that give most tokens per second, zero if none pays.

    Args:
        drafts: of some of the decoding sequences.
        num_decodes: known tokens of decoding sequences, one or more of each, that the step computes anyway.
        seconds: what a step of a number of tokens takes, ``None`` as long as nothing is known.
        most_tokens: all drafts together get no more.
        most_seconds: no draft makes a step longer than this.

    """
    none = [0] * len(drafts)
    base = seconds(num_decodes)
    if not base:
        return none
    # The chance that a token counts falls along each draft: the likeliest m tokens are always beginnings of drafts.
    chances = sorted(
        (
            (draft.chance ** (position + 1), i)
            for i, draft in enumerate(drafts)
            if draft
            for position in range(len(draft.tokens))
        ),
        key=lambda chance: -chance[0],
    )
    tokens, best, best_num = float(num_decodes), _LEAST_GAIN * num_decodes / base, 0
    for number, (chance, _) in enumerate(chances[:most_tokens], start=1):
        tokens += chance
        wider = seconds(num_decodes + number)
        if wider and wider <= most_seconds and tokens / wider > best:
            best, best_num = tokens / wider, number
    lengths = none
    for _, i in chances[:best_num]:
        lengths[i] += 1
    return lengths


class Acceptance:
    """The chance that a guess is confirmed, by how much context matched: what a model's sequences learn together."""

    def __init__(self) -> None:
        self._rates = [Rate(memory=200.0) for _ in range(LONGEST_MATCH + 1)]

    def observe(self, match_len: int, *, hit: bool) -> None:
        """Learn from a guess that was made after ``match_len`` matching tokens."""
        self._rates[match_len].observe(hit=hit)

    def chance(self, match_len: int) -> float:
        """Return the chance of a guess after ``match_len`` matching tokens."""
        return self._rates[match_len].given(0.5)


class Rate:
    """A share of hits that fades: about the last ``memory`` observations count."""

    def __init__(self, memory: float) -> None:
        self._keep = 1 - 1 / memory
        self._num_hits = 0.0
        self._num_seen = 0.0

    def observe(self, *, hit: bool) -> None:
        """Learn from an observation."""
        self._num_hits = self._keep * self._num_hits + hit
        self._num_seen = self._keep * self._num_seen + 1

    def given(self, prior: float, weight: float = 4.0) -> float:
        """Return the rate, to which ``prior`` contributes like ``weight`` observations."""
        return (self._num_hits + weight * prior) / (self._num_seen + weight)


class PromptLookup:
    """Drafts what followed the last occurrence of the sequence's end, in its prompt or in what it has said since.

    It measures itself against every token that comes, drafted or not: so while drafting does not pay it costs no step
    to find out when it would.
    """

    def __init__(self, acceptance: Acceptance) -> None:
        """Start with what the model's other sequences have learned, and teach them."""
        self._shared = acceptance
        self._own = Rate(memory=20.0)
        self._index = NgramIndex()
        self._match: Match | None = None

    def propose(self, tokens: Sequence[int], most: int) -> Draft | None:
        """Guess at most ``most`` tokens to follow ``tokens``; ``None`` without a match."""
        new = tokens[len(self._index) :]
        if not len(self._index) or len(new) > _BULK_LEN:  # a prompt: nobody guesses what users say
            self._index.extend(new)
            self._match = self._index.find()
        else:
            for token in new:
                self._push(token)
        if self._match is None:
            return None
        return Draft(self._index.continuation(self._match, min(most, LONGEST_DRAFT)), self._chance(self._match))

    def _push(self, token: int) -> None:
        match = self._match
        hit = match is not None and self._index[match.end] == token
        if match is not None:
            self._shared.observe(match.length, hit=hit)
            self._own.observe(hit=hit)
        self._index.push(token)
        if match is not None and hit and match.length == LONGEST_MATCH:
            self._match = Match(match.end + 1, LONGEST_MATCH)
        else:
            self._match = self._index.find()

    def _chance(self, match: Match) -> float:
        return self._own.given(self._shared.chance(match.length))


@dataclass(frozen=True, slots=True)
class Match:
    """An earlier occurrence of a sequence's last ``length`` tokens; ``end`` is the position after it."""

    end: int
    length: int


class NgramIndex:
    """Finds where the last tokens of a sequence occurred before, as deflate finds matches: chains of equal hashes.

    A token costs constant time to add and to look up. Memory is 8 bytes a token and 256 KiB: positions live in two flat
    arrays, and what a hash finds is compared token by token.
    """

    def __init__(self) -> None:
        self._tokens = array("i")
        self._newest = array("i", [_NONE]) * _NUM_SLOTS
        # for each position p, an earlier one whose pair of tokens before p has the same hash
        self._earlier = array("i")

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, position: int) -> int:
        return self._tokens[position]

    def push(self, token: int) -> None:
        """Add a token; what ends with the token before it can be found from now on."""
        end = len(self._tokens)
        self._tokens.append(token)
        if end < SHORTEST_MATCH:
            self._earlier.append(_NONE)
            return
        slot = _slot(self._tokens[end - 2], self._tokens[end - 1])
        self._earlier.append(self._newest[slot])
        self._newest[slot] = end

    def extend(self, tokens: Sequence[int]) -> None:
        """Add many tokens at once, faster than one by one."""
        while tokens and len(self._tokens) < SHORTEST_MATCH:
            self.push(tokens[0])
            tokens = tokens[1:]
        if not tokens:
            return
        begin = len(self._tokens)
        self._tokens.extend(tokens)
        window = np.array(self._tokens[begin - 2 : -1], dtype=np.uint32)
        slots = _slots(window[:-1], window[1:])
        order = np.argsort(slots, kind="stable")
        grouped = slots[order]
        newest = np.array(self._newest, dtype=np.int32)
        changes = grouped[1:] != grouped[:-1]
        is_first, is_last = np.concatenate(([True], changes)), np.concatenate((changes, [True]))
        earlier = np.empty(len(order), dtype=np.int32)
        earlier[order] = np.where(is_first, newest[grouped], np.concatenate(([_NONE], order[:-1] + begin)))
        self._earlier.frombytes(earlier.tobytes())
        newest[grouped[is_last]] = order[is_last] + begin
        self._newest = array("i", newest.tobytes())

    def find(self) -> Match | None:
        """Return the longest match of the last tokens, of equally long ones the last."""
        end = len(self._tokens)
        if end < SHORTEST_MATCH + 1:
            return None
        best, best_len = _NONE, SHORTEST_MATCH - 1
        for candidate in islice(self._chain(_slot(self._tokens[end - 2], self._tokens[end - 1])), _MOST_CANDIDATES):
            length = self._common_len(candidate, end)
            if length > best_len:
                best, best_len = candidate, length
                if length == LONGEST_MATCH:
                    break
        return None if best == _NONE else Match(best, best_len)

    def continuation(self, match: Match, most: int) -> list[int]:
        """Return ``most`` tokens that followed a match; where they end, a repetition is taken to go on."""
        followers = self._tokens[match.end : match.end + most]
        return [followers[i % len(followers)] for i in range(most)]

    def _chain(self, slot: int) -> Iterator[int]:
        position = self._newest[slot]
        while position != _NONE:
            yield position
            position = self._earlier[position]

    def _common_len(self, first: int, second: int) -> int:
        tokens, length = self._tokens, 0
        most = min(LONGEST_MATCH, first)
        while length < most and tokens[first - 1 - length] == tokens[second - 1 - length]:
            length += 1
        return length


def _slot(first: int, second: int) -> int:
    mixed = (first * _HASH_FACTORS[0] + second * _HASH_FACTORS[1]) & 0xFFFFFFFF
    return (mixed >> 15) % _NUM_SLOTS


def _slots(first: Numbers, second: Numbers) -> Numbers:
    """Return ``_slot`` of many pairs; unsigned numbers of 32 bits overflow as the mask says."""
    mixed = first * np.uint32(_HASH_FACTORS[0]) + second * np.uint32(_HASH_FACTORS[1])
    # sixteen bits, which numpy sorts in linear time
    return ((mixed >> np.uint32(15)) % np.uint32(_NUM_SLOTS)).astype(np.uint16)
