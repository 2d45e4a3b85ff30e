"""Clocks that are wrong or set while everything runs, and an event loop that is blocked."""

import asyncio
import time

import pytest

from tests.faults.scene import AS_IT_COMES, BOUNDED, IN_FLIGHT, LONG, Scene, a_scene
from tests.faults.server_clock import NEEDS_COMPILER

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
        wrong = [
            await scene.start_worker(clock_steps_s=[ahead_s], clock_step_every_s=DAY_S) for ahead_s in wrong_s
        ]
        await asyncio.gather(*(worker.logged("worker.started") for worker in wrong))
        await asyncio.sleep(2)
        assert await asyncio.gather(*(worker.terminate() for worker in wrong)) == [0, 0, 0]
        _assert_no_burst(scene, began)
        verdict = await scene.verdict(wrong_clocks=[worker.name for worker in wrong])
        skews_s = [line["skew_ms"] / 1000 for worker in wrong for line in worker.lines("clock.skewed")]
    assert verdict.problems == []
    assert verdict.refused > 0, "a receiver refuses what is signed an hour off, and it is tried again"
    assert [round(skew_s) for skew_s in skews_s] == [*wrong_s]


@pytest.mark.parametrize("for_s", [pytest.param(60, marks=LONG)])
async def test_a_worker_whose_clock_is_set_again_and_again_loses_nothing(for_s: float) -> None:
    """It is right between any two steps, and never wrong for so long that all attempts of an event fail."""
    steps_s = [step_s for wrong_s in (HOUR_S, -HOUR_S, -DAY_S) for step_s in (0, wrong_s)]
    async with a_scene(accounts=60, leases=AS_IT_COMES) as scene:
        await scene.start_workers(1)
        (wrong,) = await scene.start_workers(1, clock_steps_s=steps_s, clock_step_every_s=1.5)
        await scene.begin(changes_per_second=100)
        began = time.monotonic()
        await asyncio.sleep(for_s)
        _assert_no_burst(scene, began)
        verdict = await scene.verdict(wrong_clocks=[wrong.name])
    assert verdict.problems == []
    assert verdict.refused > 0
    assert verdict.repeats == 0


@NEEDS_COMPILER
@pytest.mark.parametrize(
    "steps_s",
    [
        pytest.param((600,), id="ten minutes ahead"),
        pytest.param((-600, 0), id="ten minutes back, and right again"),
        pytest.param((-600, 0) * 6 + (600,), id="ten minutes to and fro", marks=LONG),
    ],
)
async def test_a_server_whose_clock_is_set_loses_nothing(steps_s: tuple[float, ...]) -> None:
    async with a_scene(accounts=60, leases=AS_IT_COMES, has_clock=True) as scene:
        await scene.start_workers(2)
        await scene.begin(changes_per_second=100)
        await scene.until_delivered(100, within_s=20)
        assert scene.clock
        began = time.monotonic()
        for ahead_s in steps_s:
            scene.clock.set(ahead_s=ahead_s)
            await asyncio.sleep(2)
        seconds, microseconds = await scene.redis.time()
        assert round(seconds + microseconds / 1e6 - time.time()) == steps_s[-1], "the server's clock was set"
        _assert_no_burst(scene, began, more=len(steps_s))
        verdict = await scene.verdict(within_s=15)
    assert verdict.problems == []
    assert verdict.repeats <= 2 * IN_FLIGHT * len(steps_s), "leases that ended at once"


@pytest.mark.parametrize(
    ("block_s", "for_s"),
    [pytest.param(2, 4, id="within leases"), pytest.param(8, 45, id="beyond leases", marks=LONG)],
)
async def test_a_blocked_loop_does_no_harm_and_is_named(block_s: float, for_s: float) -> None:
    async with a_scene(accounts=60) as scene:
        await scene.start_workers(1)
        (slow,) = await scene.start_workers(1, block_s=block_s, block_every=50)
        await scene.begin(changes_per_second=120)
        await asyncio.sleep(for_s)
        verdict = await scene.verdict(within_s=50)
        lags_ms = [line["lag_ms"] for line in slow.lines("loop.lagged")]
        late = {event: len(slow.lines(event)) for event in ("poll.discarded", "lease.lost")}
    print(f"lag at most {max(lags_ms)} ms, too late: {late}")
    assert verdict.problems == []
    assert max(lags_ms) >= 750 * block_s


def _assert_no_burst(scene: Scene, since: float, *, more: int = 0) -> None:
    """No account was polled more often than its interval allows, but for so many polls `more`."""
    now = time.monotonic()
    assert scene.provider.most_polls(since, now) <= (now - since) / SHORTEST_INTERVAL_S + 1 + more
