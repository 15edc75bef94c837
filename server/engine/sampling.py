"""The next token from a row of logits: llama.cpp's chain of filters, computed with numpy.

The order is llama.cpp's: logit bias and penalties, top-k, top-p, min-p, temperature, then one draw. Sorting a
vocabulary of 150 000 tokens takes milliseconds, so every filter first cuts to a superset of the tokens that it can
keep, which a few linear passes find; the result is the same. Meaning of the filters:
https://github.com/ggml-org/llama.cpp/blob/master/tools/completion/README.md#generation-flags
"""

from __future__ import annotations

import math
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
_COLUMN_LEN = 128
_MANY_COLUMNS = 16
_HEAD_WEIGHT = 1 / 4096
_SORTED_LEN = 4096
_BINS_PER_LOGIT = 128
_NUM_BINS = 4096
_MARGIN = 1e-3
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
        token = self.draw(self.adjust(logits))
        self.observe(token)
        return token

    def observe(self, token: int) -> None:
        """Let the penalties see a token of the completion."""
        if self._counts_output:
            self._counts[token] += 1
        if self._watches_recent:
            self._recent.append(token)

    def draw(self, adjusted: Logits) -> int:
        """Return the position of one of some logits that are adjusted already: all of the vocabulary, or some."""
        return choose(adjusted, self._parameters, self._random)

    def adjust(self, logits: Logits) -> Logits:
        """Apply bias and penalties; ``logits`` itself is returned where there are none, and never changed."""
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


def choose(logits: Logits, parameters: SamplingParameters, numbers: random.Random) -> int:
    """Return the token that the next random number stands for; greedy takes the likeliest and no number.

    Raises:
        ValueError: the largest logit is not finite.

    """
    if parameters.temperature < _LEAST_TEMPERATURE or parameters.top_k == 1:
        likeliest = int(logits.argmax())
        _check_peak(logits[likeliest])
        return likeliest
    ids = candidates(logits, parameters)
    if ids is None:
        return _draw(logits, parameters.temperature, numbers.random())
    return int(ids[_draw(logits[ids], parameters.temperature, numbers.random())])


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

    Among equal logits at the end of the nucleus the smaller ids survive.

    Raises:
        ValueError: the largest logit is not finite.

    """
    if 0 < parameters.top_k < len(logits):
        ids, peak = _largest(logits, parameters.top_k)
        _check_peak(peak)
        ids = _sorted(ids, logits)[: parameters.top_k]
        return ids[: _num_kept(logits[ids], parameters)]
    if parameters.top_p < 1:
        ids = nucleus(logits, parameters.top_p)
    elif parameters.min_p > 0:
        # a little further down than float32 can tell: what is kept is decided by the weights
        floor = _check_peak(logits.max()) + np.float32(math.log(min(parameters.min_p, 1)) - _MARGIN)
        ids = np.flatnonzero(logits >= floor)
    else:
        return None
    if parameters.min_p > 0:
        values = logits[ids]
        ids = ids[np.exp(values - values.max()) >= parameters.min_p]
    return ids


def nucleus(logits: Logits, top_p: float) -> Ids:
    """Return the fewest, likeliest tokens that reach ``top_p`` of the mass, in no particular order.

    A selection instead of a sort: in real models the likeliest tokens alone reach it; otherwise the token where it is
    reached is looked for in a histogram.
    """
    below = logits - _check_peak(logits.max())
    weights = np.exp(below)
    head = np.flatnonzero(weights >= _HEAD_WEIGHT)
    if len(head) <= _SORTED_LEN:
        target = top_p * float(_block_sums(weights).sum(dtype=np.float64))
        head = _sorted(head, logits)
        cumulative = weights[head].cumsum(dtype=np.float64)
        if cumulative[-1] >= target:
            return head[: int(np.searchsorted(cumulative, target)) + 1]
    below *= -_BINS_PER_LOGIT
    bins = np.minimum(below, _NUM_BINS - 1, out=below).astype(np.intp)
    cumulative = np.bincount(bins, weights=weights).cumsum()
    target = top_p * cumulative[-1]
    last_bin = int(np.searchsorted(cumulative, target))
    last = _sorted(np.flatnonzero(bins == last_bin), logits)
    before = cumulative[last_bin - 1] if last_bin else 0.0
    within = weights[last].cumsum(dtype=np.float64) + before
    return np.concatenate((np.flatnonzero(bins < last_bin), last[: int(np.searchsorted(within, target)) + 1]))


def top_ids(logits: Logits, k: int) -> Ids:
    """Return the ``k`` largest logits' ids, largest first; among equal logits the smaller id first."""
    if k <= 0:
        return np.empty(0, dtype=np.intp)
    ids, _peak = _largest(logits, k)
    return _sorted(ids, logits)[:k]


