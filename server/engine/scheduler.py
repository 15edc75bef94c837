"""Which tokens the next step computes: pure decisions over counts and prices, no tensors and no queues.

There are no phases, only catching up: a sequence has known tokens and computed tokens, and a step spends a budget on
closing the gaps.

Running streams come first. While there are any, the prompts of a step share the seconds that the inter-token target
leaves; without any, they share the whole batch. Two rules divide that share:

Among API keys, virtual service: the key that has been served least, by its weight, is next. That is weighted deficit
round robin without rounds, which fits steps of changing size better: two keys that both wait never differ by more than
the largest step. A key that starts to wait enters level with the one served least, so silence saves nothing up.

Within a key, the prompt with the fewest tokens left is next, except that a quarter goes to the oldest. So a prompt is
computed at the latest when its key was served four times what it and the older ones needed, whatever arrives later: a
long one is not starved. And at the latest when its key was served 4/3 of what it and the shorter ones need: a short one
is not stuck behind a long one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf

from server.engine.step_costs import Allowance, Prices, StepCosts

_OLDEST_SHARE = 0.25  # of what a key gets in a step

Key = str | None


@dataclass(frozen=True, slots=True)
class Demand:
    """What one running sequence could use.

    Attributes:
        sequence_id: names it in the plan.
        num_missing: known tokens that are not computed; of a decoding sequence the token that was sampled last, and
            those that a grammar put behind it.
        is_decoding: whether the prompt is computed.
        num_computed: tokens that precede the missing ones.
        key: the API key that pays, any name for it; ``None`` is a key like the others.
        arrived_at: when the request came; seconds of any clock.
        num_drafted: guessed tokens that could be verified after the missing ones, if it is decoding.

    """

    sequence_id: int
    num_missing: int
    is_decoding: bool
    num_computed: int = 0
    key: Key = None
    arrived_at: float = 0.0
    num_drafted: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """Tokens of one sequence to compute in the step; of a decoding one, those behind the missing ones are drafted."""

    sequence_id: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Shares:
    """What keys were served while prompts waited, in prompt tokens by weight.

    Attributes:
        served: for every key that waits, and for those that left having been served more than who still waits.
        weights: shares relative to each other, above zero; 1 for a key that is not named.

    """

    served: Mapping[Key, float] = field(default_factory=dict)
    weights: Mapping[Key, float] = field(default_factory=dict)

    def weight(self, key: Key) -> float:
        """Return the weight of a key."""
        return self.weights.get(key, 1.0)


def plan_step(
    demands: Sequence[Demand], costs: StepCosts, shares: Shares, *, batch_size: int, target: float
) -> list[Grant]:
    """Decide what the next step computes.

    Args:
        demands: running sequences.
        costs: what steps have cost so far.
        shares: what the keys have been served so far, from ``charged``.
        batch_size: most tokens of the step; at least the number of sequences.
        target: seconds that a step may take while streams decode.

    Returns:
        Grants of at least one token, decodes before prompts; something, if there are demands.

    """
    decoding = [demand for demand in demands if demand.is_decoding]
    decodes = grant_decodes(decoding, batch_size, most_behind(decoding, costs, target))
    width = sum(grant.num_tokens for grant in decodes)
    prompts = [demand for demand in demands if not demand.is_decoding]
    if not prompts:
        return decodes
    allowance = costs.allowance(width, room=batch_size - width, target=target)
    return decodes + divide(prompts, allowance, costs.prices, shares)


def most_behind(decodes: Sequence[Demand], costs: StepCosts, target: float) -> int:
    """Return how many tokens beyond one for each decoding sequence, all of them known, a step has the time for."""
    wanted = sum(demand.num_missing - 1 for demand in decodes)
    while wanted and (costs.widths.seconds(len(decodes) + wanted) or 0.0) > target:
        wanted -= 1
    return wanted


def grant_decodes(decodes: Sequence[Demand], batch_size: int, num_behind: int = 0) -> list[Grant]:
    """Give every decoding sequence a token, then further ones in order while the batch has room.

    Args:
        decodes: decoding sequences.
        batch_size: most tokens of all.
        num_behind: most known tokens beyond the first ones; drafted tokens can only follow when all known ones come.

    """
    room = batch_size - len(decodes)
    grants = []
    for demand in decodes:
        num_known = min(demand.num_missing - 1, num_behind, room)
        num_drafted = min(demand.num_drafted, room - num_known) if num_known == demand.num_missing - 1 else 0
        num_behind -= num_known
        room -= num_known + num_drafted
        grants.append(Grant(demand.sequence_id, 1 + num_known + num_drafted))
    return grants


def divide(prompts: Sequence[Demand], allowance: Allowance, prices: Prices, shares: Shares) -> list[Grant]:
    """Divide an allowance among prompts: the key that was served least first, in a key its oldest and its shortest.

    Args:
        prompts: sequences whose prompt is not computed.
        allowance: what they may take together.
        prices: what a token takes.
        shares: what the keys have been served so far.

    """
    served = levels(prompts, shares)
    purse = _Purse(allowance, prices)
    queue = sorted(prompts, key=lambda demand: (demand.num_missing, demand.arrived_at, demand.sequence_id))
    visited: set[Key] = set()
    while queue and purse.num_left > 0:
        shortest = min(queue, key=lambda demand: served[demand.key])  # the first of equals: of the shortest
        demand, most = shortest, shortest.num_missing
        if shortest.key not in visited:
            visited.add(shortest.key)
            oldest = min((other for other in queue if other.key == shortest.key), key=_age)
            if oldest is not shortest:
                demand, most = oldest, ceil(purse.affordable(oldest) * _OLDEST_SHARE)
        num_tokens = purse.spend(demand, most)
        if num_tokens == 0:
            break
        served[demand.key] += num_tokens / shares.weight(demand.key)
        if purse.granted[demand.sequence_id] == demand.num_missing:
            queue.remove(demand)
    return [Grant(sequence_id, num_tokens) for sequence_id, num_tokens in purse.granted.items()]


def _age(demand: Demand) -> tuple[float, int]:
    return demand.arrived_at, demand.sequence_id


class _Purse:
    """What is left of an allowance, and what it has bought."""

    def __init__(self, allowance: Allowance, prices: Prices) -> None:
        self.num_left = allowance.most_tokens
        self.granted: dict[int, int] = {}
        self._seconds = allowance.seconds
        self._num_least = allowance.least_tokens
        self._prices = prices

    def affordable(self, demand: Demand) -> int:
        """Return how many further tokens after those of a prompt can be paid for, whether it has them or not."""
        by_time = self.num_left
        if self._seconds != inf:
            context = demand.num_computed + self.granted.get(demand.sequence_id, 0)
            by_time = self._prices.affordable(self._seconds, context)
        return min(self.num_left, max(by_time, self._num_least))

    def spend(self, demand: Demand, most: int) -> int:
        """Grant a prompt up to ``most`` further tokens and return how many it could be."""
        granted = self.granted.get(demand.sequence_id, 0)
        num_tokens = min(self.affordable(demand), most, demand.num_missing - granted)
        if num_tokens:
            self.granted[demand.sequence_id] = granted + num_tokens
        self.num_left -= num_tokens
        self._num_least -= num_tokens
        self._seconds = max(self._seconds - self._prices.seconds(num_tokens, demand.num_computed + granted), 0.0)
        return num_tokens


def levels(prompts: Sequence[Demand], shares: Shares) -> dict[Key, float]:
    """Return what the waiting keys have been served; a new one enters level with the one served least."""
    keys = dict.fromkeys(demand.key for demand in prompts)
    known = [shares.served[key] for key in keys if key in shares.served]
    floor = min(known or shares.served.values(), default=0.0)
    return {key: shares.served.get(key, floor) for key in keys}


def charged(shares: Shares, demands: Sequence[Demand], grants: Sequence[Grant]) -> Shares:
    """Return the shares after a step that granted these prompts their tokens.

    When no prompt waits, everything is forgotten: nobody was kept waiting. A key that left is forgotten as soon as the
    others were served as much, so there are never more keys than sent requests since some prompt last waited.
    """
    prompts = {demand.sequence_id: demand for demand in demands if not demand.is_decoding}
    if not prompts:
        return replace(shares, served={})
    served = levels([*prompts.values()], shares)
    for grant in grants:
        demand = prompts.get(grant.sequence_id)
        if demand is not None:
            served[demand.key] += grant.num_tokens / shares.weight(demand.key)
    floor = min(served.values())
    left = {key: level for key, level in shares.served.items() if key not in served and level > floor}
    return replace(shares, served=left | served)
