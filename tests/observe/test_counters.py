"""Counters add up, and each duration is counted in the right bucket."""

from bisect import bisect_left
from collections import Counter
from copy import copy

import pytest

from watcher.observe.counters import LAG_BOUNDS_S, POLL_BOUNDS_S, Counters, buckets


@pytest.mark.parametrize(
    ("value", "counts"),
    [(0, (1, 1, 1)), (1, (1, 1, 1)), (1.01, (0, 1, 1)), (5, (0, 1, 1)), (5.01, (0, 0, 1)), (1e9, (0, 0, 1))],
)
def test_a_value_counts_for_all_bounds_that_it_does_not_exceed(value: float, counts: tuple[int, ...]) -> None:
    bounds = (1.0, 5.0)
    counted = Counter([bisect_left(bounds, value)])
    assert buckets(counted.__getitem__, bounds) == [*zip(("1.0", "5.0", "+Inf"), counts, strict=True)]


@pytest.mark.parametrize("bounds", [POLL_BOUNDS_S, LAG_BOUNDS_S])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert sorted(set(bounds)) == [*bounds]
    assert all(isinstance(bound, float) for bound in bounds)  # they are exported as 1.0, not 1


def test_the_heartbeat_reports_what_was_added_since_the_last_copy() -> None:
    counters = Counters(polls=3, rejected=1)
    before = copy(counters)
    counters.polls += 2
    counters.changes += 7
    assert counters.since(before) == {"polls": 2, "rejected": 0, "changes": 7, "deliveries": 0, "retried": 0}
