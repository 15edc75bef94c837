"""What steps cost, learned from measured ones, and what prompts may therefore take beside running streams."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf

import numpy as np
import numpy.typing as npt

_LEAST_SHARE = 0.25  # of the time of a step's decodes: when these alone miss the target, prompts do not stand still
_LEAST_PROMPT_TOKENS = 8
_FIRST_PROMPT_TOKENS = 16
_GROWTH = 2  # between neighbouring steps, because small chunks say little about the price of large ones
_QUANTILE = 0.75  # of the measured prices is assumed: on a noisy machine most steps shall keep the target
_NUM_MIXED_STEPS = 24
_NUM_PROMPT_STEPS = 4
_NUM_CHEAP_STEPS = 4  # in a row, and the machine is believed to be quicker than it was
_CHEAP = 0.75  # of the assumed price
_NUM_WIDTH_STEPS = 7
_WIDTH_LIFETIME = 500
_LARGEST_TRIAL = 4  # times the widest step that was seen

_ANY_NUMBER = 1 << 30  # of tokens

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prices:
    """What prompt tokens add to a step: seconds for each, and further seconds for each token that precedes it."""

    per_token: float
    per_context: float = 0.0

    def at(self, context: float) -> float:
        """Return what one token takes after ``context`` others."""
        return self.per_token + self.per_context * context

    def seconds(self, num_tokens: int, context: int) -> float:
        """Return what a chunk of a prompt takes after ``context`` computed tokens."""
        return num_tokens * (self.per_token + self.per_context * (context + num_tokens / 2))

    def affordable(self, seconds: float, context: int) -> int:
        """Return how many tokens after ``context`` computed ones take at most ``seconds``."""
        linear, quadratic = self.per_token + self.per_context * context, self.per_context / 2
        if linear <= 0:
            return _ANY_NUMBER
        # the root of quadratic n² + linear n = seconds, in the form that has no cancellation
        root = 2 * seconds / (linear + (linear * linear + 4 * quadratic * seconds) ** 0.5)
        return int(min(root * (1 + 1e-12), _ANY_NUMBER))


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the prompts of one step may take together. ``seconds`` binds only beyond ``least_tokens``."""

    most_tokens: int
    seconds: float = inf
    least_tokens: int = 0


class StepCosts:
    """Learns what steps cost: seconds by number of decoded tokens, and the price of a prompt token beside them.

    Only the last steps count, by medians and quantiles, so that neither noise nor a stray slow step matters and a
    machine that changes is followed. The price is measured at chunks like those that are planned with it: what is wrong
    in the split between decodes and prompts, or with a straight line, cancels out where the target is met.
    """

    def __init__(self) -> None:
        self.widths = WidthSeconds()
        self._mixed: deque[_Sample] = deque(maxlen=_NUM_MIXED_STEPS)
        self._alone: deque[_Sample] = deque(maxlen=_NUM_PROMPT_STEPS)
        self._prices: Prices | None = None

    def observe(self, *, num_decoded: int, prompts: Sequence[tuple[int, int]], seconds: float) -> None:
        """Learn from a finished step.

        Args:
            num_decoded: tokens of decoding sequences, drafted ones included.
            prompts: of each prompt the number of tokens and how many precede them.
            seconds: what the step took.

        """
        if not prompts:
            self.widths.observe(num_decoded, seconds)
            return
        num_tokens = sum(number for number, _ in prompts)
        context = sum(number * (before + number / 2) for number, before in prompts) / num_tokens
        base = (self.widths.seconds(num_decoded) or 0.0) if num_decoded else 0.0
        price = max(seconds - base, 0.0) / num_tokens
        sample = _Sample(num_tokens, context, price, is_cheap=price < _CHEAP * self.prices.at(context))
        recent = self._mixed if num_decoded else self._alone
        recent.append(sample)
        if len(recent) > _NUM_CHEAP_STEPS and all(late.is_cheap for late in islice(reversed(recent), _NUM_CHEAP_STEPS)):
            # High prices of a time when others used the machine would keep chunks small, and small ones count little.
            for _ in range(len(recent) - _NUM_CHEAP_STEPS):
                recent.popleft()
        self._prices = None

    @property
    def prices(self) -> Prices:
        """What prompt tokens cost at present; nothing, as long as no step had any."""
        if self._prices is None:
            self._prices = _fit([*(self._mixed or self._alone)])
        return self._prices

    def allowance(self, width: int, *, room: int, target: float) -> Allowance:
        """Return what prompts may take.

        Args:
            width: tokens of decoding sequences in the step; with none, prompts take all the room.
            room: tokens that the batch has left.
            target: seconds that the step may take.

        """
        if not width:
            return Allowance(room)
        base = self.widths.seconds(width) or 0.0
        most = _GROWTH * max((sample.num_tokens for sample in self._mixed), default=0)
        seconds = max(target - base, _LEAST_SHARE * base)
        return Allowance(min(max(most, _FIRST_PROMPT_TOKENS), room), seconds, _LEAST_PROMPT_TOKENS)


