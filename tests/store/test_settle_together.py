"""Settling the deliveries of one message: all of them or none, with the same result as one by one."""

import asyncio
import random
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    NEIGHBOURS,
    OPS,
    SHARD,
    Store,
    a_store,
    running,
    some_deliveries,
)
from watcher.store.keeper import Keeper
from watcher.store.schedule import Lease, Reply

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

ENTRIES = [one.entry for one in some_deliveries(*range(1, 7))]


async def a_queue(client: Redis, namespace: str, count: int) -> tuple[Store, Lease]:
    """A store, and the lease of a queue where so many wait."""
    store = a_store(client, namespace)
    await store.fill(*some_deliveries(*range(1, count + 1)))
    return store, await store.lease_queue()


async def delivered(store: Store, lease: Lease, *entries: bytes, record: bytes = b"") -> tuple[Reply, int]:
    until = store.queues.until(lease, 2 * MINUTE_MS)
    return await store.queues.delivered(OPS, lease, *entries, until=until, record=record)


async def refused(store: Store, lease: Lease, *entries: bytes, reply: Reply = Reply.MOVED_ON) -> None:
    """Claim that nothing is settled."""
    before = await store.contents()
    assert await delivered(store, lease, *entries) == (reply, 0)
    assert await store.contents() == before


async def test_deliveries_of_one_attempt_are_settled_together_and_the_queue_stays_leased(
    redis_client: Redis, namespace: str
) -> None:
    store, lease = await a_queue(redis_client, namespace, 5)
    reply, deadline = await delivered(store, lease, *ENTRIES[:3])
    assert reply is Reply.DONE
    assert await store.queue() == ENTRIES[3:5]
    assert await store.scores(store.keys.queues(SHARD, OPS)) == {ACCOUNT: deadline}
    assert await store.pipe.command("HGET", store.keys.backlogs(SHARD), OPS) == b"2"
    assert await delivered(store, Lease(ACCOUNT, deadline), *ENTRIES[3:5]) == (Reply.DONE, 0)
    contents = await store.contents()
    gone = [store.keys.queue(OPS, ACCOUNT), store.keys.queues(SHARD, OPS), store.keys.backlogs(SHARD)]
    assert not contents.keys() & {*gone}


async def test_together_they_are_one_recorded_attempt_and_one_result(
    redis_client: Redis, namespace: str
) -> None:
    store, lease = await a_queue(redis_client, namespace, 4)
    await store.fill(*some_deliveries(9), account=NEIGHBOURS[0])
    other = await store.lease_queue(NEIGHBOURS[0])
    (nine,) = await store.queue(NEIGHBOURS[0])
    await store.queues.retry(OPS, other, nine, wait_ms=5, result="failed")  # from now on results are counted
    assert (await delivered(store, lease, *ENTRIES[:3], record=b"{}"))[0] is Reply.DONE
    assert await store.stream(store.keys.attempts(SHARD, OPS)) == [{"attempt": b"{}"}]
    figures, *misses = (await store.contents())[store.keys.row(SHARD, OPS)].split(b"\n")
    _, _, *counts = map(int, figures.split())
    assert (sum(counts[::2]), sum(counts[1::2]), misses) == (1, 0, [])


async def test_a_repeat_after_a_lost_answer_removes_nothing_twice(
    redis_client: Redis, namespace: str
) -> None:
    store, lease = await a_queue(redis_client, namespace, 5)
    until = store.queues.until(lease, MINUTE_MS)
    for _ in range(2):
        again = await store.queues.delivered(OPS, lease, *ENTRIES[:2], until=until)
        assert again == (Reply.DONE, until)
    assert await store.queue() == ENTRIES[2:5]


async def test_all_of_it_is_settled_or_nothing(redis_client: Redis, namespace: str) -> None:
    store, lease = await a_queue(redis_client, namespace, 4)
    for others in (ENTRIES[1:3], [*ENTRIES[:2], ENTRIES[3]], ENTRIES[:5], [ENTRIES[0], ENTRIES[0]]):
        await refused(store, lease, *others)
    await refused(store, lease._replace(deadline=lease.deadline - 1), *ENTRIES[:2], reply=Reply.LEASE_LOST)


