"""A store with very many accounts is moved without blocking the event loop."""

import asyncio

import pytest

from tests.benchmarks.layout import Moved, measure
from tests.support.servers import real_server
from watcher.service.serve import loop_factory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ACCOUNTS = 8_000
MOST_MS = 25
"""Of the loop's own work between two turns; on a machine by itself, it never stands still for 50."""


def test_a_large_store_is_moved_in_short_steps() -> None:
    async def moved() -> list[Moved]:
        with real_server() as server:
            return [one async for one in measure(server.url, ACCOUNTS, ACCOUNTS)]

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        up, back = runner.run(moved())
    assert (up.to, back.to) == (2, 1)
    assert up.counts == back.counts
    assert (up.counts.accounts, up.counts.records, up.counts.deliveries) == (ACCOUNTS, 2 * ACCOUNTS, ACCOUNTS)
    assert max(up.busy_ms, back.busy_ms) < MOST_MS
    assert up.after_mb < 0.8 * up.before_mb
    assert max(up.step_us, back.step_us) < 5000
