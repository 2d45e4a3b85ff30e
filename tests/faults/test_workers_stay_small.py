"""A soak: workers do not grow during long steady work of which some fails.

The middle of the last third of the time counts against the middle of the first: single moments or a straight
line through them say little. Blocks of memory tell whether anything is forgotten: in the long form 40,000
events lie between the two, and one object in every thirteenth would be 3,000 blocks. All else has a bound
that does not depend on time: of what is forgotten once in a hundred events, 660 would be left.

The long form is for a quiet machine: there ten minutes and 60,000 events left 0.1 MB and 300 blocks more in
each worker. On a busy one, with stalls of 28 s and the backlogs that these make, it was 3.6 MB and 5,000.
"""

import asyncio
from collections.abc import Sequence
from statistics import linear_regression, median, stdev

import pytest

from tests.faults.scene import AS_IT_COMES, BOUNDED, IN_FLIGHT, LONG, Scene, a_scene
from tests.faults.worker_processes import Size
from watcher.polling.work import CONCURRENCY
from watcher.store.client import CONNECTIONS
from watcher.store.keys import SHARDS

pytestmark = BOUNDED

AT_REST = 25
"""Tasks of a worker that has nothing in hand, and its descriptors besides connections; some to spare."""

ACCOUNTS = 100
KEYS = 3 * ACCOUNTS + 13 * SHARDS + 10
"""A state, what was queued last and a queue for each account, each kind of key of a shard, and all others."""


@pytest.mark.parametrize(
    ("warm_up_s", "for_s", "rate", "most_mb", "most_blocks"),
    [(6, 12, 100, 3, 8000), pytest.param(60, 600, 100, 2, 3000, marks=LONG)],
)
async def test_memory_descriptors_tasks_and_keys_are_bounded(
    warm_up_s: int, for_s: int, rate: float, most_mb: float, most_blocks: int
) -> None:
    async with a_scene(accounts=ACCOUNTS, leases=AS_IT_COMES) as scene:
        scene.receiver.fail_every = 100
        workers = await scene.start_workers(2, reports_tasks=True)
        await scene.begin(changes_per_second=rate)
        await asyncio.sleep(warm_up_s)
        sizes, keys, before = [], [], scene.receiver.taken
        for _ in range(for_s):
            await asyncio.sleep(1)
            sizes.append([worker.size() for worker in workers])
            keys.append(await scene.redis.dbsize())
        events = scene.receiver.taken - before
        by_worker = list(zip(*sizes, strict=True))
        growths = [Size(*map(_growth, zip(*of_worker, strict=True))) for of_worker in by_worker]
        for worker, of_worker, growth in zip(workers, by_worker, growths, strict=True):
            print(f"{worker.name} grew in {for_s} s and {events} events by {growth}, to {of_worker[-1]}")
            print(f"{worker.name}, MB by the minute: {_by_the_minute([size.rss_mb for size in of_worker])}")
        print(f"Redis grew by {_growth(keys):.0f} keys, to {keys[-1]} and {await _redis_mb(scene):.1f} MB")
        verdict = await scene.verdict(within_s=60)
    assert verdict.problems == []
    assert verdict.repeats > 0, "some of it fails"
    assert max(growth.rss_mb for growth in growths) <= most_mb
    assert max(growth.blocks for growth in growths) <= most_blocks
    everything = [size for of_worker in by_worker for size in of_worker]
    assert max(size.tasks for size in everything) <= CONCURRENCY + IN_FLIGHT + AT_REST
    assert max(size.descriptors for size in everything) <= CONCURRENCY + IN_FLIGHT + CONNECTIONS + AT_REST
    assert max(keys) <= KEYS


def _growth(values: Sequence[float]) -> float:
    third = len(values) // 3
    return median(values[-third:]) - median(values[:third])


def _by_the_minute(values: Sequence[float]) -> str:
    """A straight line through values of each second, and how far they lie beside it."""
    seconds = range(len(values))
    slope, start = linear_regression(seconds, values)
    beside = stdev(value - start - slope * second for second, value in zip(seconds, values, strict=True))
    return f"{60 * slope:+.3f}, {beside:.3f} beside the line"


async def _redis_mb(scene: Scene) -> float:
    """What the server holds, its event log included: that grows until it is trimmed."""
    return float((await scene.redis.info("memory"))["used_memory"]) / 1_000_000
