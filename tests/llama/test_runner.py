from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from server.core.batch import Chunk
from server.core.errors import BackendError, NoFreeCells
from server.llama.devices import system_info
from server.llama.main_memory import give_back_freed
from server.llama.model import ContextOptions, LlamaModel, LoadOptions
from server.llama.openmp import end_workers
from server.llama.runner import LlamaRunner, Logits, SavedSequence

PROMPT = list(range(20, 60))


def last_logits(runner: LlamaRunner, sequence_id: int, tokens: list[int], start: int = 0) -> Logits:
    chunk = Chunk(sequence_id, start, tokens, num_rows=1)
    return np.array(runner.decode([chunk])[0])


def test_rows_belong_to_the_chunks_that_want_them_in_order(runner: LlamaRunner) -> None:
    alone = [last_logits(runner, sequence_id, PROMPT[: 5 + sequence_id]) for sequence_id in (0, 2)]
    for sequence_id in range(3):
        runner.clear(sequence_id)

    rows = runner.decode([Chunk(i, 0, PROMPT[: 5 + i], num_rows=int(i != 1)) for i in range(3)])

    assert rows.shape == (2, runner.shape.vocabulary_size)
    np.testing.assert_allclose(rows, alone, atol=2e-3)


def test_chunked_prompt_gives_the_logits_of_a_whole_one(runner: LlamaRunner) -> None:
    whole = last_logits(runner, 0, PROMPT)

    assert runner.decode([Chunk(1, 0, PROMPT[:7], num_rows=0)]).shape[0] == 0
    runner.decode([Chunk(1, 7, PROMPT[7:30], num_rows=0)])

    np.testing.assert_allclose(last_logits(runner, 1, PROMPT[30:], start=30), whole, atol=2e-3)


@pytest.mark.parametrize("length", [1, 10, 39, 40])
@pytest.mark.parametrize("target", [0, 3])
def test_shared_prefix_is_exact_or_refused(runner: LlamaRunner, length: int, target: int) -> None:
    continuation = [100, 101, 102]
    expected = last_logits(runner, 1, PROMPT[:length] + continuation)
    last_logits(runner, 0, PROMPT)

    if runner.share_prefix(0, target, length):
        shared = last_logits(runner, target, continuation, start=length)
    else:
        shared = last_logits(runner, target, PROMPT[:length] + continuation)

    np.testing.assert_allclose(shared, expected, atol=2e-3)


def test_prefix_of_a_sequence_that_goes_on_is_not_disturbed(runner: LlamaRunner) -> None:
    expected = last_logits(runner, 1, [*PROMPT, 100])
    last_logits(runner, 0, PROMPT)

    if runner.share_prefix(0, 2, 20):
        last_logits(runner, 2, [7, 8, 9], start=20)

    np.testing.assert_allclose(last_logits(runner, 0, [100], start=len(PROMPT)), expected, atol=2e-3)


def test_sharing_more_than_there_is_is_refused(runner: LlamaRunner) -> None:
    last_logits(runner, 0, PROMPT[:5])

    assert not runner.share_prefix(0, 1, 6)
    np.testing.assert_allclose(last_logits(runner, 1, PROMPT[:5]), last_logits(runner, 2, PROMPT[:5]), atol=2e-3)


def test_dense_model_shares_every_prefix(dense_path: Path) -> None:
    model = LlamaModel.load(dense_path, LoadOptions())
    runner = LlamaRunner(model, ContextOptions(2, 256, 256, 64, threads=1))
    last_logits(runner, 0, PROMPT)

    assert all(runner.share_prefix(0, 1, length) for length in (1, 20, len(PROMPT)))

    runner.close()
    model.close()


def test_a_batch_is_never_larger_than_the_cache(dense_path: Path) -> None:
    model = LlamaModel.load(dense_path, LoadOptions())
    runner = LlamaRunner(model, ContextOptions(1, 256, 200, 512, threads=1))
    assert runner.shape.batch_size == 256
    last_logits(runner, 0, [5] * 256)
    runner.close()
    model.close()


def test_full_cache_is_an_error_and_leaves_a_usable_runner(dense_path: Path) -> None:
    model = LlamaModel.load(dense_path, LoadOptions())
    runner = LlamaRunner(model, ContextOptions(2, 256, 256, 64, threads=1))
    expected = last_logits(runner, 0, PROMPT)
    runner.clear(0)
    for start in range(0, 256, 64):
        runner.decode([Chunk(0, start, [5] * 64, num_rows=0)])

    with pytest.raises(BackendError, match="no free KV cells"):
        runner.decode([Chunk(1, 0, PROMPT, num_rows=1)])
    runner.clear(0)
    runner.clear(1)

    np.testing.assert_allclose(last_logits(runner, 1, PROMPT), expected, atol=2e-3)
    runner.close()
    model.close()


