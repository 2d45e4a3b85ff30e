"""Claims and leases: which worker may work on a member of a schedule, from when, until when."""

import asyncio

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    NEIGHBOURS,
    OPS,
    PROVIDER,
    SHARD,
    Store,
    a_delivery,
    a_store,
    some_deliveries,
)
from watcher.store.schedule import Claimed, Lease, Reply

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)


async def claim(store: Store, *, at_most: int = 100, lease_ms: int = MINUTE_MS) -> Claimed:
    return await store.polls.claim(PROVIDER, SHARD, lease_ms=lease_ms, at_most=at_most)


async def claim_queues(store: Store, *, at_most: int = 100, lease_ms: int = MINUTE_MS) -> Claimed:
    return await store.queues.claim(OPS, SHARD, lease_ms=lease_ms, at_most=at_most)


def members(claimed: Claimed) -> list[str]:
    return [lease.member for lease in claimed.leases]


async def indexed(store: Store) -> float | None:
    """When the index of due subscriptions says that OPS has a queue due."""
    return (await store.scores(store.keys.due_subscriptions(SHARD))).get(OPS)


async def test_only_what_is_due_is_claimed(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.due(store.keys.polls(SHARD, PROVIDER), late=-5000, later=-1, now=0, early=MINUTE_MS)
    assert sorted(members(await claim(store))) == ["late", "later", "now"]


async def test_the_longest_overdue_are_claimed_first_and_no_more_than_asked_for(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.due(store.keys.polls(SHARD, PROVIDER), third=-10, first=-3000, second=-2000)
    assert members(await claim(store, at_most=2)) == ["first", "second"]
    assert members(await claim(store, at_most=2)) == ["third"]


async def test_a_lease_lasts_as_long_as_was_asked_for(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    polls = store.keys.polls(SHARD, PROVIDER)
    await store.due(polls, **{ACCOUNT: -1})
    before = await store.now_ms()
    (lease,) = (await claim(store, lease_ms=7000)).leases
    assert before + 7000 - 1 <= lease.deadline <= await store.now_ms() + 7000 + 1
    assert await store.scores(polls) == {ACCOUNT: lease.deadline}


async def test_a_leased_member_is_not_claimed_by_another_worker(redis_client: Redis, namespace: str) -> None:
    one, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    await one.due(one.keys.polls(SHARD, PROVIDER), **dict.fromkeys(NEIGHBOURS[:50], -1))
    claims = await asyncio.gather(*(claim(store, at_most=7) for store in (one, other) * 5))
    assert sorted(member for claimed in claims for member in members(claimed)) == sorted(NEIGHBOURS[:50])
    assert members(await claim(one)) == []


async def test_a_member_comes_back_when_its_lease_ends(redis_client: Redis, namespace: str) -> None:
    dead, alive = a_store(redis_client, namespace), a_store(redis_client, namespace)
    await dead.due(dead.keys.polls(SHARD, PROVIDER), **{ACCOUNT: -1})
    (lost,) = (await claim(dead, lease_ms=20)).leases
    async with asyncio.timeout(5):
        while not (found := await claim(alive)).leases:
            assert found.next_due_ms is not None
            assert found.next_due_ms <= 20
    assert await alive.now_ms() >= lost.deadline
    assert found.leases[0].deadline > lost.deadline


async def test_a_claim_says_when_to_look_again(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    assert await claim(store) == Claimed((), None)
    await store.due(store.keys.polls(SHARD, PROVIDER), early=5000, earlier=3000)
    claimed = await claim(store)
    assert claimed.leases == ()
    assert claimed.next_due_ms is not None
    assert 2000 < claimed.next_due_ms <= 3001


async def test_members_that_a_claim_leaves_behind_are_due_at_once(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.due(store.keys.polls(SHARD, PROVIDER), one=-2000, two=-1000)
    next_due_ms = (await claim(store, at_most=1)).next_due_ms
    assert next_due_ms is not None
    assert -60_000 < next_due_ms <= -1000, "how long it has waited already"


async def test_a_claim_may_leave_out_shorter_waits(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.due(store.keys.polls(SHARD, PROVIDER), one=-9_000_000, two=-1000)
    claimed = await store.polls.claim(PROVIDER, SHARD, lease_ms=MINUTE_MS, at_most=9, waited_ms=6_000_000)
    assert [lease.member for lease in claimed.leases] == ["one"]


async def test_every_claim_sets_the_workers_clock_by_the_servers(redis_client: Redis, namespace: str) -> None:
    store, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    store.pipe.set_clock(store.pipe.now_ms() + 3_600_000)
    await claim(store)
    assert abs(store.schedule.now_ms() - await other.now_ms()) < 1000


async def test_a_released_member_is_due_when_its_holder_says(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    polls = store.keys.polls(SHARD, PROVIDER)
    assert await store.polls.release(PROVIDER, await store.lease()) is Reply.DONE
    (again,) = (await claim(store)).leases
    before = await store.now_ms()
    assert await store.polls.release(PROVIDER, again, due_in_ms=5000) is Reply.DONE
    assert before + 5000 - 1 <= (await store.scores(polls))[ACCOUNT] <= await store.now_ms() + 5000 + 1


async def test_a_member_that_another_worker_claimed_meanwhile_is_not_released(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    held = await store.lease()
    late = Lease(ACCOUNT, held.deadline - MINUTE_MS)
    assert await store.polls.release(PROVIDER, late) is Reply.LEASE_LOST
    assert await store.polls.release(PROVIDER, Lease("unknown", held.deadline)) is Reply.LEASE_LOST
    assert await store.scores(store.keys.polls(SHARD, PROVIDER)) == {ACCOUNT: held.deadline}


async def test_a_subscription_is_due_with_its_first_queue(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    assert await store.queues.due_subscriptions(SHARD) == []
    await store.fill(a_delivery())
    await store.fill(a_delivery(), subscription="audit")
    await store.now_ms()
    assert sorted(await store.queues.due_subscriptions(SHARD)) == ["audit", OPS]
    await claim_queues(store)
    assert await store.queues.due_subscriptions(SHARD) == ["audit"]


async def test_the_index_follows_the_queues_with_every_claim(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    queues = store.keys.queues(SHARD, OPS)
    first, second = NEIGHBOURS[:2]
    for account in (first, second):
        await store.fill(a_delivery(), account=account)
    await claim_queues(store, at_most=1)
    assert await indexed(store) == min((await store.scores(queues)).values())
    await claim_queues(store, at_most=1)
    assert await indexed(store) == min((await store.scores(queues)).values())
    for account in (first, second):
        lease = await store.lease_queue(account)
        await store.queues.delivered(
            OPS, lease, a_delivery().entry, until=store.queues.until(lease, MINUTE_MS)
        )
    assert await indexed(store) is not None  # settling does not look for the next; the claim below does
    assert await claim_queues(store) == Claimed((), None)
    assert await indexed(store) is None


async def test_a_queue_whose_worker_died_is_found_through_the_index(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(a_delivery())
    await claim_queues(store, lease_ms=20)
    async with asyncio.timeout(5):
        while not await store.queues.due_subscriptions(SHARD):  # noqa: ASYNC110 - the server's clock only
            await asyncio.sleep(0)
    assert members(await claim_queues(store)) == [ACCOUNT]


async def test_a_subscription_on_hold_is_not_found_until_new_work_of_it_is_due(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(a_delivery())
    await store.queues.hold(SHARD, {OPS: MINUTE_MS})
    assert await store.queues.due_subscriptions(SHARD) == []
    await store.fill(a_delivery(), account=NEIGHBOURS[0])
    await store.now_ms()
    assert await store.queues.due_subscriptions(SHARD) == [OPS]


async def test_any_number_of_subscriptions_can_be_put_on_hold_at_once(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(a_delivery())
    names = [*(f"s{number}" for number in range(5000)), OPS]
    await store.queues.hold(SHARD, dict.fromkeys(names, MINUTE_MS))
    assert await store.queues.due_subscriptions(SHARD) == []


async def test_holding_a_subscription_without_queues_creates_none(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.queues.hold(SHARD, {OPS: MINUTE_MS})
    assert await store.contents() == {}


async def test_a_released_queue_is_due_and_its_subscription_with_it(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(a_delivery())
    (lease,) = (await claim_queues(store)).leases
    assert await store.queues.release(OPS, lease) is Reply.DONE
    await store.now_ms()
    assert await store.queues.due_subscriptions(SHARD) == [OPS]
    assert members(await claim_queues(store)) == [ACCOUNT]


async def test_a_queue_released_for_later_does_not_delay_an_earlier_one(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(a_delivery())
    lease = await store.lease_queue()
    before = await indexed(store)
    assert await store.queues.release(OPS, lease, due_in_ms=MINUTE_MS) is Reply.DONE
    assert await indexed(store) == before


async def test_a_lost_queue_is_not_released(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(a_delivery())
    held = await store.lease_queue()
    before = await store.contents()
    assert await store.queues.release(OPS, Lease(ACCOUNT, held.deadline - 1)) is Reply.LEASE_LOST
    assert await store.contents() == before


async def test_queues_that_wait_for_a_retry_can_be_tried_at_once(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    waiting, leased, soon = NEIGHBOURS[:3]
    await store.due(
        store.keys.queues(SHARD, OPS), **{waiting: 10 * MINUTE_MS, leased: MINUTE_MS, soon: MINUTE_MS // 2}
    )
    await store.due(store.keys.due_subscriptions(SHARD), **{OPS: MINUTE_MS // 2})
    assert await store.queues.make_due(OPS, SHARD, lease_ms=2 * MINUTE_MS) == 1
    await store.now_ms()
    assert await store.queues.due_subscriptions(SHARD) == [OPS]
    assert members(await claim_queues(store)) == [waiting]


async def test_a_queue_given_back_with_any_wait_can_be_made_due(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    retried, released, leased = NEIGHBOURS[:3]
    for name in NEIGHBOURS[:3]:
        await store.fill(a_delivery(), account=name)
    queues = {name: await store.lease_queue(name) for name in NEIGHBOURS[:3]}
    await store.queues.retry(OPS, queues[retried], a_delivery().entry, wait_ms=5_000)
    await store.queues.release(OPS, queues[released], due_in_ms=5_000)
    assert await store.queues.make_due(OPS, SHARD, lease_ms=2 * MINUTE_MS) == 2
    assert sorted(members(await claim_queues(store))) == sorted([retried, released])
    assert await store.queues.release(OPS, queues[leased]) is Reply.DONE, "its lease did not change hands"


async def test_a_poll_that_waits_after_a_rejection_is_made_due_and_one_in_flight_is_not(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    refused, under_way = NEIGHBOURS[:2]
    leases = [await store.lease(refused), await store.lease(under_way)]
    await store.polls.postpone(PROVIDER, leases[0], why="gone away", at_least_ms=0, waits_ms=[5_000])
    assert await store.polls.make_due(PROVIDER, SHARD, lease_ms=2 * MINUTE_MS) == 1
    assert await store.polls.release(PROVIDER, leases[1]) is Reply.DONE


async def test_without_waiting_queues_none_is_made_due(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    assert await store.queues.make_due(OPS, SHARD, lease_ms=MINUTE_MS) == 0
    assert await store.contents() == {}


async def test_a_queue_is_begun_with_its_oldest_delivery(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    deliveries = some_deliveries(1, 2, 3)
    await store.fill(*deliveries)
    lease, begun = await store.begin(await store.lease_queue(), at_most=2)
    assert (begun.reply, begun.deliveries) == (Reply.DONE, [(each.entry, each) for each in deliveries[:2]])
    assert await store.scores(store.keys.queues(SHARD, OPS)) == {ACCOUNT: lease.deadline}


async def test_a_queue_is_begun_once_by_the_holder_of_its_lease(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(a_delivery())
    held = await store.lease_queue()
    until = held.deadline + 5
    for reply in (Reply.DONE, Reply.DONE):  # where the first answer was lost
        assert (await store.queues.begin(OPS, held, until=until, at_most=1)).reply is reply
    late = await store.queues.begin(OPS, held, until=until + 1, at_most=1)
    assert (late.reply, late.deliveries) == (Reply.LEASE_LOST, [])
    assert await store.scores(store.keys.queues(SHARD, OPS)) == {ACCOUNT: until}
