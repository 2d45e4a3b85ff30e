"""The benchmark of the API, in small: it measures what it says, and nothing blocks the loop."""

import pytest

from tests.benchmarks.api import QUICK, measure
from tests.benchmarks.directory import MOST_MS
from tests.benchmarks.stage import on_a_loop


@pytest.mark.slow
def test_api_requests_under_full_load_hold_up_no_worker() -> None:
    found = on_a_loop(measure(QUICK))
    assert [*found.phases] == [
        "nothing",
        *("90 reads a second", "90 writes a second"),
        *("reads, as many as it takes", "writes, as many as it takes"),
    ]
    for what, phase in found.phases.items():
        assert phase.busy_ms < MOST_MS
        assert phase.latencies_ms
        assert bool(phase.per_second) == (what != "nothing")
    assert len(found.fan_out.seconds) == QUICK.times
    assert found.fan_out.busy_ms < MOST_MS
