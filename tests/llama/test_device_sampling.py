"""Tokens that llama.cpp draws inside of its graph; the CPU does what a GPU does, with the same code around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import permutations
from math import inf, nan, sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from server.core.batch import Chunk, DeviceSampling
from server.core.errors import BackendError
from server.llama.device_sampling import invert
from server.llama.model import ContextOptions, LlamaModel, LoadOptions
from server.llama.runner import LlamaRunner, Logits

GREEDY = DeviceSampling(seed=1, temperature=0)
PROMPT = list(range(20, 36))
FILTERS = [
    DeviceSampling(seed=1),
    DeviceSampling(seed=1, temperature=0.4),
    DeviceSampling(seed=1, top_k=3),
    DeviceSampling(seed=1, top_p=0.3),
    DeviceSampling(seed=1, top_p=0.0),
    DeviceSampling(seed=1, min_p=0.4),
    DeviceSampling(seed=1, top_k=20, top_p=0.8, min_p=0.05, temperature=0.7, logit_bias={3: 2.5, 7: -inf, 511: -inf}),
    DeviceSampling(seed=1, logit_bias={7: 100.0}),
    DeviceSampling(seed=1, temperature=0, logit_bias={7: 3.0, 8: -100.0}),
]


def options(*, device_sampling: bool = True, num_sequences: int = 4, is_unified: bool = True) -> ContextOptions:
    return ContextOptions(
        num_sequences, 1024, 256, 64, threads=1, is_unified=is_unified, device_sampling=device_sampling
    )


@pytest.fixture(scope="module")
def dense(dense_path: Path) -> Iterator[LlamaModel]:
    loaded = LlamaModel.load(dense_path, LoadOptions())
    yield loaded
    loaded.close()


@pytest.fixture
def runner(model: LlamaModel) -> Iterator[LlamaRunner]:
    """Each kind of memory: they cut batches differently."""
    made = LlamaRunner(model, options())
    yield made
    made.close()


@pytest.fixture
def plain(model: LlamaModel) -> Iterator[LlamaRunner]:
    made = LlamaRunner(model, options(device_sampling=False))
    yield made
    made.close()


@pytest.fixture
def dense_runner(dense: LlamaModel) -> Iterator[LlamaRunner]:
    made = LlamaRunner(dense, options())
    yield made
    made.close()


def logits_of(runner: LlamaRunner, tokens: list[int], num_rows: int = 1) -> Logits:
    runner.clear(0)
    assert runner.sample_on_device(0, None)
    rows = runner.decode([Chunk(0, 0, tokens, num_rows)]).copy()
    runner.clear(0)
    return rows


def probabilities(logits: Logits, sampling: DeviceSampling) -> npt.NDArray[np.float64]:
    """The slow, obviously right way: sort everything, walk down."""
    values = logits.astype(np.float64)
    for token, bias in sampling.logit_bias.items():
        values[token] += bias
    order = np.argsort(-values, kind="stable")
    order = order[: sampling.top_k] if sampling.top_k > 0 else order
    weights = np.exp(values[order] - values[order[0]])
    num_kept = int((weights.cumsum() < sampling.top_p * weights.sum()).sum()) + 1 if sampling.top_p < 1 else len(order)
    order, weights = order[:num_kept], weights[:num_kept]
    order = order[weights >= sampling.min_p]
    result: npt.NDArray[np.float64] = np.zeros(len(values))
    result[order] = np.exp((values[order] - values[order[0]]) / max(sampling.temperature, 1e-6))
    result /= result.sum()
    return result


def draw(runner: LlamaRunner, sampling: DeviceSampling, times: int) -> list[int]:
    """Draw from the same logits again and again, for four sequences at once, each time with another seed."""
    tokens = []
    length = len(PROMPT)
    runner.decode([Chunk(i, 0, PROMPT[:-1], num_rows=0) for i in range(4)])
    for attempt in range(times):
        for sequence_id in range(4):
            assert runner.sample_on_device(sequence_id, replace(sampling, seed=attempt * 4 + sequence_id))
            assert runner.share_prefix(sequence_id, sequence_id, length - 1)
        runner.decode([Chunk(i, length - 1, PROMPT[-1:], num_rows=1) for i in range(4)])
        tokens += runner.drawn().tolist()
    return tokens


def assert_drawn_from(tokens: list[int], expected: npt.NDArray[np.float64]) -> None:
    """Chi-square, tokens that are expected less than 8 times taken together."""
    counts = Counter(tokens)
    assert set(counts) <= set(np.flatnonzero(expected).tolist())
    times = len(tokens)
    often = [token for token in np.flatnonzero(expected) if expected[token] * times >= 8]
    bins = [(counts[int(token)], times * expected[token]) for token in often]
    rest = times - sum(count for count, _ in bins), times - sum(mean for _, mean in bins)
    bins += [rest] if rest[1] > 1 else []
    chi_square = sum((count - mean) ** 2 / mean for count, mean in bins)
    freedom = max(len(bins) - 1, 1)
    # Wilson and Hilferty's approximation of the quantile that is exceeded once in 30 000 times
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 4 * sqrt(2 / (9 * freedom))) ** 3


# What is drawn.


def test_greedy_is_the_likeliest_token(runner: LlamaRunner, plain: LlamaRunner) -> None:
    for length in range(1, len(PROMPT)):
        for sequence_id in range(2):
            runner.clear(sequence_id)
            assert runner.sample_on_device(sequence_id, GREEDY)
        runner.decode([Chunk(i, 0, PROMPT[: length + i], num_rows=1) for i in range(2)])

        expected = [int(logits_of(plain, PROMPT[: length + i])[0].argmax()) for i in range(2)]
        assert runner.drawn().tolist() == expected


@pytest.mark.parametrize("sampling", FILTERS)
def test_draws_follow_the_distribution(dense_runner: LlamaRunner, sampling: DeviceSampling) -> None:
    expected = probabilities(logits_of(dense_runner, PROMPT)[0], sampling)

    assert_drawn_from(draw(dense_runner, sampling, 300), expected)


class Numbers:
    """The random numbers of a native chain: its Mersenne Twister, two words for each number."""

    def __init__(self, seed: int) -> None:
        self._twister = np.random.MT19937()
        self._twister._legacy_seeding(seed)  # as C++ does

    def choose(self, expected: npt.NDArray[np.float64]) -> int:
        low, high = (int(word) for word in self._twister.random_raw(2))
        return int(np.searchsorted(expected.cumsum(), (low + (high << 32)) / 2**64, side="right"))


def test_random_numbers_move_on_by_the_tokens_that_are_taken(dense: LlamaModel, dense_runner: LlamaRunner) -> None:
    sampling = DeviceSampling(seed=5, temperature=0.8)
    twin, numbers, expected = LlamaRunner(dense, options(device_sampling=False)), Numbers(5), list[int]()
    while len(expected) < 12:
        expected.append(numbers.choose(probabilities(logits_of(twin, PROMPT + expected)[0], sampling)))
    twin.close()

    assert dense_runner.sample_on_device(0, sampling)
    dense_runner.decode([Chunk(0, 0, PROMPT[:8], num_rows=0)])
    dense_runner.decode([Chunk(0, 8, PROMPT[8:], num_rows=1)])
    taken = dense_runner.drawn().tolist()
    for num_true, num_wrong in [(0, 0), (2, 0), (0, 3), (1, 2), (0, 0), (2, 1)]:
        draft = expected[len(taken) : len(taken) + num_true] + [9] * num_wrong
        computed = len(PROMPT) + len(taken) - 1
        dense_runner.decode([Chunk(0, computed, [taken[-1], *draft], num_rows=1 + len(draft))])
        taken += dense_runner.drawn()[: 1 + num_true].tolist()
        dense_runner.share_prefix(0, 0, len(PROMPT) + len(taken) - 1)

    assert taken == expected


def test_the_same_seed_draws_the_same_tokens(dense_runner: LlamaRunner) -> None:
    drawn = []
    for seed in [3, 4, 3, 2**32 - 1, -1, 2**63]:
        dense_runner.clear(0)
        assert dense_runner.sample_on_device(0, DeviceSampling(seed=seed))
        dense_runner.decode([Chunk(0, 0, PROMPT, num_rows=8)])
        drawn.append(dense_runner.drawn().tolist())

    assert drawn[0] == drawn[2]
    assert len({tuple(tokens) for tokens in drawn}) >= 3


def test_a_request_that_goes_on_where_another_ended_has_its_own_numbers(dense_runner: LlamaRunner) -> None:
    drawn = []
    for seed in range(10):
        dense_runner.clear(0)
        dense_runner.clear(1)
        for sequence_id in (0, 1):
            assert dense_runner.sample_on_device(sequence_id, DeviceSampling(seed=100))
        dense_runner.decode([Chunk(0, 0, PROMPT[:8], num_rows=3)])
        for sequence_id in (0, 1):
            assert dense_runner.sample_on_device(sequence_id, DeviceSampling(seed=seed))
        dense_runner.decode([Chunk(0, 8, PROMPT[8:], num_rows=1), Chunk(1, 0, PROMPT, num_rows=1)])
        drawn.append(dense_runner.drawn().tolist())

    assert all(after == alone for after, alone in drawn)
    assert len({after for after, _ in drawn}) > 5


def test_rows_without_numbers_are_the_callers(dense_runner: LlamaRunner) -> None:
    nothing = dict.fromkeys(range(dense_runner.shape.vocabulary_size), -inf)
    for temperature in (0.0, 1.0):
        dense_runner.clear(0)
        dense_runner.clear(1)
        assert dense_runner.sample_on_device(0, DeviceSampling(1, temperature, logit_bias=nothing))
        assert dense_runner.sample_on_device(1, GREEDY)
        rows = dense_runner.decode([Chunk(i, 0, PROMPT, num_rows=1) for i in range(2)])

        drawn = dense_runner.drawn()
        assert drawn[0] == -1
        assert np.isnan(rows[0]).all()
        assert drawn[1] >= 0


def test_a_number_beyond_the_sum_still_finds_a_token() -> None:
    row = np.array([0.25, 0.0, 0.5, 0.0], dtype=np.float32)
    assert [invert(row, number) for number in (0.0, 0.32, 0.34, 1 - 1e-12)] == [0, 0, 2, 2]
    assert invert(np.full(3, nan, dtype=np.float32), 0.5) is None


# Who draws.


@pytest.mark.parametrize("is_unified", [True, False])
@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_mixed_batches_are_right_in_every_order(dense: LlamaModel, order: tuple[int, ...], *, is_unified: bool) -> None:
    chunks = [  # greedy on the device, rows for the caller, a draft on the device, a prompt that goes on
        Chunk(0, 0, PROMPT[:5], num_rows=1),
        Chunk(1, 0, PROMPT[:9], num_rows=2),
        Chunk(2, 0, PROMPT[:6], num_rows=4),
        Chunk(3, 0, PROMPT[:3], num_rows=0),
    ]
    twin = LlamaRunner(dense, options(device_sampling=False, is_unified=is_unified))
    runner = LlamaRunner(dense, options(is_unified=is_unified))
    for sequence_id in (0, 2, 3):
        assert runner.sample_on_device(sequence_id, GREEDY)

    expected = twin.decode([chunks[i] for i in order])
    rows = runner.decode([chunks[i] for i in order])

    owners = [i for i in order for _ in range(chunks[i].num_rows)]
    drawn = runner.drawn()
    assert len(drawn) == len(rows) == len(owners)
    for owner, token, row, right in zip(owners, drawn, rows, expected, strict=True):
        if owner == 1:
            assert token == -1
            np.testing.assert_allclose(row, right, atol=2e-3)
        else:
            assert token == right.argmax()
    runner.close()
    twin.close()


def test_every_kind_of_memory_takes_turns(runner: LlamaRunner, plain: LlamaRunner) -> None:
    """The caller and the device by turns, while others go on; filters that are replaced, repeated and removed."""
    kinds = [None, GREEDY, GREEDY, DeviceSampling(seed=4, top_k=1), None, None, GREEDY]
    length = 4
    for sequence_id in range(3):
        runner.decode([Chunk(sequence_id, 0, PROMPT[:length], num_rows=0)])
        plain.decode([Chunk(sequence_id, 0, PROMPT[:length], num_rows=0)])
        assert runner.drawn().tolist() == []
    for step, sampling in enumerate(kinds):
        others = [GREEDY if step % 2 else None, GREEDY]
        for sequence_id, wanted in enumerate([sampling, *others]):
            assert runner.sample_on_device(sequence_id, wanted)
        chunks = [Chunk(i, length + step, [PROMPT[length + step]], num_rows=1) for i in range(3)]
        expected, rows = plain.decode(chunks), runner.decode(chunks)
        for row, (token, wanted) in enumerate(zip(runner.drawn(), [sampling, *others], strict=True)):
            if wanted is None:
                assert token == -1
                np.testing.assert_allclose(rows[row], expected[row], atol=2e-3)
            else:
                assert token == expected[row].argmax()


def test_many_requests_on_one_context(dense_runner: LlamaRunner) -> None:
    numbers = np.random.default_rng(0)
    for _ in range(60):
        sequence_id = int(numbers.integers(4))
        dense_runner.clear(sequence_id)
        sampling = FILTERS[int(numbers.integers(len(FILTERS)))] if numbers.random() < 0.8 else None
        assert dense_runner.sample_on_device(sequence_id, sampling)
        num_rows = int(numbers.integers(0, 5))
        dense_runner.decode([Chunk(sequence_id, 0, PROMPT, num_rows=num_rows)])
        assert ((dense_runner.drawn() >= 0) == (sampling is not None)).all()


def test_a_failed_decode_disturbs_nothing(dense: LlamaModel) -> None:
    runner = LlamaRunner(dense, ContextOptions(2, 256, 256, 64, threads=1, device_sampling=True))
    assert runner.sample_on_device(0, DeviceSampling(seed=5))
    runner.decode([Chunk(0, 0, PROMPT, num_rows=1)])
    expected = runner.drawn().tolist()
    assert runner.sample_on_device(0, DeviceSampling(seed=5))
    for start in range(0, 256, 64):
        with suppress(BackendError):
            runner.decode([Chunk(1, start, [1] * 64, num_rows=0)])
    runner.clear(0)
    runner.clear(1)

    runner.decode([Chunk(0, 0, PROMPT, num_rows=1)])
    assert runner.drawn().tolist() == expected
    runner.close()


def test_contexts_side_by_side(dense: LlamaModel) -> None:
    runners = [LlamaRunner(dense, options()) for _ in range(3)]
    for runner in runners[:2]:
        runner.warm_up()
        assert runner.sample_on_device(0, GREEDY)
    for runner in runners:
        runner.decode([Chunk(0, 0, PROMPT, num_rows=1)])
    assert runners[0].drawn()[0] == runners[1].drawn()[0] >= 0
    assert runners[2].drawn()[0] == -1

    runners[0].close()
    runners[0].close()
    runners[1].decode([Chunk(0, len(PROMPT), [5], num_rows=1)])
    assert runners[1].drawn()[0] >= 0
    for runner in runners[1:]:
        runner.close()


def test_with_the_setting_off_everything_is_the_callers(plain: LlamaRunner) -> None:
    assert not plain.sample_on_device(0, GREEDY)
    assert plain.drawn().tolist() == []
    plain.decode([Chunk(0, 0, PROMPT, num_rows=2)])
    assert plain.drawn().tolist() == [-1, -1]


# What is refused: llama.cpp would compute something else, or end the process.


@pytest.mark.parametrize(
    "sampling",
    [
        DeviceSampling(seed=1, min_p=1.0),
        DeviceSampling(seed=1, min_p=0.9999),
        DeviceSampling(seed=1, temperature=nan),
        DeviceSampling(seed=1, temperature=inf),
        DeviceSampling(seed=1, top_p=nan),
        DeviceSampling(seed=1, min_p=nan),
        DeviceSampling(seed=1, logit_bias={512: 1.0}),
        DeviceSampling(seed=1, logit_bias={-1: 1.0}),
        DeviceSampling(seed=1, logit_bias={1: inf}),
        DeviceSampling(seed=1, logit_bias={1: nan}),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(dense_runner: LlamaRunner, sampling: DeviceSampling) -> None:
    assert dense_runner.sample_on_device(0, GREEDY)
    assert not dense_runner.sample_on_device(0, sampling)
    dense_runner.decode([Chunk(0, 0, PROMPT, num_rows=1)])
    assert dense_runner.drawn().tolist() == [-1]


@pytest.mark.parametrize("top_k", [0, -1, 1, 2, 511, 512, 513, 10**6])
def test_every_top_k_is_taken(dense_runner: LlamaRunner, top_k: int) -> None:
    assert dense_runner.sample_on_device(0, DeviceSampling(seed=1, top_k=top_k))
    dense_runner.decode([Chunk(0, 0, PROMPT, num_rows=1)])
    assert 0 <= dense_runner.drawn()[0] < 512
