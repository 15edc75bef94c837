from __future__ import annotations

import pytest

from server.core.errors import BackendError, Draining, QueueFull
from server.engine.admission import Admission


def enter(admission: Admission, num_sequences: int = 1) -> None:
    with admission.entering(num_sequences):
        pass


def test_as_many_enter_as_may_be_inside() -> None:
    admission = Admission(3)
    enter(admission, 2)
    with pytest.raises(QueueFull):
        enter(admission, 2)
    enter(admission)
    with pytest.raises(QueueFull):
        enter(admission)
    admission.leave(2, 0.5)
    enter(admission, 2)


def test_retry_after_follows_how_long_requests_take() -> None:
    admission = Admission(1)
    enter(admission)
    with pytest.raises(QueueFull) as early:
        enter(admission)
    assert early.value.retry_after == 1.0
    for _ in range(100):
        admission.leave(1, 12.0)
        enter(admission)
    with pytest.raises(QueueFull) as later:
        enter(admission)
    assert later.value.retry_after == pytest.approx(12.0, rel=0.01)
    for _ in range(100):
        admission.leave(1, 4000.0)
        enter(admission)
    with pytest.raises(QueueFull) as much_later:
        enter(admission)
    assert much_later.value.retry_after == 60.0


def test_a_closed_door_stays_closed_and_says_why_it_closed_first() -> None:
    admission = Admission(3)
    states = [admission.is_open]
    admission.close(Draining("out for lunch", retry_after=2))
    admission.close(BackendError("burnt down"))
    states.append(admission.is_open)
    assert states == [True, False]
    with pytest.raises(Draining, match="out for lunch"):
        enter(admission)


def test_a_request_that_could_not_be_posted_is_not_inside() -> None:
    admission = Admission(1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), admission.entering(1):
            _ = 1 / 0
    enter(admission)