def log_normalizer(logits: Logits) -> float:
    """Return the logarithm of the sum of exponentials: subtracting it from a logit gives a log probability."""
    peak = logits.max()
    return float(peak) + math.log(_block_sums(np.exp(logits - peak)).sum(dtype=np.float64))


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


def _check_peak(peak: np.float32) -> np.float32:
    if not math.isfinite(peak):  # numpy's maxima are NaN if anything is
        raise ValueError("no token can be chosen: the largest logit is not finite")
    return peak


def _largest(logits: Logits, k: int) -> tuple[Ids, np.float32]:
    """Return a superset of the ``k`` tokens with the largest logits, smaller ids first, and the largest logit.

    The row is looked at as a matrix: the maxima of its columns tell a logit that ``k`` tokens reach, and which columns
    hold those tokens. (The maxima of columns are three times as fast as those of rows.)
    """
    num_columns = len(logits) // _COLUMN_LEN
    if k >= num_columns:
        peak = logits.max()
        floor = np.partition(logits, len(logits) - k)[len(logits) - k] if k < len(logits) else peak - np.inf
        return np.flatnonzero(logits >= floor), peak
    matrix = logits[: num_columns * _COLUMN_LEN].reshape(_COLUMN_LEN, num_columns)
    rest = logits[num_columns * _COLUMN_LEN :]
    maxima = np.maximum.reduce(matrix, axis=0)
    peak = maxima.max()
    floor = np.partition(maxima, num_columns - k)[num_columns - k]
    columns = np.flatnonzero(maxima >= floor)
    if len(columns) * _MANY_COLUMNS > num_columns:
        return np.flatnonzero(logits >= floor), logits.max()
    rows, positions = np.divmod(np.flatnonzero(matrix.take(columns, axis=1) >= floor), len(columns))
    ids = rows * num_columns + columns[positions]
    if len(rest):
        ids = np.concatenate((ids, np.flatnonzero(rest >= floor) + matrix.size))
        peak = np.maximum(peak, rest.max())  # NaN if either is
    return ids, peak


def _sorted(ids: Ids, logits: Logits) -> Ids:
    """Likeliest first, equal ones in the order that they have."""
    return ids[np.argsort(-logits[ids], kind="stable")]


def _num_kept(descending: Logits, parameters: SamplingParameters) -> int:
    """How many of sorted logits survive top-p and min-p."""
    weights = np.exp(descending - descending[0])
    num_kept = len(weights)
    if parameters.top_p < 1:
        cumulative = weights.cumsum(dtype=np.float64)
        num_kept = min(num_kept, int(np.searchsorted(cumulative, parameters.top_p * cumulative[-1])) + 1)
    if parameters.min_p > 0:
        num_kept = min(num_kept, int(np.count_nonzero(weights >= parameters.min_p)))
    return num_kept


def _draw(logits: Logits, temperature: float, number: float) -> int:
    """Invert the distribution function at ``number``: first by blocks of tokens, then within one block."""
    weights = logits - _check_peak(logits.max())
    if temperature != 1:
        weights *= np.float32(1 / temperature)
    np.exp(weights, out=weights)
    if len(weights) <= _BLOCK_LEN:
        cumulative = weights.cumsum(dtype=np.float64)
        return _first_above(cumulative, number * cumulative[-1])
    cumulative = _block_sums(weights).cumsum(dtype=np.float64)
    target = number * cumulative[-1]
    block = _first_above(cumulative, target)  # what is before it is not above the target
    start = block * _BLOCK_LEN
    within = weights[start : start + _BLOCK_LEN].cumsum(dtype=np.float64)
    before = cumulative[block - 1] if block else 0.0
    return start + _first_above(within, target - before)


def _block_sums(weights: Logits) -> Logits:
    whole = len(weights) // _BLOCK_LEN * _BLOCK_LEN
    # twice as fast as sum(axis=1)
    sums: Logits = np.einsum("ij->i", weights[:whole].reshape(-1, _BLOCK_LEN))
    return sums if whole == len(weights) else np.append(sums, weights[whole:].sum())


def _first_above(cumulative: Weights, target: float) -> int:
    # Rounding may put the target behind its block: never on tokens without weight at the end.
    position = int(cumulative.searchsorted(target, side="right"))
    if position == len(cumulative):
        return int(cumulative.searchsorted(cumulative[-1]))
    return position
