"""Clocks that are wrong, an event loop that is held up."""

import asyncio

from scene import BOUNDED, a_scene

pytestmark = BOUNDED

HOUR_S = 3600


async def test_workers_with_wrong_clocks_say_so_and_lose_nothing() -> None:
    async with a_scene(accounts=30) as scene:
        await scene.start_workers(1)
        await scene.begin(changes_per_second=90)
        (early,) = await scene.start_workers(1, clock_ahead_s=HOUR_S)
        (late,) = await scene.start_workers(1, clock_ahead_s=-HOUR_S)
        await asyncio.sleep(2)
        assert [await early.terminate(), await late.terminate()] == [0, 0]
        verdict = await scene.verdict(is_clock_wrong=True)
        skews_s = [
            line["skew_ms"] / 1000 for worker in (early, late) for line in worker.lines("clock.skewed")
        ]
    assert verdict.problems == []
    assert verdict.refused > 0, "a receiver refuses what is signed an hour off, and it is tried again"
    assert [round(skew_s) for skew_s in skews_s] == [HOUR_S, -HOUR_S]


async def test_a_loop_that_is_held_up_does_no_harm_and_is_named() -> None:
    async with a_scene(accounts=60) as scene:
        await scene.start_workers(1)
        (slow,) = await scene.start_workers(1, block_s=2, block_every=50)
        await scene.begin(changes_per_second=180)
        await asyncio.sleep(5)
        verdict = await scene.verdict()
        lags_ms = [line["lag_ms"] for line in slow.lines("loop.lagged")]
    assert verdict.problems == []
    assert max(lags_ms) >= 1500