def num_threads_after_rest(runner: LlamaRunner, expected: int) -> int:
    """Count threads; one that ends is still counted for a moment."""
    runner.rest()
    process, deadline = psutil.Process(), time.monotonic() + 10
    while (count := int(process.num_threads())) != expected and time.monotonic() < deadline:
        pass
    return count


@pytest.mark.skipif("OPENMP = 1" not in system_info(), reason="this llama.cpp starts threads for each step")
def test_a_runner_that_rests_beside_another_has_no_threads(dense_path: Path) -> None:
    model = LlamaModel.load(dense_path, LoadOptions())
    runner = LlamaRunner(model, ContextOptions(2, 256, 256, 64, threads=3))
    end_workers()
    num_alone = psutil.Process().num_threads()
    expected = last_logits(runner, 0, PROMPT)

    runner.rest()
    assert psutil.Process().num_threads() == num_alone + 2
    other = LlamaRunner(model, ContextOptions(1, 256, 256, 64, threads=1))
    assert num_threads_after_rest(runner, num_alone) == num_alone
    np.testing.assert_allclose(last_logits(runner, 1, PROMPT), expected, atol=2e-3)

    for each in (other, runner):
        each.close()
    model.close()


# What is saved in main memory


@pytest.fixture(params=[True, False], ids=["unified", "separate"])
def layout(model: LlamaModel, request: pytest.FixtureRequest) -> Iterator[LlamaRunner]:
    """A context of four sequences on each kind of model, in each layout."""
    made = LlamaRunner(model, ContextOptions(4, 1024, 256, 64, threads=1, is_unified=request.param))
    yield made
    made.close()


def chosen(runner: LlamaRunner, sequence_id: int, tokens: list[int], count: int, start: int = 0) -> list[int]:
    """Go on greedily."""
    answer: list[int] = []
    while len(answer) < count:
        answer.append(int(last_logits(runner, sequence_id, tokens, start).argmax()))
        start, tokens = start + len(tokens), answer[-1:]
    return answer


def saved(runner: LlamaRunner, sequence_id: int) -> SavedSequence:
    state = runner.save(sequence_id)
    assert state is not None
    return state


def test_what_was_saved_goes_on_token_for_token(layout: LlamaRunner) -> None:
    last_logits(layout, 3, [9, 8, 7])
    last_logits(layout, 0, PROMPT)
    num_bytes = layout.num_state_bytes(0)
    state = saved(layout, 0)
    expected = chosen(layout, 0, [100, 101], 12, start=len(PROMPT))
    layout.clear(0)
    last_logits(layout, 1, [7] * 50)  # into the cells that were left

    assert state.num_bytes == num_bytes
    assert layout.restore(0, state)
    assert chosen(layout, 0, [100, 101], 12, start=len(PROMPT)) == expected
    assert layout.restore(2, state), "a state can be restored more than once, and into another sequence"
    assert chosen(layout, 2, [100, 101], 12, start=len(PROMPT)) == expected


def test_what_was_restored_is_shared_and_saved_again(layout: LlamaRunner) -> None:
    last_logits(layout, 0, PROMPT)
    state = saved(layout, 0)
    expected = chosen(layout, 0, [100], 6, start=len(PROMPT))
    layout.clear(0)

    assert layout.restore(1, state)
    assert layout.share_prefix(1, 2, len(PROMPT))
    last_logits(layout, 3, [9, 8, 7])  # copies between separate caches are made by the next step
    again = saved(layout, 2)
    layout.clear(1)
    assert layout.restore(1, again)
    for sequence_id in (1, 2):
        assert chosen(layout, sequence_id, [100], 6, start=len(PROMPT)) == expected


@pytest.mark.parametrize("length", [1, 10, 39])
def test_what_was_restored_is_cut_exactly_or_not_at_all(layout: LlamaRunner, length: int) -> None:
    continuation = [100, 101, 102]
    expected = last_logits(layout, 1, PROMPT[:length] + continuation)
    last_logits(layout, 0, PROMPT)
    state = saved(layout, 0)
    memory = layout.shape.memory
    lowest = memory.lowest_saved(0, len(PROMPT))

    assert layout.restore(2, state)
    can_cut = layout.share_prefix(2, 2, length)
    assert can_cut == memory.can_take(length, num_computed=len(PROMPT), lowest=lowest)
    tokens = continuation if can_cut else PROMPT[:length] + continuation
    restored = last_logits(layout, 2, tokens, start=length if can_cut else 0)

    np.testing.assert_allclose(restored, expected, atol=2e-3)


