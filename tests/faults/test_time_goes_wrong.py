"""Clocks that are wrong or set while everything runs, an event loop that is held up."""

import asyncio
import time

import pytest
from scene import AS_IT_COMES, BOUNDED, IN_FLIGHT, Scene, a_scene
from server_clock import NEEDS_COMPILER

pytestmark = BOUNDED

HOUR_S = 3600
DAY_S = 24 * HOUR_S
SHORTEST_INTERVAL_S = 0.9
"""Of an account that is polled every second: waits are spread by a tenth."""


async def test_workers_with_wrong_clocks_say_so_and_lose_nothing() -> None:
    wrong_s = (HOUR_S, -HOUR_S, -DAY_S)
    async with a_scene(accounts=30) as scene:
        await scene.start_workers(1)
        await scene.begin(changes_per_second=90)
        began = time.monotonic()
        wrong = [await scene.start_worker(clock_ahead_s=ahead_s) for ahead_s in wrong_s]
        await asyncio.gather(*(worker.logged("worker.started") for worker in wrong))
        await asyncio.sleep(2)
        assert await asyncio.gather(*(worker.terminate() for worker in wrong)) == [0, 0, 0]
        _assert_no_burst(scene, began)
        verdict = await scene.verdict(is_clock_wrong=True)
        skews_s = [line["skew_ms"] / 1000 for worker in wrong for line in worker.lines("clock.skewed")]
    assert verdict.problems == []
    assert verdict.refused > 0, "a receiver refuses what is signed an hour off, and it is tried again"
    assert [round(skew_s) for skew_s in skews_s] == [*wrong_s]


@NEEDS_COMPILER
@pytest.mark.parametrize(
    "steps_s", [(600,), (-600, 0)], ids=["ten minutes ahead", "ten minutes back, and right again"]
)
async def test_a_server_whose_clock_is_set_loses_nothing(steps_s: tuple[float, ...]) -> None:
    async with a_scene(accounts=60, leases=AS_IT_COMES, has_clock=True) as scene:
        await scene.start_workers(2)
        await scene.begin(changes_per_second=100)
        await scene.until_told(100, within_s=20)
        assert scene.clock
        began = time.monotonic()
        for ahead_s in steps_s:
            scene.clock.set(ahead_s=ahead_s)
            await asyncio.sleep(2)
        seconds, microseconds = await scene.redis.time()
        assert round(seconds + microseconds / 1e6 - time.time()) == steps_s[-1], "the server's clock was set"
        _assert_no_burst(scene, began, more=len(steps_s))
        verdict = await scene.verdict()
    assert verdict.problems == []
    assert verdict.repeats <= 2 * IN_FLIGHT * len(steps_s), "leases that ended at once"


async def test_a_loop_that_is_held_up_does_no_harm_and_is_named() -> None:
    async with a_scene(accounts=60) as scene:
        await scene.start_workers(1)
        (slow,) = await scene.start_workers(1, block_s=2, block_every=50)
        await scene.begin(changes_per_second=120)
        await asyncio.sleep(4)
        verdict = await scene.verdict()
        lags_ms = [line["lag_ms"] for line in slow.lines("loop.lagged")]
    assert verdict.problems == []
    assert max(lags_ms) >= 1500


def _assert_no_burst(scene: Scene, since: float, *, more: int = 0) -> None:
    """No account was polled more often than its interval allows, but for so many polls `more`."""
    now = time.monotonic()
    assert scene.provider.most_polls(since, now) <= (now - since) / SHORTEST_INTERVAL_S + 1 + more
