from __future__ import annotations

import pytest
from compare.measures import Better, Summary, advantage, ratio, summarise
from compare.noise import foreign_share


def test_a_summary_is_median_and_range() -> None:
    assert summarise([3.0, 1.0, 8.0]) == Summary(3.0, 1.0, 8.0)


def test_the_ratio_is_that_of_the_medians_and_its_range_is_that_of_the_rounds() -> None:
    assert ratio([1.0, 4.0, 3.0], [2.0, 2.0, 4.0]) == Summary(1.5, 0.5, 2.0)


def test_a_round_that_one_side_lacks_is_left_out_of_the_range() -> None:
    found = ratio([2.0], [1.0, 3.0])
    assert found == Summary(1.0, 2.0, 2.0)


@pytest.mark.parametrize(("values", "reference"), [([], [1.0]), ([1.0], []), ([1.0], [0.0]), ([1.0, 1.0], [0.0, 0.0])])
def test_there_is_no_ratio_without_both_sides(values: list[float], reference: list[float]) -> None:
    assert ratio(values, reference) is None


def test_the_advantage_is_above_one_for_what_is_better() -> None:
    assert advantage(Summary(2.0, 1.0, 4.0), Better.HIGHER) == Summary(2.0, 1.0, 4.0)
    assert advantage(Summary(0.5, 0.25, 1.0), Better.LOWER) == Summary(2.0, 1.0, 4.0)


def test_the_advantage_of_no_waiting_at_all_is_endless() -> None:
    assert advantage(Summary(0.0, 0.0, 1.0), Better.LOWER).median == float("inf")


def test_what_others_took_is_what_was_busy_without_us() -> None:
    assert foreign_share(own=3.0, busy=4.0, whole=10.0) == pytest.approx(0.1)
    assert foreign_share(own=4.1, busy=4.0, whole=10.0) == 0.0
    assert foreign_share(own=0.0, busy=0.0, whole=0.0) == 0.0
