from __future__ import annotations

import pytest
from compare.prompts import WORDS, Prompts, TokenScale, scale_from


def test_words_have_four_letters_and_differ() -> None:
    assert {len(word) for word in WORDS} == {4}
    assert len(set(WORDS)) == len(WORDS)


def test_two_lengths_give_the_scale() -> None:
    scale = scale_from((20, 30), (220, 230))
    assert scale == TokenScale(10.0, 1.0)
    assert scale.num_words(430) == 420


def test_a_server_that_does_not_count_has_one_token_a_word() -> None:
    assert scale_from((20, 0), (220, 0)) == TokenScale(0.0, 1.0)


def test_the_shortest_text_is_a_word() -> None:
    assert TokenScale(40.0, 5.0).num_words(10) == 1


def test_a_text_has_the_wanted_length_and_is_the_same_each_time() -> None:
    scale = TokenScale(10.0, 5.0)
    text = Prompts(scale, seed=1, round_number=0).text("single", 60)
    assert len(text.split()) == 10
    assert text == Prompts(scale, seed=1, round_number=0).text("single", 60)


@pytest.mark.parametrize(("seed", "round_number", "purpose"), [(2, 0, "a"), (1, 1, "a"), (1, 0, "b")])
def test_other_seeds_rounds_and_purposes_share_no_beginning(seed: int, round_number: int, purpose: str) -> None:
    scale = TokenScale(0.0, 1.0)
    text = Prompts(scale, 1, 0).text("a", 100)
    other = Prompts(scale, seed, round_number).text(purpose, 100)
    assert text.split()[:3] != other.split()[:3]
