"""The benchmark of the directory, in small: it measures what it says, and nothing blocks the loop."""

import pytest

from tests.benchmarks.directory import MOST_MS, measure
from tests.benchmarks.stage import on_a_loop


@pytest.mark.slow
def test_accounts_added_by_the_api_hold_up_no_worker() -> None:
    found = on_a_loop(measure(5000, 500))
    assert [*found] == ["nothing", "accounts", "subscriptions"]
    for phase in found.values():
        assert phase.busy_ms < MOST_MS
        assert phase.polls
        assert phase.deliveries
