"""A clock that is wrong, an event loop that is held up."""

import asyncio

import pytest
from scene import a_scene


@pytest.mark.parametrize("ahead_s", [3600, -3600])
async def test_a_worker_with_a_wrong_clock_says_so_and_loses_nothing(ahead_s: int) -> None:
    async with a_scene(accounts=30) as scene:
        await scene.start_workers(1)
        await scene.begin(changes_per_second=90)
        (wrong,) = await scene.start_workers(1, clock_ahead_s=ahead_s)
        await asyncio.sleep(3)
        assert await wrong.terminate() == 0
        verdict = await scene.verdict()
        (said,) = wrong.lines("clock.skewed")
    assert verdict.problems == []
    assert verdict.refused > 0
    assert abs(said["skew_ms"] - 1000 * ahead_s) < 1000


async def test_a_loop_that_is_held_up_does_no_harm_and_is_named() -> None:
    async with a_scene(accounts=60) as scene:
        await scene.start_workers(1)
        (slow,) = await scene.start_workers(1, block_s=2, block_every=50)
        await scene.begin(changes_per_second=180)
        await asyncio.sleep(8)
        verdict = await scene.verdict()
        said = slow.lines("loop.lagged")
    assert verdict.problems == []
    assert said
    assert max(line["lag_ms"] for line in said) >= 1500