@pytest.mark.parametrize("left", [1, 2, 3])
async def test_if_one_was_dropped_meanwhile_none_is_settled(
    redis_client: Redis, namespace: str, left: int
) -> None:
    store, lease = await a_queue(redis_client, namespace, 4)
    await Keeper(store.pipe, store.keys, "w").look({OPS: left})
    waiting = ENTRIES[4 - left : 4]
    assert await store.queue() == waiting
    await refused(store, lease, *ENTRIES[:3])
    await store.queues.give_up(OPS, ACCOUNT, waiting[0], reason="by hand")
    await refused(store, lease, *waiting, ENTRIES[5])
    await refused(store, lease, *waiting)


async def test_a_single_delivery_is_not_settled_as_two(redis_client: Redis, namespace: str) -> None:
    store, lease = await a_queue(redis_client, namespace, 1)
    await refused(store, lease, *ENTRIES[:2])
    assert await delivered(store, lease, ENTRIES[0]) == (Reply.DONE, 0)


async def left_by(store: Store) -> dict[str, Any]:
    """What settling changes, but for times of the server."""
    keys = store.keys
    contents = await store.contents()
    named = [keys.tries(SHARD, OPS), keys.bodies(SHARD), keys.sizes(SHARD), keys.backlogs(SHARD)]
    named += [keys.queues(SHARD, OPS), *(keys.queue(OPS, name) for name in (ACCOUNT, *NEIGHBOURS[:3]))]
    return {key.removeprefix(keys.namespace): contents[key] for key in named if key in contents}


FAR_MS = 2_000_000_000_000
"""When the leases of a random history end, in ms, which all settlings share."""


async def a_history(store: Store, seed: int, *, is_together: bool) -> dict[str, Any]:
    """Several queues at once, whose events wait for others too, and whose heads may have failed: what is left
    when some of each queue was delivered, in one message or one by one."""
    chance = random.Random(seed)
    sent: dict[str, list[bytes]] = {}
    for number, account in enumerate((ACCOUNT, *NEIGHBOURS[:3])):
        some = some_deliveries(*range(100 * number + 1, 100 * number + chance.randint(2, 25)))
        await store.fill(*some, account=account)
        if chance.random() < 0.5:
            await store.fill(*some[:2], account=account, subscription="audit")
        entries, lease = [one.entry for one in some], await store.lease_queue(account)
        if chance.random() < 0.5:
            await store.queues.retry(OPS, lease, entries[0], wait_ms=5)
        await store.pipe.command("ZADD", store.keys.queues(SHARD, OPS), FAR_MS, account)
        sent[account] = entries[: chance.randint(1, 20)]

    async def deliver(account: str, entries: list[bytes]) -> None:
        lease, messages = Lease(account, FAR_MS), [entries] if is_together else [[one] for one in entries]
        for place, message in enumerate(messages, 1):
            until = FAR_MS + 1 + place % 2 if place < len(messages) else FAR_MS + 9
            reply, _ = await store.queues.delivered(OPS, lease, *message, until=until)
            assert reply is Reply.DONE
            lease = lease._replace(deadline=until)

    async with running(store.pipe):
        await asyncio.gather(*(deliver(account, entries) for account, entries in sent.items()))
    return await left_by(store)


@pytest.mark.parametrize("seed", range(4))
async def test_the_result_is_the_same_as_settling_one_by_one(
    redis_client: Redis, namespace: str, seed: int
) -> None:
    one_by_one = await a_history(a_store(redis_client, f"{namespace}-1"), seed, is_together=False)
    together = await a_history(a_store(redis_client, f"{namespace}-2"), seed, is_together=True)
    assert together == one_by_one
    assert together[f":{{{SHARD}}}:backlogs"]
