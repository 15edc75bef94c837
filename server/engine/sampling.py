"""The next token from a row of logits: llama.cpp's chain of filters, computed with numpy.

The order is llama.cpp's: logit bias and penalties, top-k, top-p, min-p, temperature, then one draw. Sorting a
vocabulary of 150 000 tokens takes milliseconds, so every filter first cuts to a superset of the tokens that it can
keep, which a few linear passes find; the result is the same. Meaning of the filters:
https://github.com/ggml-org/llama.cpp/blob/master/tools/completion/README.md#generation-flags
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from server.core.request import SamplingParameters
from server.engine.runner import Logits

Ids = npt.NDArray[np.intp]
Weights = npt.NDArray[np.float64]

_REPEAT_WINDOW = 64
_BLOCK_LEN = 256
_SORTED_LEN = 1024
_LEAST_TEMPERATURE = 1e-6  # below it neighbouring float32 logits are worlds apart: greedy


class Sampler:
    """The sampling state of one sequence: its random numbers and what it has said so far."""

    def __init__(self, parameters: SamplingParameters, *, index: int, end_tokens: Sequence[int]) -> None:
        """Create the state.

        Args:
            parameters: the request's parameters; a seed of ``None`` draws one from the system.
            index: the choice; each choice of a request has its own random numbers.
            end_tokens: tokens that ``ignore_eos`` forbids.

        """
        self._parameters = parameters
        self._random = _random_numbers(parameters.seed, index)
        self._bias_ids, self._bias_values = _bias(parameters, end_tokens)
        self._counts: Counter[int] = Counter()
        self._recent: deque[int] = deque(maxlen=_REPEAT_WINDOW)
        self._counts_output = parameters.frequency_penalty != 0 or parameters.presence_penalty != 0
        self._watches_recent = parameters.repeat_penalty != 1

    def observe_prompt(self, tokens: Sequence[int]) -> None:
        """Let the repeat penalty see the end of the prompt."""
        self._recent.extend(tokens[-_REPEAT_WINDOW:])

    def sample(self, logits: Logits) -> int:
        """Choose a token and remember it. ``logits``, one row of the vocabulary, is not changed."""
        token = _choose(self._adjust(logits), self._parameters, self._random)
        if self._counts_output:
            self._counts[token] += 1
        if self._watches_recent:
            self._recent.append(token)
        return token

    def _adjust(self, logits: Logits) -> Logits:
        penalizes = (self._counts_output and self._counts) or (self._watches_recent and self._recent)
        if not len(self._bias_ids) and not penalizes:
            return logits
        adjusted = logits.copy()
        adjusted[self._bias_ids] += self._bias_values
        if self._watches_recent and self._recent:
            penalize_repeats(adjusted, self._recent, self._parameters.repeat_penalty)
        if self._counts:
            penalize_counts(adjusted, self._counts, self._parameters)
        return adjusted


def penalize_repeats(logits: Logits, recent: Sequence[int] | deque[int], penalty: float) -> None:
    """Shrink the logits of recent tokens, in place: divide positive ones, multiply negative ones."""
    ids = np.fromiter(set(recent), dtype=np.intp)
    values = logits[ids]
    logits[ids] = np.where(values > 0, values / penalty, values * penalty)


def penalize_counts(logits: Logits, counts: Counter[int], parameters: SamplingParameters) -> None:
    """Subtract OpenAI's penalties, in place: frequency times count, presence once.

    https://platform.openai.com/docs/api-reference/chat/create#chat-create-frequency_penalty
    """
    ids = np.fromiter(counts.keys(), dtype=np.intp, count=len(counts))
    times = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))
    logits[ids] -= times * np.float32(parameters.frequency_penalty) + np.float32(parameters.presence_penalty)


def candidates(logits: Logits, parameters: SamplingParameters) -> Ids | None:
    """Return the tokens that survive top-k, top-p and min-p, in no particular order; ``None`` when nothing filters.

    Tokens that tie with the last one of the nucleus all survive.
    """
    if parameters.top_k <= 0 and parameters.top_p >= 1 and parameters.min_p <= 0:
        return None
    cut_by_rank = 0 < parameters.top_k < len(logits)
    ids = top_ids(logits, parameters.top_k) if cut_by_rank else None
    values = logits if ids is None else logits[ids]
    weights = np.exp(values - values.max())
    floor = parameters.min_p
    if parameters.top_p < 1:
        floor = max(floor, nucleus_floor(weights, parameters.top_p))
    kept = np.flatnonzero(weights >= floor)
    return kept if ids is None else ids[kept]


def nucleus_floor(weights: Logits, top_p: float) -> float:
    """Return the smallest weight in the nucleus: the fewest, heaviest tokens that reach ``top_p`` of the mass.

    A selection instead of a sort: the window that holds the answer shrinks with each pass. Real models put most of the
    mass on few tokens, which the maxima of blocks find in one.
    """
    target = top_p * float(weights.sum(dtype=np.float64))
    window, above = weights, 0.0
    head_floor = _kth_block_maximum(weights, len(weights) // _BLOCK_LEN // 2)
    if head_floor:
        head = weights[np.flatnonzero(weights >= head_floor)]
        window = head if head.sum(dtype=np.float64) >= target else weights
    window = window[window > 0]
    while len(window) > _SORTED_LEN:
        is_upper = window >= np.sqrt(float(window.min()) * float(window.max()))
        upper = window[is_upper]
        if len(upper) == len(window):
            break
        mass = float(upper.sum(dtype=np.float64))
        if above + mass >= target:
            window = upper
        else:
            window, above = window[~is_upper], above + mass
    descending = np.sort(window)[::-1]
    cumulative = descending.cumsum(dtype=np.float64) + above
    position = int(np.searchsorted(cumulative, target, side="left"))
    return float(descending[min(position, len(descending) - 1)])


def top_ids(logits: Logits, k: int) -> Ids:
    """Return the ``k`` largest logits' ids, largest first; among equal logits the smaller id first."""
    if k <= 0:
        return np.empty(0, dtype=np.intp)
    floor = _kth_block_maximum(logits, k)
    if floor is None:
        floor = float(np.partition(logits, -k)[-k]) if k < len(logits) else float("-inf")
    ids = np.flatnonzero(logits >= floor)
    return ids[np.argsort(-logits[ids], kind="stable")][:k]


