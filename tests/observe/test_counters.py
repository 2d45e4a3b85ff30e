"""Counting is adding up, and a spread puts each value where Prometheus looks for it."""

from copy import copy

import pytest

from watcher.observe.counters import LAG_BOUNDS_S, POLL_BOUNDS_S, Counters, Spread


@pytest.mark.parametrize(
    ("value", "place"), [(0, 0), (0.99, 0), (1, 0), (1.01, 1), (5, 1), (5.01, 2), (1e9, 2)]
)
def test_a_value_counts_for_the_first_bound_that_it_does_not_exceed(value: float, place: int) -> None:
    spread = Spread((1.0, 5.0))
    spread.add(value)
    assert spread.counts == [int(number == place) for number in range(3)]
    assert spread.total == value


@pytest.mark.parametrize("bounds", [POLL_BOUNDS_S, LAG_BOUNDS_S])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert sorted(set(bounds)) == [*bounds]
    assert all(isinstance(bound, float) for bound in bounds)  # they are told as 1.0, not 1


def test_what_was_added_since_a_copy_is_what_the_heartbeat_tells() -> None:
    counters = Counters(polls=3, rejected=1)
    before = copy(counters)
    counters.polls += 2
    counters.changes += 7
    counters.polled("shop", "committed", 0.1)
    assert counters.since(before) == {"polls": 2, "rejected": 0, "changes": 7, "deliveries": 0, "retried": 0}
    assert counters.by_poll == {("shop", "committed"): 1}
    assert sum(counters.poll_s["shop"].counts) == 1
