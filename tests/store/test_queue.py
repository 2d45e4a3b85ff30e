"""Deliveries queued outside of a commit: alerts, and what is sent again."""

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from servers import EVERY_ENGINE
from stores import ACCOUNT, MINUTE_MS, OPS, SHARD, Store, a_delivery, a_store, some_deliveries

from watcher.store.lanes import Delivery

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

ONE, TWO, THREE = some_deliveries(1, 2, 3)


async def queue(store: Store, *deliveries: Delivery) -> int:
    return await store.lanes.queue(OPS, ACCOUNT, deliveries)


async def test_what_is_queued_waits_at_the_end_of_its_lane_and_is_due(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    assert await queue(store, ONE) == 1
    assert await queue(store, TWO, THREE) == 2
    assert await store.lane() == [each.dump() for each in (ONE, TWO, THREE)]
    await store.now_ms()
    assert await store.lanes.due_subscriptions(SHARD) == [OPS]
    claimed = await store.lanes.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=10)
    assert [lease.member for lease in claimed.leases] == [ACCOUNT]


async def test_nothing_to_queue_leaves_nothing_behind(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    assert await queue(store) == 0
    assert await store.contents() == {}


async def test_a_repeated_call_queues_nothing_twice(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await queue(store, ONE)
    await queue(store, TWO, THREE)
    before = await store.contents()
    assert await queue(store, TWO, THREE) == 2
    assert await store.contents() == before


async def test_a_lane_that_is_leased_or_waits_keeps_its_time(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await queue(store, ONE)
    lease = await store.lease_lane()
    await queue(store, TWO)
    assert await store.scores(store.keys.lanes(SHARD, OPS)) == {ACCOUNT: lease.deadline}


@pytest.mark.parametrize("damaged", ["lane", "lanes", "due"])
async def test_a_damaged_key_refuses_before_anything_is_written(
    redis_client: Redis, namespace: str, damaged: str
) -> None:
    store = a_store(redis_client, namespace)
    await queue(store, ONE)
    keys = store.keys
    key = {
        "lane": keys.lane(OPS, ACCOUNT),
        "lanes": keys.lanes(SHARD, OPS),
        "due": keys.due_subscriptions(SHARD),
    }[damaged]
    await store.pipe.command("SET", key, "damaged")
    before = await store.contents()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await queue(store, TWO)
    assert await store.contents() == before


async def test_attempts_of_a_subscription_are_spaced_over_all_workers(
    redis_client: Redis, namespace: str
) -> None:
    one, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    before = await one.now_ms()
    waits_ms = [await store.lanes.take_turn(OPS, per_second=4) for store in (one, other, one)]
    took_ms = await one.now_ms() - before + 1
    assert waits_ms[0] == 0
    for number, wait_ms in enumerate(waits_ms):
        assert 250 * number - took_ms <= wait_ms <= 250 * number
    assert await one.polls.take_turns(OPS, 1, spacing_ms=250) == 0, "a provider of that name has its own"


async def test_a_delivery_that_was_put_back_is_the_same_to_the_byte(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    odd = a_delivery(9, body=b"\x00\xff\n%s")
    await queue(store, odd)
    assert await store.lane() == [odd.dump()]
