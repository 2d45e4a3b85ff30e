"""A soak: what workers hold after a while of steady work, some of it failing, they hold for ever."""

import asyncio
from collections.abc import Sequence
from statistics import median

import pytest
from scene import AS_IT_COMES, BOUNDED, LONG, a_scene
from worker_processes import Size

pytestmark = BOUNDED


@pytest.mark.parametrize(
    ("warm_up_s", "for_s", "rate", "most_growth_mb"),
    [(6, 12, 100, 3), pytest.param(60, 600, 300, 2, marks=LONG)],
)
async def test_memory_descriptors_and_tasks_are_bounded(
    warm_up_s: int, for_s: int, rate: float, most_growth_mb: float
) -> None:
    async with a_scene(leases=AS_IT_COMES) as scene:
        scene.receiver.fail_every = 100
        workers = await scene.start_workers(2, tells_tasks=True)
        await scene.begin(changes_per_second=rate)
        await asyncio.sleep(warm_up_s)
        sizes = []
        for _ in range(for_s):
            await asyncio.sleep(1)
            sizes.append([worker.size() for worker in workers])
        verdict = await scene.verdict()
    growths = [_growth(of_worker) for of_worker in zip(*sizes, strict=True)]
    for worker, growth, size in zip(workers, growths, sizes[-1], strict=True):
        print(f"{worker.name} grew in {for_s} s by {growth}, to {size}")
    assert verdict.problems == []
    assert verdict.repeats > 0, "some of it fails"
    assert max(growth.rss_mb for growth in growths) <= most_growth_mb
    assert max(growth.descriptors for growth in growths) <= 5
    assert max(growth.tasks for growth in growths) <= 5


def _growth(sizes: Sequence[Size]) -> Size:
    """Compare the middle of the last third with the middle of the first: single moments say little."""
    third = len(sizes) // 3
    then, now = (
        [median(values) for values in zip(*part, strict=True)] for part in (sizes[:third], sizes[-third:])
    )
    return Size(*(after - before for after, before in zip(now, then, strict=True)))
