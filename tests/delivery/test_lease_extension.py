"""The lease of a queue is short while attempts are quick, and long enough for a slow one."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from tests.delivery.staged_subscriber import Backlogs, StagedSubscriber
from watcher.delivery import queue
from watcher.delivery.queue import LONGEST_LEASE_MS, Hold
from watcher.http.pool import Deadlines
from watcher.store.exceptions import StoreUnreachable
from watcher.store.keys import shard_of
from watcher.store.queues import LEASE_MS
from watcher.store.schedule import Lease

pytest_plugins = ("tests.delivery.subscribers",)

SHORT, LONG = Lease("treasury", 1), Lease("treasury", 2)


@pytest.fixture(autouse=True)
def _extend_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "QUICK_S", 0.02)


async def longer(lease: Lease) -> Lease:
    return LONG


async def held(attempt: Awaitable[object], stretch: Callable[[Lease], Awaitable[Lease]] = longer) -> Lease:
    """What holds when an attempt is over."""
    hold = Hold(SHORT, stretch=stretch, slow=Deadlines(Hold.is_slow))
    await hold.during(attempt)
    return hold.lease


async def test_a_quick_attempt_keeps_its_lease() -> None:
    assert await held(asyncio.sleep(0)) == SHORT


async def test_a_finished_attempt_asks_for_no_longer_lease() -> None:
    asked, is_later = list[Lease](), asyncio.Event()

    async def noted(lease: Lease) -> Lease:
        asked.append(lease)
        return LONG

    await held(asyncio.sleep(0), noted)
    asyncio.get_running_loop().call_later(3 * queue.QUICK_S, is_later.set)
    await is_later.wait()
    assert asked == []


async def test_a_slow_attempt_gets_a_longer_lease() -> None:
    assert await held(asyncio.sleep(0.1)) == LONG


async def test_an_attempt_that_ends_while_its_lease_is_extended_waits_for_the_answer() -> None:
    is_over = asyncio.Event()

    async def slow(lease: Lease) -> Lease:
        is_over.set()
        await asyncio.sleep(0.05)
        return LONG

    assert await held(is_over.wait(), slow) == LONG


async def test_a_cancelled_attempt_waits_for_that_answer_too() -> None:
    is_stretching = asyncio.Event()

    async def slow(lease: Lease) -> Lease:
        is_stretching.set()
        await asyncio.sleep(0.05)
        return LONG

    hold = Hold(SHORT, stretch=slow, slow=Deadlines(Hold.is_slow))
    attempt = asyncio.create_task(hold.during(asyncio.sleep(60)))
    await is_stretching.wait()
    attempt.cancel()
    await asyncio.gather(attempt, return_exceptions=True)
    assert attempt.cancelled()
    assert hold.lease == LONG


async def test_while_redis_is_unreachable_the_lease_stays_as_it_was() -> None:
    async def away(lease: Lease) -> Lease:
        raise StoreUnreachable("gone")

    assert await held(asyncio.sleep(0.1), away) == SHORT


async def test_a_worker_extends_the_lease_while_a_receiver_is_slow(
    one: Backlogs, subscriber: StagedSubscriber, redis_client: Redis
) -> None:
    async def leased_ms() -> float:
        seconds, micros = await redis_client.time()
        deadline = await redis_client.zscore(one.keys.queues(shard_of("treasury"), "ops"), "treasury")
        return float(deadline or 0) - 1000 * seconds - micros / 1000

    subscriber.delay_s = 1
    await one.queue(["treasury"])
    async with one.worker():
        await subscriber.until(lambda: subscriber.in_flight == 1)
        async with asyncio.timeout(0.9):
            while await leased_ms() <= LEASE_MS:  # noqa: ASYNC110 - the worker writes it
                await asyncio.sleep(0.01)
        assert await leased_ms() > LONGEST_LEASE_MS - 2000
        await subscriber.until(lambda: len(subscriber.taken) == 1)
    assert len(subscriber.arrivals) == 1
