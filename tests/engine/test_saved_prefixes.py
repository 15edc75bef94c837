"""Prompts of finished requests in main memory: saved when others need their cells, and brought back."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scripted import LETTERS, NUM_LETTERS, Harness, Model, ScriptedRunner, babbling

from server.engine.engine import EngineStatus
from server.engine.kv_cells import Saving
from server.engine.runner import Tokens

LENGTH = 100
PUBLIC = (np.array([4, 20, 21, 22, 23, 24, 25, 26], dtype=np.int32),)


def conversation(number: int, length: int = LENGTH) -> list[int]:
    """Tokens that begin as no other conversation does."""
    return [4 + number % 25, *np.random.default_rng(number).integers(1, 30, length - 1).tolist()]


def harness(
    saving: Saving | None = None,
    *,
    isolates_keys: bool = False,
    public: tuple[Tokens, ...] = (),
    num_cells: int = 800,
    is_unified: bool = True,
    can_cut: bool = True,
    batch_size: int = 200,
) -> Harness:
    runner = ScriptedRunner(
        babbling(end_bias=-1000),
        num_sequences=4,
        num_cells=num_cells,
        sequence_len=200,
        batch_size=batch_size,
        is_unified=is_unified,
        can_cut=can_cut,
    )
    return Harness(
        runner,
        isolates_keys=isolates_keys,
        public_prefixes=public,
        saving=saving or Saving(100_000, 64, patience=1000),
    )


def cached(bench: Harness, prompt: list[int], *, key: str | None = None, max_tokens: int = 3) -> int:
    """Serve a request to its end and return how many of its tokens were there."""
    return bench.answer(prompt, key=key, max_tokens=max_tokens).finished.usage.cached_tokens


@pytest.mark.parametrize("is_unified", [True, False])
def test_the_fifth_conversation_of_four_sequences_returns(*, is_unified: bool) -> None:
    bench = harness(is_unified=is_unified)
    for number in range(5):
        assert cached(bench, conversation(number)) == 0
    assert bench.runner.num_saved == 1
    before = bench.runner.num_computed
    goes_on = [*conversation(0), 7, 8, 9]
    assert cached(bench, goes_on) >= LENGTH
    assert bench.runner.num_computed - before <= len(goes_on) - LENGTH + 3
    assert bench.runner.num_restored == 1


def test_what_is_said_is_the_same() -> None:
    with_saving, without = harness(), harness(Saving())
    for prompt in (*map(conversation, range(6)), [*conversation(0), 5], [*conversation(1)[:80], 5], conversation(2)):
        texts = [bench.answer(prompt, max_tokens=20).text() for bench in (with_saving, without)]
        assert texts[0] == texts[1]
    assert with_saving.runner.num_restored >= 3


def test_without_main_memory_nothing_is_saved() -> None:
    bench = harness(Saving())
    for number in (0, 1, 2, 3, 4, 0):
        assert cached(bench, conversation(number)) == 0
    assert bench.runner.num_saved == 0
    assert bench.engine.status == EngineStatus(0, 0, 0)


def test_a_saved_prefix_is_cut_for_another_way_on() -> None:
    bench = harness()
    for number in range(5):
        cached(bench, conversation(number))
    assert cached(bench, [*conversation(0)[:70], 5, 6, 7]) == 70


def test_memory_that_cannot_be_cut_is_brought_back_whole_or_not_at_all() -> None:
    bench = harness(can_cut=False)
    answered = [*conversation(0)]
    for number in range(5):
        cached(bench, conversation(number), max_tokens=1)
    assert cached(bench, [*answered[:-10], 5], max_tokens=1) == 0
    assert cached(bench, [*answered, 5], max_tokens=1) == LENGTH


def test_a_little_more_than_what_is_there_is_not_worth_bringing_back() -> None:
    bench = harness()
    for number in range(5):
        cached(bench, conversation(number))
    first = conversation(0)
    cached(bench, [*first[:80], *conversation(9, 10)])  # brings back 80 of them, and stays
    restored = bench.runner.num_restored
    assert cached(bench, [*first, 5]) == 80
    assert bench.runner.num_restored == restored


def test_short_prompts_are_not_saved() -> None:
    bench = harness()
    for number in range(8):
        cached(bench, conversation(number, 60))
    assert bench.runner.num_saved == 0


def test_what_others_have_is_not_saved() -> None:
    bench = harness()
    common = conversation(0)
    for number in range(8):
        cached(bench, [*common, *conversation(number, 20)])
    assert bench.runner.num_saved == 0


def test_keys_do_not_share_what_is_saved() -> None:
    bench = harness(isolates_keys=True)
    for number in range(5):
        cached(bench, conversation(number), key="a")
    assert cached(bench, [*conversation(0), 5], key="b") == 0
    assert bench.runner.num_restored == 0
    assert cached(bench, [*conversation(0), 5], key="a") >= LENGTH


def test_a_public_prefix_is_brought_back_for_everybody_and_nothing_behind_it() -> None:
    public = np.array(conversation(0)[:70], dtype=np.int32)
    bench = harness(isolates_keys=True, public=(public,))
    for number in range(5):
        cached(bench, conversation(number), key="a")
    assert cached(bench, [*conversation(0), 5], key="b") == 70


def test_what_cannot_be_brought_back_is_computed() -> None:
    bench = harness()
    for number in range(5):
        cached(bench, conversation(number))
    bench.runner.restores = False
    assert cached(bench, [*conversation(0), 5]) == 0
    bench.runner.restores = True
    assert bench.runner.num_restored == 0
    assert bench.answer(conversation(6)).finished.usage.cached_tokens == 0


def test_what_cannot_be_saved_is_computed_again() -> None:
    bench = harness()
    bench.runner.saves = False
    for number in (0, 1, 2, 3, 4, 0):
        assert cached(bench, conversation(number)) == 0
    assert bench.engine.status.num_saved == 0


def test_bytes_are_bounded_and_the_least_loss_goes_first() -> None:
    bench = harness(Saving(2500, 64, patience=1000))  # 10 for a token
    for number in range(12):
        cached(bench, conversation(number))
        status = bench.engine.status
        assert status.num_saved_bytes <= 2500
        assert status.num_saved == min(max(number - 3, 0), 2)
    assert cached(bench, [*conversation(7), 5]) >= LENGTH
    assert cached(bench, [*conversation(4), 5]) == 0


def test_what_is_larger_than_all_of_it_is_not_saved() -> None:
    bench = harness(Saving(500, 64, patience=1000))
    for number in range(8):
        cached(bench, conversation(number))
    assert bench.runner.num_saved == 0


def test_a_conversation_that_went_on_replaces_what_was_saved_of_it() -> None:
    bench = harness()
    for number in range(5):
        cached(bench, conversation(number), max_tokens=1)
    longer = [*conversation(0), *conversation(50, 80)]
    cached(bench, longer)
    num_bytes = bench.engine.status.num_saved_bytes
    for number in range(10, 14):
        cached(bench, conversation(number))
    states = bench.engine._cells._states.values()
    beginnings = [state.tokens[:LENGTH] for state in states]  # type: ignore[attr-defined]
    assert beginnings.count(tuple(conversation(0))) == 1
    assert bench.engine.status.num_saved_bytes > num_bytes


def test_cells_are_found_for_all_of_what_is_brought_back() -> None:
    bench = harness(num_cells=250)
    long = conversation(0, 180)
    cached(bench, long)
    for number in (1, 2):
        cached(bench, conversation(number))
    # 70 of its tokens are wanted, but all 180 come back first
    assert cached(bench, [*long[:70], 5, 6]) == 70
    assert bench.runner.num_restored == 1


def test_running_requests_leave_no_room_to_bring_it_back() -> None:
    bench = harness(num_cells=250)
    long = conversation(0, 180)
    cached(bench, long)
    for number in (1, 2):
        cached(bench, conversation(number))
    running = bench.submit(conversation(3), max_tokens=70)
    bench.step(3)
    cached_tokens = bench.submit([*long[:70], 5], max_tokens=3)
    bench.run()
    assert bench.heard[cached_tokens].finished.usage.cached_tokens == 0
    assert bench.heard[running].finished.usage.completion_tokens == 70


def test_what_is_brought_back_shares_the_cells_of_those_who_run() -> None:
    bench = harness(Saving(100_000, 64, patience=5))
    common = conversation(0)
    turns = [[*common, *conversation(number, 70)] for number in (1, 2)]
    for turn in turns:
        cached(bench, turn, max_tokens=1)
    cached(bench, [1, 2, 3], max_tokens=30)  # all move away
    assert bench.runner.num_cells_used < 100
    ids = [bench.submit([*turn, 5], max_tokens=20) for turn in turns]
    bench.step(2)
    assert bench.runner.num_restored == 2
    assert bench.runner.num_cells_used < LENGTH + 2 * 100
    bench.run()
    assert [bench.heard[i].finished.usage.cached_tokens for i in ids] == [len(turn) for turn in turns]


@pytest.mark.parametrize(("can_cut", "is_unified", "window_len"), [(1, 1, 0), (0, 1, 0), (1, 0, 0), (1, 1, 20)])
def test_many_conversations_in_any_order(can_cut: int, is_unified: int, window_len: int) -> None:
    """Everybody hears what is said without any cache, whoever else talks, leaves or fails."""
    dice = random.Random(can_cut + 2 * is_unified + window_len)
    model = babbling(end_bias=-1000)
    runner = ScriptedRunner(
        model,
        num_sequences=3,
        num_cells=180,
        sequence_len=60 if not is_unified else 120,
        can_cut=bool(can_cut),
        is_unified=bool(is_unified),
        window_len=window_len,
    )
    bench = Harness(runner, isolates_keys=True, saving=Saving(1500, least_tokens=6, patience=7), public_prefixes=PUBLIC)
    talks: list[list[int]] = [[4 + number % 2, *PUBLIC[0][1:], 9 + number] for number in range(8)]
    running: dict[int, tuple[int, list[int]]] = {}
    num_right = 0
    for _ in range(1500):
        which = dice.randrange(len(talks))
        if len(running) < 5 and which not in [number for number, _ in running.values()]:
            prompt = [*talks[which], *dice.choices(range(1, 30), k=dice.randrange(1, 8))]
            if len(prompt) > 50:
                prompt = talks[which] = prompt[:8]
            generation_id = bench.submit(prompt, max_tokens=dice.randrange(1, 7), key="ab"[which % 2])
            running[generation_id] = which, prompt
        runner.restores = dice.random() < 0.95
        bench.step(dice.randrange(3))
        for generation_id, (number, prompt) in [*running.items()]:
            heard = bench.heard.get(generation_id)
            if heard is not None and heard.is_over:
                del running[generation_id]
                said = said_by(model, prompt, heard.finished.usage.completion_tokens)
                assert heard.text() == text_of(said)
                talks[number] = [*prompt, *said]
                num_right += 1
            elif dice.random() < 0.03:
                bench.engine.abort(generation_id)
                del running[generation_id]
        assert bench.engine.status.num_saved_bytes <= 1500
    assert num_right > 300
    assert runner.num_saved > 50
    assert runner.num_restored > 100


def said_by(model: Model, prompt: list[int], count: int) -> list[int]:
    tokens = tuple(prompt)
    for _ in range(count):
        tokens = (*tokens, int(np.argmax(model(tokens))))
    return [*tokens[len(prompt) :]]


def text_of(tokens: list[int]) -> str:
    return b"".join(LETTERS.piece(token) for token in tokens).decode("utf-8", "replace")


# Moving away what is in the way


def test_idle_cells_leave_while_others_compute() -> None:
    bench = harness(Saving(100_000, 64, patience=20))
    for number in range(3):
        cached(bench, conversation(number), max_tokens=1)
    assert bench.runner.num_saved == 0
    bench.submit([1, 2, 3], max_tokens=60)
    bench.step(25)
    assert bench.runner.num_saved == 3
    assert bench.runner.num_cells_used < 30
    bench.run()
    for number in range(3):
        assert cached(bench, [*conversation(number), 5]) >= LENGTH


def test_idle_cells_leave_while_a_prompt_is_computed() -> None:
    bench = harness(Saving(100_000, 64, patience=2), batch_size=16)
    cached(bench, conversation(0), max_tokens=1)
    heard = bench.submit(conversation(1), max_tokens=1)
    bench.step(3)
    assert bench.runner.num_saved == 1
    assert not bench.heard[heard].text()


def test_who_comes_back_at_once_finds_it_in_place() -> None:
    bench = harness(Saving(100_000, 64, patience=20))
    bench.submit([1, 2, 3], max_tokens=190)
    bench.step()
    prompt = conversation(0)
    for _ in range(4):
        cached_before = bench.submit(prompt, max_tokens=5)
        bench.step(15)
        assert bench.heard[cached_before].is_over
        prompt = [*prompt, 5, 6]
    assert bench.runner.num_saved == 0
    bench.step(30)
    assert bench.runner.num_saved == 1


def test_nothing_moves_while_nobody_computes() -> None:
    bench = harness(Saving(100_000, 64, patience=1))
    cached(bench, conversation(0), max_tokens=1)
    bench.step(50)
    assert bench.runner.num_saved == 0


def test_nothing_moves_between_separate_sequences() -> None:
    bench = harness(Saving(100_000, 64, patience=1), is_unified=False)
    for number in range(3):
        cached(bench, conversation(number))
    cached(bench, [1, 2, 3], max_tokens=60)
    assert bench.runner.num_saved == 0


def test_cells_that_others_use_do_not_move() -> None:
    bench = harness(Saving(100_000, 64, patience=1))
    cached(bench, conversation(0))
    cached(bench, [*conversation(0), *conversation(1, 20)], max_tokens=60)
    assert bench.runner.num_saved == 0


def test_what_finds_no_room_in_main_memory_stays_in_place() -> None:
    bench = harness(Saving(1500, 64, patience=1))
    for number in range(3):
        cached(bench, conversation(number), max_tokens=1)
    cached(bench, [1, 2, 3], max_tokens=60)
    assert [cached(bench, [*conversation(number), 5]) for number in range(3)] == [LENGTH] * 3


def test_a_copy_of_what_is_saved_leaves_without_another_one() -> None:
    bench = harness(Saving(100_000, 64, patience=5))
    cached(bench, conversation(0))
    cached(bench, [1, 2, 3], max_tokens=30)
    assert bench.runner.num_saved == 1
    cached(bench, [*conversation(0), 5])
    assert bench.runner.num_restored == 1
    cached(bench, [1, 2, 4], max_tokens=30)
    assert bench.runner.num_saved == 1
    assert bench.runner.num_cells_used < 100


# The end


def test_an_engine_that_ends_gives_main_memory_back() -> None:
    bench = harness()
    bench.engine.start()
    try:
        for number in range(6):
            generation_id = bench.submit(conversation(number), max_tokens=2)
            bench.wait_for(generation_id, lambda heard: heard.is_over)
        # what the fifth and the sixth displaced was saved before they were computed
        assert bench.engine.status.num_saved == 2
    finally:
        assert bench.engine.close(10)
    assert bench.engine.status.num_saved == bench.engine.status.num_saved_bytes == 0


def letters_of(seed: int, number: int) -> list[int]:
    return [*map(int, np.random.default_rng(seed).integers(1, NUM_LETTERS, number))]


def test_who_shares_cells_in_use_is_let_in_although_more_is_saved() -> None:
    bench = harness(Saving(100_000, 16, patience=1), num_cells=300)
    common, own = letters_of(1, 100), letters_of(2, 50)
    cached(bench, common + own, max_tokens=1)
    cached(bench, letters_of(3, 20), max_tokens=10)
    assert bench.runner.num_saved >= 1
    bench.submit([*common, 7], max_tokens=60)
    bench.submit(letters_of(4, 60), max_tokens=30)
    bench.step(2)
    tight = bench.submit([*common, *own[:10], 5], max_tokens=5)
    bench.step()
    assert bench.heard[tight].events  # it has begun, though 116 cells of its own would not be there
    bench.run()
    assert bench.heard[tight].finished.usage.cached_tokens >= len(common)


def test_cells_are_counted_right_when_the_one_to_share_with_has_to_make_room() -> None:
    bench = harness(Saving(100_000, 16, patience=1), num_cells=310)
    common, own = letters_of(1, 90), letters_of(2, 90)
    cached(bench, common + own, max_tokens=1)
    bench.submit(letters_of(4, 20), max_tokens=20)
    bench.step(3)
    assert bench.runner.num_saved == 1
    leader = bench.submit(common + letters_of(5, 30), max_tokens=4)
    bench.step()
    bench.submit([*common, 7], max_tokens=30)
    while not (leader in bench.heard and bench.heard[leader].is_over):
        bench.step()
    returning = bench.submit([*common, *own[:30], 5], max_tokens=5)
    bench.step()
    assert bench.runner.num_restored == 2
    # nothing is idle now, so that what is held is held by those who have reserved it
    assert bench.engine.status.num_running == 3
    assert bench.engine.status.num_reserved_cells >= bench.runner.num_cells_used
    bench.run()
    assert bench.heard[returning].finished.usage.cached_tokens == 120
