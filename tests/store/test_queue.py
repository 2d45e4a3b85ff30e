"""Deliveries queued outside of a commit: alerts, and what is sent again."""

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    NEIGHBOURS,
    OPS,
    SHARD,
    Store,
    a_delivery,
    a_store,
    some_deliveries,
)
from watcher.journal.events import Delivery
from watcher.store.queues import Breakers
from watcher.store.reader import Reader
from watcher.store.schedule import Reply

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

ONE, TWO, THREE = some_deliveries(1, 2, 3)


async def queue(store: Store, *deliveries: Delivery) -> int:
    return await store.queues.enqueue(OPS, ACCOUNT, deliveries)


async def test_a_queued_delivery_is_at_the_end_of_its_queue_and_due(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    assert await queue(store, ONE) == 1
    assert await queue(store, TWO, THREE) == 2
    assert await store.queue() == [each.entry for each in (ONE, TWO, THREE)]
    await store.now_ms()
    assert await store.queues.due_subscriptions(SHARD) == [OPS]
    claimed = await store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=10)
    assert [lease.member for lease in claimed.leases] == [ACCOUNT]


async def test_a_queued_delivery_keeps_its_body_until_it_is_delivered(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await queue(store, ONE)
    await queue(store, ONE, TWO)
    assert await store.bodies() == {b"evt_1 1": b"2 " + ONE.stored, b"evt_2 2": b"1 " + TWO.stored}
    for each in (ONE, ONE, TWO):
        lease = await store.lease_queue()
        await store.queues.delivered(OPS, lease, each.entry, until=store.queues.until(lease, MINUTE_MS))
    assert await store.bodies() == {}


async def test_queuing_nothing_writes_nothing(redis_client: Redis, namespace: str) -> None:
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


async def test_a_leased_or_waiting_queue_keeps_its_time(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await queue(store, ONE)
    lease = await store.lease_queue()
    await queue(store, TWO)
    assert await store.scores(store.keys.queues(SHARD, OPS)) == {ACCOUNT: lease.deadline}


async def test_a_single_delivery_is_a_string_and_several_are_a_list(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    key = store.keys.queue(OPS, ACCOUNT)
    await store.fill(ONE)
    assert await store.pipe.command("TYPE", key) == b"string"
    await store.fill(TWO)
    await queue(store, THREE)
    assert await store.pipe.command("TYPE", key) == b"list"
    for each in (ONE, TWO, THREE):
        assert await store.queues.give_up(OPS, ACCOUNT, each.entry, reason="by hand") is not None
    await queue(store, ONE)
    assert await store.pipe.command("TYPE", key) == b"string"
    await queue(store, ONE)
    assert await store.queue() == [ONE.entry], "it is its end already"
    await store.fill(TWO, THREE)
    assert [entry for entry, _ in (await store.begin(await store.lease_queue()))[1].deliveries] == (
        await store.queue()
    )
    assert [entry.split()[0] for entry in await store.queue()] == [
        each.entry.split()[0] for each in (ONE, TWO, THREE)
    ]


@pytest.mark.parametrize("damaged", ["queue", "queues", "due", "dead", "bodies", "sizes"])
async def test_a_damaged_key_fails_before_anything_is_written(
    redis_client: Redis, namespace: str, damaged: str
) -> None:
    store = a_store(redis_client, namespace)
    letter = await a_dead_letter(store, TWO)
    await queue(store, ONE)
    keys = store.keys
    key = {
        "queue": keys.queue(OPS, ACCOUNT),
        "queues": keys.queues(SHARD, OPS),
        "due": keys.due_subscriptions(SHARD),
        "dead": keys.dead(SHARD, OPS),
        "bodies": keys.bodies(SHARD),
        "sizes": keys.sizes(SHARD),
    }[damaged]
    await store.damage(key)
    before = await store.contents()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await store.queues.enqueue(OPS, ACCOUNT, [TWO], dead_letters=[letter])
    assert await store.contents() == before


async def test_attempts_of_a_subscription_are_spaced_over_all_workers(
    redis_client: Redis, namespace: str
) -> None:
    one, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    before = await one.now_ms()
    waits_ms = [
        await Breakers(store.pipe, store.keys).take_turn(OPS, spacing_ms=250, within_ms=9000)
        for store in (one, other, one)
    ]
    took_ms = await one.now_ms() - before + 1
    assert waits_ms[0] == 0
    for number, wait_ms in enumerate(waits_ms):
        assert 250 * number - took_ms <= wait_ms <= 250 * number
    assert await one.polls.take_turns(OPS, 1, spacing_ms=250) == 0, "a provider of that name has its own"


async def test_a_distant_turn_is_returned_and_not_reserved(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    breakers = Breakers(store.pipe, store.keys)
    assert await breakers.take_turn(OPS, spacing_ms=10_000, within_ms=2000) == 0
    for _ in range(3):
        assert 2000 < await breakers.take_turn(OPS, spacing_ms=10_000, within_ms=2000) <= 10_000
    assert 8000 < await breakers.take_turn(OPS, spacing_ms=1, within_ms=20_000) <= 10_000


async def a_dead_letter(store: Store, delivery: Delivery, account: str = ACCOUNT) -> str:
    """Give a delivery up; returns the id of the dead letter that it is then."""
    await store.queues.enqueue(OPS, account, [delivery])
    lease = await store.lease_queue(account)
    reply, deadline = await store.queues.dead(
        OPS, lease, delivery.entry, until=store.queues.until(lease, MINUTE_MS), reason="no"
    )
    assert (reply, deadline) == (Reply.DONE, 0)
    return await last_dead_letter(store)


async def last_dead_letter(store: Store) -> str:
    key = store.keys.dead(SHARD, OPS)
    answer = await store.pipe.command("EVAL", "return redis.call('XREVRANGE', KEYS[1], '+', '-')", 1, key)
    return str(answer[0][0].decode())


async def test_resent_dead_letters_go_to_the_end_of_their_queue_and_leave_the_list(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    dead_letters = [await a_dead_letter(store, each) for each in (ONE, TWO)]
    kept = await a_dead_letter(store, a_delivery(9), NEIGHBOURS[0])
    await queue(store, THREE)
    assert await store.queues.enqueue(OPS, ACCOUNT, (ONE, TWO), dead_letters=dead_letters) == 2
    assert await store.queue() == [each.entry for each in (THREE, ONE, TWO)]
    assert await last_dead_letter(store) == kept
    assert len(await store.stream(store.keys.dead(SHARD, OPS))) == 1
    assert {body[:2] for body in (await store.bodies()).values()} == {b"1 "}
    assert list(await store.scores(store.keys.queues(SHARD, OPS))) == [ACCOUNT]


async def test_a_dead_letter_that_is_asked_for_twice_moves_once(redis_client: Redis, namespace: str) -> None:
    store, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    dead_letters = [await a_dead_letter(store, each) for each in (ONE, TWO)]
    assert await store.queues.enqueue(OPS, ACCOUNT, [ONE], dead_letters=dead_letters[:1]) == 1
    found = await asyncio.gather(
        *(each.queues.enqueue(OPS, ACCOUNT, (ONE, TWO), dead_letters=dead_letters) for each in (store, other))
    )
    assert sorted(found) == [0, 1]
    assert await store.queue() == [ONE.entry, TWO.entry]


async def test_resending_missing_dead_letters_changes_nothing(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    letter = await a_dead_letter(store, ONE)
    await store.queues.enqueue(OPS, ACCOUNT, [ONE], dead_letters=[letter])
    before = await store.contents()
    assert await store.queues.enqueue(OPS, ACCOUNT, [ONE], dead_letters=[letter]) == 0
    assert await store.contents() == before


async def test_waiting_deliveries_are_made_due_and_found_at_once(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await queue(store, ONE)
    queues, index = store.keys.queues(SHARD, OPS), store.keys.due_subscriptions(SHARD)
    for due_in_ms, made_due in ((-5, 0), (MINUTE_MS // 2, 0), (10 * MINUTE_MS, 1)):
        await store.due(queues, **{ACCOUNT: due_in_ms})
        await store.due(index, **{OPS: 60 * MINUTE_MS})  # as of a subscription that backs off
        assert await store.queues.make_due(OPS, SHARD, lease_ms=MINUTE_MS) == made_due
        assert (await store.scores(index))[OPS] <= await store.now_ms() + 1
    assert (await store.scores(queues))[ACCOUNT] <= await store.now_ms() + 1


async def test_without_queues_nothing_is_made_due(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    assert await store.queues.make_due(OPS, SHARD, lease_ms=MINUTE_MS) == 0
    assert await store.contents() == {}


async def test_a_resent_delivery_is_the_same_byte_for_byte(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    odd = a_delivery(9, b"\x00\xff\n%s")
    await queue(store, odd)
    assert await store.queue() == [odd.entry]


async def test_dropping_a_head_that_waits_for_a_retry_makes_the_next_one_due(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.queues.enqueue(OPS, ACCOUNT, some_deliveries(1, 2))
    one, two = (a_delivery(number).entry for number in (1, 2))
    lease, _ = await store.begin(await store.lease_queue())
    await store.queues.retry(OPS, lease, one, wait_ms=60 * MINUTE_MS)
    before = await store.contents()
    assert await store.queues.give_up(OPS, ACCOUNT, two, reason="by hand") is None
    assert await store.contents() == before
    assert await store.queues.give_up(OPS, ACCOUNT, one, reason="by hand") == 1
    after = await store.contents()
    assert await store.queues.give_up(OPS, ACCOUNT, one, reason="by hand") is None, "as a repeat"
    assert await store.contents() == after
    assert await store.queue() == [two]
    assert store.keys.tries(SHARD, OPS) not in after
    assert (await store.begin(await store.lease_queue()))[1].deliveries[0][0] == two


async def test_a_leased_queue_stays_leased_when_its_head_is_dropped_and_ends_with_its_last(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.queues.enqueue(OPS, ACCOUNT, [a_delivery(1)])
    lease, begun = await store.begin(await store.lease_queue())
    head, schedule = begun.deliveries[0][0], store.keys.queues(SHARD, OPS)
    assert await store.queues.give_up(OPS, ACCOUNT, head, reason="by hand") == 0
    assert await store.scores(schedule) == {ACCOUNT: lease.deadline}
    until = store.queues.until(lease, MINUTE_MS)
    assert await store.queues.delivered(OPS, lease, head, until=until) == (Reply.MOVED_ON, 0)
    await store.queues.release(OPS, lease)
    lease, begun = await store.begin(await store.lease_queue())
    assert (begun.reply, begun.deliveries) == (Reply.DONE, [])
    assert await store.scores(schedule) == {}


async def test_dropping_the_only_delivery_unschedules_its_queue(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.queues.enqueue(OPS, ACCOUNT, [a_delivery(1)])
    assert await store.queues.give_up(OPS, ACCOUNT, a_delivery(1).entry, reason="by hand") == 0
    assert await store.scores(store.keys.queues(SHARD, OPS)) == {}
    (letter,) = await Reader(store.pipe, store.keys).dead_letters(OPS, 9, lambda _: True)
    assert (letter.delivery, letter.reason) == (a_delivery(1), "by hand")