def test_saving_and_restoring_leave_others_alone(layout: LlamaRunner) -> None:
    expected = {}
    for sequence_id in (0, 1):
        last_logits(layout, sequence_id, PROMPT[sequence_id:])
        expected[sequence_id] = chosen(layout, sequence_id, [100], 6, start=len(PROMPT) - sequence_id)
        layout.clear(sequence_id)
    for sequence_id in (0, 1):
        last_logits(layout, sequence_id, PROMPT[sequence_id:])
    assert not layout.share_prefix(1, 2, len(PROMPT))  # longer than it is
    layout.share_prefix(1, 2, len(PROMPT) - 1)

    state = saved(layout, 0)
    for _ in range(3):
        assert layout.restore(3, state)
        chosen(layout, 3, [55], 3, start=len(PROMPT))
        layout.clear(3)
    for sequence_id, start in ((0, len(PROMPT)), (1, len(PROMPT) - 1), (2, len(PROMPT) - 1)):
        assert chosen(layout, sequence_id, [100], 6, start=start) == expected[min(sequence_id, 1)]


@pytest.mark.parametrize("length", [1, 25, 40])
def test_what_was_restored_takes_over_the_cells_of_another_sequence(layout: LlamaRunner, length: int) -> None:
    other = [*PROMPT[:length], 7, 8, 9]
    expected_other = last_logits(layout, 1, [*other, 5])
    last_logits(layout, 0, PROMPT)
    state = saved(layout, 0)
    expected = chosen(layout, 0, [100], 6, start=len(PROMPT))
    for sequence_id in (0, 1):
        layout.clear(sequence_id)
    last_logits(layout, 1, other)

    assert layout.restore(2, state)
    if not layout.shape.memory.can_join:
        assert not layout.join_prefix(1, 2, length)
        return
    assert layout.join_prefix(1, 2, length)
    assert chosen(layout, 2, [100], 6, start=len(PROMPT)) == expected
    layout.clear(2)
    np.testing.assert_allclose(last_logits(layout, 1, [5], start=len(other)), expected_other, atol=2e-3)


def test_cells_that_were_taken_over_count_once(dense_path: Path) -> None:
    model = LlamaModel.load(dense_path, LoadOptions())
    runner = LlamaRunner(model, ContextOptions(3, 256, 256, 128, threads=1))
    runner.decode([Chunk(0, 0, [5] * 100, num_rows=0)])
    assert runner.restore(1, saved(runner, 0))
    assert runner.join_prefix(0, 1, 100)
    runner.decode([Chunk(2, 0, [6] * 128, num_rows=0)])
    runner.decode([Chunk(1, 100, [6] * 28, num_rows=0)])
    with pytest.raises(NoFreeCells):
        runner.decode([Chunk(0, 100, [6], num_rows=0)])
    runner.close()
    model.close()


def test_what_is_about_to_be_copied_is_neither_saved_nor_overwritten(layout: LlamaRunner) -> None:
    last_logits(layout, 3, PROMPT[:30])
    other = saved(layout, 3)
    last_logits(layout, 0, PROMPT)
    expected = chosen(layout, 0, [100], 6, start=len(PROMPT))
    layout.clear(0)
    last_logits(layout, 0, PROMPT)

    assert layout.share_prefix(0, 1, len(PROMPT))
    assert (layout.save(1) is None) is not layout.shape.memory.is_unified
    layout.clear(0)
    assert layout.restore(0, other) is layout.shape.memory.is_unified
    assert chosen(layout, 1, [100], 6, start=len(PROMPT)) == expected
    layout.clear(0)
    assert layout.restore(0, other)


def test_an_empty_sequence_is_not_saved(layout: LlamaRunner) -> None:
    assert layout.save(0) is None


def test_what_does_not_fit_is_not_restored(dense_path: Path) -> None:
    model = LlamaModel.load(dense_path, LoadOptions())
    runner = LlamaRunner(model, ContextOptions(2, 256, 256, 64, threads=1))
    expected = last_logits(runner, 0, PROMPT)
    state = saved(runner, 0)
    runner.clear(0)
    for start in range(0, 256, 64):
        runner.decode([Chunk(0, start, [5] * 64, num_rows=0)])

    assert not runner.restore(1, state)
    assert runner.num_state_bytes(1) < state.num_bytes
    runner.clear(0)
    np.testing.assert_allclose(last_logits(runner, 1, PROMPT), expected, atol=2e-3)
    runner.close()
    model.close()


def test_what_was_saved_is_given_back(dense_path: Path) -> None:
    model = LlamaModel.load(dense_path, LoadOptions())
    runner = LlamaRunner(model, ContextOptions(1, 4096, 4096, 64, threads=1))
    for start in range(0, 4096, 64):
        runner.decode([Chunk(0, start, [5] * 64, num_rows=0)])
    size = saved(runner, 0).num_bytes
    give_back_freed()  # what earlier tests have left would be taken first, unseen
    before = psutil.Process().memory_info().rss
    states = [saved(runner, 0) for _ in range(20)]
    assert psutil.Process().memory_info().rss > before + 10 * size
    states.clear()
    give_back_freed()
    assert psutil.Process().memory_info().rss < before + 5 * size
    runner.close()
    model.close()