def log_normalizer(logits: Logits) -> float:
    """Return the logarithm of the sum of exponentials: subtracting it from a logit gives a log probability."""
    peak = logits.max()
    return float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))


def _random_numbers(seed: int | None, index: int) -> random.Random:
    if seed is None:
        return random.Random()
    # as text, because Python takes the absolute value of numbers: -5 and 5 would be the same seed
    return random.Random(str(seed) if index == 0 else f"{seed}/{index}")


def _bias(parameters: SamplingParameters, end_tokens: Sequence[int]) -> tuple[Ids, Logits]:
    bias = dict(parameters.logit_bias)
    if parameters.ignore_eos:
        bias |= dict.fromkeys(end_tokens, float("-inf"))
    return np.array(list(bias), dtype=np.intp), np.array(list(bias.values()), dtype=np.float32)


def _choose(logits: Logits, parameters: SamplingParameters, numbers: random.Random) -> int:
    likeliest = int(logits.argmax())
    if not np.isfinite(logits[likeliest]):  # argmax finds a NaN if there is one
        raise ValueError("no token can be chosen: the largest logit is not finite")
    if parameters.temperature < _LEAST_TEMPERATURE or parameters.top_k == 1:
        return likeliest
    ids = candidates(logits, parameters)
    # every filter keeps the likeliest token, so its logit is the peak of what is left as well
    kept = logits if ids is None else logits[ids]
    position = _draw(kept, logits[likeliest], parameters.temperature, numbers.random())
    return position if ids is None else int(ids[position])


def _draw(logits: Logits, peak: np.float32, temperature: float, number: float) -> int:
    """Invert the distribution function at ``number``: first by blocks of tokens, then within one block."""
    weights = logits - peak
    if temperature != 1:
        weights *= np.float32(1 / temperature)
    np.exp(weights, out=weights)
    cumulative = _block_sums(weights).cumsum(dtype=np.float64)
    target = number * cumulative[-1]
    block = _first_above(cumulative, target)
    start = block * _BLOCK_LEN
    within = weights[start : start + _BLOCK_LEN].cumsum(dtype=np.float64)
    before = cumulative[block - 1] if block else 0.0
    return start + _first_above(within, target - before)


def _block_sums(weights: Logits) -> Logits:
    whole = len(weights) // _BLOCK_LEN * _BLOCK_LEN
    sums = weights[:whole].reshape(-1, _BLOCK_LEN).sum(axis=1)
    return sums if whole == len(weights) else np.append(sums, weights[whole:].sum())


def _first_above(cumulative: Weights, target: float) -> int:
    # Rounding may put the target outside of its block: never on a token without weight at either end.
    last = int(np.searchsorted(cumulative, cumulative[-1], side="left"))
    return min(int(np.searchsorted(cumulative, max(target, 0.0), side="right")), last)


def _kth_block_maximum(logits: Logits, k: int) -> float | None:
    """Return a value that at least ``k`` logits reach, from the maxima of blocks; ``None`` if there are too few."""
    num_blocks = len(logits) // _BLOCK_LEN
    if not 0 < k < num_blocks:
        return None
    maxima = logits[: num_blocks * _BLOCK_LEN].reshape(num_blocks, _BLOCK_LEN).max(axis=1)
    return float(np.partition(maxima, num_blocks - k)[num_blocks - k])
