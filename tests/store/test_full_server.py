"""A server whose memory is full: polling stops with nothing half written, what waits is still delivered."""

from collections.abc import AsyncIterator

import pytest

from tests.support.servers import ENGINES, real_server
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    OPS,
    PROVIDER,
    SHARD,
    Store,
    a_commit,
    a_delivery,
    a_store,
    fail,
    pause,
    some_deliveries,
)
from watcher.engine.breaker import succeeded
from watcher.store.client import connect
from watcher.store.exceptions import StoreUnreachable
from watcher.store.members import Enrolled
from watcher.store.queues import Breakers
from watcher.store.schedule import Lease, Reply

pytestmark = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
async def store(engine: str, namespace: str) -> AsyncIterator[Store]:
    """A store on a server of its own, whose memory a test may declare full."""
    with real_server(engine) as server:
        async with connect(server.url) as client:
            yield a_store(client, namespace)


async def fill(store: Store) -> None:
    await store.pipe.command("CONFIG", "SET", "maxmemory", 1)


async def make_room(store: Store) -> None:
    await store.pipe.command("CONFIG", "SET", "maxmemory", 0)


async def test_polling_stops_with_nothing_half_written_and_goes_on_by_itself(store: Store) -> None:
    await store.polls.commit(a_commit(await store.lease(), deliveries={OPS: [a_delivery(1)]}))
    lease = await store.lease()
    step = a_commit(
        lease, expected="v1", version="v2", notes=[b"event"], deliveries={OPS: [a_delivery(2)]}, ETH="1"
    )
    before = await store.contents()
    await fill(store)
    for refused in (
        store.polls.commit(step),
        store.polls.touch(PROVIDER, lease, version="v1", polled_at_ms=1, due_ms=1),
        store.polls.postpone(PROVIDER, lease, why="down", at_least_ms=0, waits_ms=[1]),
        store.polls.release(PROVIDER, lease),
        store.polls.take_turns(PROVIDER, 1, spacing_ms=200),
    ):
        with pytest.raises(StoreUnreachable, match=r"refuses writes \(OOM\)"):
            await refused
    assert await store.contents() == before
    await make_room(store)
    assert await store.polls.commit(step) is Reply.DONE


async def test_no_account_is_claimed_that_could_not_be_committed(store: Store) -> None:
    await store.due(store.keys.polls(SHARD, PROVIDER), **{ACCOUNT: -1})
    before = await store.contents()
    await fill(store)
    with pytest.raises(StoreUnreachable, match=r"refuses writes \(OOM\)"):
        await store.polls.claim(PROVIDER, SHARD, lease_ms=MINUTE_MS, at_most=1)
    assert await store.contents() == before


async def test_queues_are_drained_all_the_same(store: Store) -> None:
    await store.fill(*some_deliveries(1, 2, 3))
    await fill(store)
    (lease,) = (await store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases
    lease, begun = await store.begin(lease, at_most=1)
    assert (begun.reply, begun.deliveries) == (Reply.DONE, [(a_delivery(1).entry, a_delivery(1))])
    reply, deadline = await store.queues.delivered(
        OPS, lease, a_delivery(1).entry, until=store.queues.until(lease, MINUTE_MS)
    )
    assert reply is Reply.DONE
    lease = Lease(ACCOUNT, deadline)
    reply, deadline = await store.queues.dead(
        OPS,
        lease,
        a_delivery(2).entry,
        until=store.queues.until(lease, MINUTE_MS),
        reason="410",
        record=b"{}",
    )
    assert reply is Reply.DONE
    lease = Lease(ACCOUNT, deadline)
    assert await store.queues.retry(OPS, lease, a_delivery(3).entry, wait_ms=10 * MINUTE_MS) is Reply.DONE
    assert await store.queues.make_due(OPS, SHARD, lease_ms=MINUTE_MS) == 1
    (lease,) = (await store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases
    assert await store.queues.release(OPS, lease) is Reply.DONE
    assert await store.queues.take_turn(OPS, per_second=5, within_ms=1000) == 0
    await store.queues.hold(SHARD, {OPS: MINUTE_MS})
    assert await store.queues.due_subscriptions(SHARD) == []
    assert await store.queues.enqueue(OPS, ACCOUNT, [a_delivery(4)]) == 1, "an alert, or a letter sent again"
    assert await store.queue() == [a_delivery(number).entry for number in (3, 4)]


async def test_how_a_subscription_stands_is_noted_all_the_same(store: Store) -> None:
    breakers = Breakers(store.pipe, store.keys)
    await fill(store)
    assert await breakers.take_probe(OPS, "w", lease_ms=MINUTE_MS)
    assert (await fail(breakers, OPS, "503", wish_ms=MINUTE_MS, waits_ms=[1])).before is None
    assert (await breakers.read())[OPS].failures == 1
    assert (await breakers.change(OPS, succeeded)).after
    assert (await breakers.read())[OPS].failures == 0
    await pause(breakers, OPS, "by hand")
    assert (await breakers.read())[OPS].reason == "by hand"


async def test_a_worker_that_starts_with_the_same_accounts_needs_no_room(store: Store) -> None:
    """Else nobody would drain the queues of a full server whose workers were all started again."""
    accounts = {PROVIDER: [ACCOUNT]}
    for is_first in (True, False):
        await store.roster.check_layout()
        enrolled = await store.roster.enroll(accounts, now_ms=1)
        assert (await store.roster.note_enrolled("list"), enrolled.added) == (is_first, int(is_first))
        await fill(store)


async def test_accounts_are_removed_and_forgotten_on_a_full_server(store: Store) -> None:
    now_ms = await store.now_ms()
    await store.roster.enroll({PROVIDER: [ACCOUNT, "other"]}, now_ms=now_ms)
    await store.roster.note_enrolled("list")
    await fill(store)
    assert await store.roster.enroll({PROVIDER: ["other"]}, now_ms=now_ms) == Enrolled(0, 1, (ACCOUNT,))
    assert await store.roster.forget(now_ms + 10 * MINUTE_MS) == 1
    await make_room(store)
