"""When a daemon that is down is asked again."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server.backends.ollama.breaker import PROBE_INTERVAL_SECONDS, CircuitBreaker


def test_nobody_is_down_at_first() -> None:
    breaker = CircuitBreaker()

    assert breaker.reason is None
    assert breaker.may_probe(0.0)


def test_the_last_reason_counts() -> None:
    breaker = CircuitBreaker()
    breaker.fail("one", 5.0)
    breaker.fail("two", 5.5)

    assert breaker.reason == "two"
    breaker.succeed()
    assert breaker.reason is None


@given(st.lists(st.floats(0.01, 0.5), max_size=50))
def test_probes_are_at_least_an_interval_apart(steps: list[float]) -> None:
    breaker = CircuitBreaker()
    now, probes = 1000.0, [1000.0]
    breaker.fail("down", now)
    for step in steps:
        now += step
        if breaker.may_probe(now):
            probes.append(now)
            breaker.fail("still down", now)

    gaps = [later - earlier for earlier, later in pairwise(probes)]
    assert all(gap >= PROBE_INTERVAL_SECONDS for gap in gaps)
    assert now - probes[-1] < PROBE_INTERVAL_SECONDS