class WidthSeconds:
    """What steps without prompts took, by their number of tokens. What has not been seen for long is forgotten."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}
        self._seen_at: dict[int, int] = {}
        self._known: list[int] = []
        self._num_observed = 0

    def observe(self, width: int, seconds: float) -> None:
        """Learn from a step of ``width`` tokens."""
        self._num_observed += 1
        recent = self._recent.setdefault(width, deque(maxlen=_NUM_WIDTH_STEPS))
        recent.append(seconds)
        self._medians[width] = sorted(recent)[len(recent) // 2]
        self._seen_at.pop(width, None)
        self._seen_at[width] = self._num_observed  # the one not seen for longest stays first
        longest_ago = next(iter(self._seen_at))
        if self._num_observed - self._seen_at[longest_ago] > _WIDTH_LIFETIME:
            del self._seen_at[longest_ago], self._recent[longest_ago], self._medians[longest_ago]
        self._known = sorted(self._medians)

    def seconds(self, width: int) -> float | None:
        """Return what a step takes, between known widths by interpolation, beyond them rather too much.

        ``None`` if nothing is known at all.
        """
        below, above = self._neighbours(width)
        if below is None or above is None:
            nearest = below if above is None else above
            return None if nearest is None else self._medians[nearest] * max(width / nearest, 1.0)
        return self._between(below, above, width)

    def hopeful_seconds(self, width: int) -> float | None:
        """Return the same, but beyond known widths rather too little: what is to be tried has to look worth it.

        ``None`` also for widths so far beyond that trying one could take very long.
        """
        below, above = self._neighbours(width)
        if above is None and below is not None and width > _LARGEST_TRIAL * below:
            return None
        if below is None or above is None:
            nearest = below if above is None else above
            return None if nearest is None else self._medians[nearest] * min(width / nearest, 1.0)
        return self._between(below, above, width)

    def _neighbours(self, width: int) -> tuple[int | None, int | None]:
        known, position = self._known, bisect_left(self._known, width)
        above = known[position] if position < len(known) else None
        if above == width:
            return above, above
        return known[position - 1] if position else None, above

    def _between(self, below: int, above: int, width: int) -> float:
        start, end = self._medians[below], self._medians[above]
        return start if below == above else start + (end - start) * (width - below) / (above - below)


@dataclass(frozen=True, slots=True)
class _Sample:
    num_tokens: int
    context: float
    seconds_per_token: float
    is_cheap: bool = False


def _fit(samples: Sequence[_Sample]) -> Prices:
    """Fit a line of price over context that few outliers cannot tilt: Theil and Sen's slope, then a quantile."""
    if not samples:
        return Prices(0.0)
    weights = np.array([sample.num_tokens for sample in samples], dtype=np.float64)
    contexts = np.array([sample.context for sample in samples])
    values = np.array([sample.seconds_per_token for sample in samples])
    slope = _slope(contexts, values, weights)
    middle = _weighted_quantile(values, weights, 0.5)
    offset = _weighted_quantile(values - slope * contexts, weights, _QUANTILE)
    # A line fitted at the end of a long prompt says little about the start of the next one.
    return Prices(max(offset, middle / 3), slope)


def _slope(contexts: Values, values: Values, weights: Values) -> float:
    distances = np.subtract.outer(contexts, contexts)
    # between neighbouring contexts, noise tells a slope from nothing
    wide = distances > 0.1 * (contexts.max() - contexts.min())
    if not wide.any():
        return 0.0
    slopes = np.subtract.outer(values, values)[wide] / distances[wide]
    return max(_weighted_quantile(slopes, np.minimum.outer(weights, weights)[wide], 0.5), 0.0)


def _weighted_quantile(values: Values, weights: Values, quantile: float) -> float:
    order = np.argsort(values)
    cumulative = weights[order].cumsum()
    return float(values[order[int(np.searchsorted(cumulative, quantile * cumulative[-1]))]])
