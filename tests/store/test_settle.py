"""Settling: what becomes of a queue's head after an attempt, exactly once, by the holder of its lease."""

from collections.abc import Awaitable, Callable

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
from watcher.store import queues
from watcher.store.keeper import Keeper
from watcher.store.queues import Bounds
from watcher.store.schedule import Lease, Reply

Settle = Callable[[Store, Lease, Delivery], Awaitable[Reply]]

KEPT_MS = 2 * MINUTE_MS
"""Longer than a queue is leased for: an order that names the deadline in force passes for a repeated one."""


async def delivered(store: Store, lease: Lease, delivery: Delivery) -> Reply:
    return (
        await store.queues.delivered(OPS, lease, delivery.entry, until=store.queues.until(lease, KEPT_MS))
    )[0]


async def dead(store: Store, lease: Lease, delivery: Delivery) -> Reply:
    return (
        await store.queues.dead(
            OPS, lease, delivery.entry, until=store.queues.until(lease, KEPT_MS), reason="410"
        )
    )[0]


async def retry(store: Store, lease: Lease, delivery: Delivery) -> Reply:
    return await store.queues.retry(OPS, lease, delivery.entry, wait_ms=5000)


pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

every_outcome = pytest.mark.parametrize("settle", [delivered, dead, retry])

ONE, TWO, THREE = some_deliveries(1, 2, 3)


async def a_queue(client: Redis, namespace: str, *deliveries: Delivery) -> tuple[Store, Lease]:
    """A store, and the lease of a queue where these wait."""
    store = a_store(client, namespace)
    await store.fill(*deliveries)
    return store, await store.lease_queue()


async def refused(store: Store, settle: Settle, lease: Lease, delivery: Delivery, reply: Reply) -> None:
    """Claim that a settling is answered so, and leaves everything as it was."""
    before = await store.contents()
    assert await settle(store, lease, delivery) is reply
    assert await store.contents() == before


async def test_a_delivered_head_is_removed_and_the_queue_stays_leased(
    redis_client: Redis, namespace: str
) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE, TWO)
    before = await store.now_ms()
    reply, deadline = await store.queues.delivered(
        OPS, lease, ONE.entry, until=store.queues.until(lease, 7000)
    )
    assert reply is Reply.DONE
    assert before + 7000 - 1 <= deadline <= await store.now_ms() + 7000 + 1
    assert await store.queue() == [TWO.entry]
    assert await store.scores(store.keys.queues(SHARD, OPS)) == {ACCOUNT: deadline}
    assert await delivered(store, Lease(ACCOUNT, deadline), TWO) is Reply.DONE


async def test_an_empty_queue_leaves_the_schedule(redis_client: Redis, namespace: str) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE)
    await store.fill(ONE, account=NEIGHBOURS[0])
    assert await store.queues.delivered(OPS, lease, ONE.entry, until=store.queues.until(lease, KEPT_MS)) == (
        Reply.DONE,
        0,
    )
    assert store.keys.queue(OPS, ACCOUNT) not in await store.contents()
    assert list(await store.scores(store.keys.queues(SHARD, OPS))) == [NEIGHBOURS[0]]


async def test_deliveries_queued_meanwhile_stay_with_the_holder_of_the_queue(
    redis_client: Redis, namespace: str
) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE)
    await store.fill(TWO)
    reply, deadline = await store.queues.delivered(
        OPS, lease, ONE.entry, until=store.queues.until(lease, KEPT_MS)
    )
    assert reply is Reply.DONE
    assert await store.scores(store.keys.queues(SHARD, OPS)) == {ACCOUNT: deadline}
    assert await store.queue() == [TWO.entry]


async def test_a_dead_head_becomes_a_dead_letter_and_the_queue_goes_on(
    redis_client: Redis, namespace: str
) -> None:
    odd = a_delivery(1, b"\x00\xff\n%s")
    store, lease = await a_queue(redis_client, namespace, odd, TWO)
    reply, deadline = await store.queues.dead(
        OPS, lease, odd.entry, until=store.queues.until(lease, 7000), reason="10 attempts"
    )
    assert reply is Reply.DONE
    assert await store.scores(store.keys.queues(SHARD, OPS)) == {ACCOUNT: deadline}
    assert await store.queue() == [TWO.entry]
    assert await store.stream(store.keys.dead(SHARD, OPS)) == [
        {"account": ACCOUNT.encode(), "reason": b"10 attempts", "delivery": odd.entry}
    ]
    assert await dead(store, Lease(ACCOUNT, deadline), TWO) is Reply.DONE
    assert [letter["reason"] for letter in await store.stream(store.keys.dead(SHARD, OPS))] == [
        b"10 attempts",
        b"410",
    ]
    assert await store.scores(store.keys.queues(SHARD, OPS)) == {}


async def test_a_failed_head_stays_and_its_queue_waits(redis_client: Redis, namespace: str) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE, TWO)
    before = await store.now_ms()
    assert await retry(store, lease, ONE) is Reply.DONE
    due = (await store.scores(store.keys.queues(SHARD, OPS)))[ACCOUNT]
    assert due % 1 == 0.5, "no lease: it may be made due at once"
    assert before + 5000 - 1 <= due <= await store.now_ms() + 5000 + 1
    assert await store.queue() == [ONE.entry, TWO.entry]
    assert await store.tries() == (1, ONE.entry)


async def test_a_queue_that_waits_is_found_again_through_the_index(
    redis_client: Redis, namespace: str
) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE)
    index = store.keys.due_subscriptions(SHARD)
    await store.due(index, **{OPS: 10 * MINUTE_MS})
    await retry(store, lease, ONE)
    due = await store.scores(store.keys.queues(SHARD, OPS))
    assert await store.scores(index) == {OPS: int(due[ACCOUNT])}


async def test_a_retry_does_not_delay_another_queue_of_its_subscription(
    redis_client: Redis, namespace: str
) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE)
    index = store.keys.due_subscriptions(SHARD)
    await store.due(index, **{OPS: -5})
    before = await store.scores(index)
    await retry(store, lease, ONE)
    assert await store.scores(index) == before


async def test_failures_are_counted_per_head(redis_client: Redis, namespace: str) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE, TWO)
    assert await store.tries() == (0, b"")
    for count in range(1, 12):
        assert await retry(store, lease, ONE) is Reply.DONE
        assert await store.tries() == (count, ONE.entry)
        lease = await store.lease_queue()
    reply, deadline = await store.queues.delivered(
        OPS, lease, ONE.entry, until=store.queues.until(lease, KEPT_MS)
    )
    assert reply is Reply.DONE
    assert await store.tries() == (0, b"")
    await retry(store, Lease(ACCOUNT, deadline), TWO)
    assert await store.tries() == (1, TWO.entry)


async def test_failures_of_a_dropped_head_do_not_count_for_the_next(
    redis_client: Redis, namespace: str
) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE)
    await retry(store, lease, ONE)
    await store.fill(TWO)
    await Keeper(store.pipe, store.keys, "w").look({OPS: 1})
    assert await store.queue() == [TWO.entry]
    tries, tried = await store.tries()
    assert (tries, tried) == (1, ONE.entry)
    await retry(store, await store.lease_queue(), TWO)
    assert await store.tries() == (1, TWO.entry)


@every_outcome
@pytest.mark.parametrize("pushed_out", [1, 2])
async def test_a_head_dropped_meanwhile_by_a_full_backlog_removes_no_other_delivery(
    redis_client: Redis, namespace: str, settle: Settle, pushed_out: int
) -> None:
    """Its attempt ends with a queue in hand whose head is another: the queue is given back as it is."""
    store, lease = await a_queue(redis_client, namespace, ONE, TWO)
    await store.fill(*some_deliveries(3, 4)[:pushed_out])
    await Keeper(store.pipe, store.keys, "w").look({OPS: 2})
    waiting = [each.entry for each in some_deliveries(1, 2, 3, 4)[pushed_out : pushed_out + 2]]
    assert await store.queue() == waiting
    await refused(store, settle, lease, ONE, Reply.MOVED_ON)
    assert await store.queues.release(OPS, lease) is Reply.DONE
    (again,) = (await store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=5)).leases
    assert await store.queue() == waiting
    assert await settle(store, again, some_deliveries(1, 2, 3)[pushed_out]) is Reply.DONE


@pytest.mark.parametrize("outcome", ["delivered", "dead", "retry"])
async def test_an_attempt_is_recorded_if_it_failed_or_had_failed_before(
    redis_client: Redis, namespace: str, outcome: str
) -> None:
    record = b'{"status":503}\x00\xff'
    store, lease = await a_queue(redis_client, namespace, ONE, TWO)
    attempts = store.keys.attempts(SHARD, OPS)
    reply, deadline = await store.queues.delivered(
        OPS, lease, ONE.entry, until=store.queues.until(lease, KEPT_MS)
    )
    assert reply is Reply.DONE
    assert attempts not in await store.contents()
    lease = Lease(ACCOUNT, deadline)
    if outcome == "retry":
        await store.queues.retry(OPS, lease, TWO.entry, wait_ms=5, record=record)
    elif outcome == "dead":
        await store.queues.dead(
            OPS, lease, TWO.entry, until=store.queues.until(lease, KEPT_MS), reason="410", record=record
        )
    else:
        await store.queues.delivered(
            OPS, lease, TWO.entry, until=store.queues.until(lease, KEPT_MS), record=record
        )
    assert await store.stream(attempts) == [{"attempt": record}]


async def test_attempts_and_dead_letters_are_trimmed(
    redis_client: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "ATTEMPTS_PER_SUBSCRIPTION", 10)
    monkeypatch.setattr(queues, "DEAD_PER_SUBSCRIPTION", 10)
    waiting = some_deliveries(*range(1, 251))
    store, lease = await a_queue(redis_client, namespace, *waiting)
    for head in (each.entry for each in waiting):
        _, deadline = await store.queues.dead(
            OPS, lease, head, until=store.queues.until(lease, KEPT_MS), reason="410", record=b"{}"
        )
        lease = Lease(ACCOUNT, deadline)
    for key in (store.keys.attempts(SHARD, OPS), store.keys.dead(SHARD, OPS)):
        assert len(await store.stream(key)) == 10
    given_up = [each["delivery"] for each in await store.stream(store.keys.given_up(SHARD))]
    assert given_up[-1] == waiting[239].entry


async def test_attempts_of_all_subscriptions_share_their_bytes(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace, bounds=Bounds(attempts=20_000))
    record = b"x" * 1000
    for subscription in (OPS, "audit"):
        await store.fill(ONE, account=NEIGHBOURS[0], subscription=subscription)
        for _ in range(40):
            lease = await store.lease_queue(NEIGHBOURS[0], subscription)
            await store.queues.retry(subscription, lease, ONE.entry, wait_ms=5, record=record)
    lengths = [len(await store.stream(store.keys.attempts(SHARD, name))) for name in (OPS, "audit")]
    assert lengths == [18, 8], "the newest of each stay, whatever the others take"


async def test_a_lowered_bound_of_dead_letters_and_attempts_is_met_after_a_few_calls(
    redis_client: Redis, namespace: str
) -> None:
    store, lease = await a_queue(redis_client, namespace, *some_deliveries(*range(1, 46)))
    for number in range(1, 46):
        if number == 41:
            store = a_store(redis_client, namespace, bounds=Bounds(dead=1, attempts=1))
        head, until = a_delivery(number).entry, store.queues.until(lease, KEPT_MS)
        await store.queues.dead(OPS, lease, head, until=until, reason="410", record=b"{}")
        lease = Lease(ACCOUNT, until)
    for key in (store.keys.dead(SHARD, OPS), store.keys.attempts(SHARD, OPS)):
        assert len(await store.stream(key)) < 12


async def test_a_dead_letter_that_lacks_fields_is_trimmed_like_any_other(
    redis_client: Redis, namespace: str
) -> None:
    waiting = some_deliveries(*range(1, 10))
    store, lease = await a_queue(redis_client, namespace, *waiting)
    await store.pipe.command("XADD", store.keys.dead(SHARD, OPS), "*", "account", "of a person")
    store = a_store(redis_client, namespace, bounds=Bounds(dead=1))
    for one in waiting:
        until = store.queues.until(lease, KEPT_MS)
        await store.queues.dead(OPS, lease, one.entry, until=until, reason="410")
        lease = Lease(ACCOUNT, until)
    given_up = [one["account"] for one in await store.stream(store.keys.given_up(SHARD))]
    assert given_up == [b"of a person", ACCOUNT.encode()]
    assert len(await store.stream(store.keys.dead(SHARD, OPS))) == 8


async def taken(store: Store) -> dict[bytes, bytes]:
    """What log, dead letters and attempts take, one by one, each with its body."""
    keys, bodies = store.keys, await store.bodies()

    def body(reference: bytes) -> int:
        return len(bodies[reference]) - len(b"1") if reference.startswith(b"evt_") else 0

    log = sum(
        80
        + len(one["account"] + one["entry"] + one.get("queued", b""))
        + body(one["entry"].partition(b" ")[2])
        for one in await store.stream(keys.log(SHARD))
    )
    dead_letters = await store.stream(keys.dead(SHARD, OPS))
    dead = sum(
        150 + sum(map(len, one.values())) + body(one["delivery"].rpartition(b" ")[0]) for one in dead_letters
    )
    attempts = sum(80 + len(one["attempt"]) for one in await store.stream(keys.attempts(SHARD, OPS)))
    sizes = {b"log": log, b"dead": dead, b"attempts": attempts, b"dead ops": len(dead_letters)}
    return {part: b"%d" % size for part, size in sizes.items()}


async def noted_of(store: Store) -> dict[bytes, bytes]:
    """The recorded sizes of these."""
    sizes: dict[bytes, bytes] = (await store.contents())[store.keys.sizes(SHARD)]
    return {part: size for part, size in sizes.items() if part != b"trimmed"}


async def test_all_sizes_are_recorded_to_the_byte(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace, bounds=Bounds(log=4_000, dead=5_000, attempts=1_500))
    for number in range(1, 31):
        one = a_delivery(number, b"x" * (7 * number))
        await store.fill(one, notes=[b"note"])
        lease, (head,) = await store.lease_queue(), await store.queue()
        until, record = store.queues.until(lease, KEPT_MS), b"x" * number
        await store.queues.dead(OPS, lease, head, until=until, reason="410", record=record)
        if number % 10 == 5:  # goes back to its queue, and is delivered
            ((letter, _),) = await store.pipe.command(
                "XREVRANGE", store.keys.dead(SHARD, OPS), "+", "-", "COUNT", 1
            )
            assert await store.queues.enqueue(OPS, ACCOUNT, [one], dead_letters=[letter.decode()]) == 1
            lease, (head,) = await store.lease_queue(), await store.queue()
            await store.queues.delivered(OPS, lease, head, until=store.queues.until(lease, KEPT_MS))
        noted = await noted_of(store)
        assert noted == await taken(store), number
    for key in (store.keys.log(SHARD), store.keys.dead(SHARD, OPS), store.keys.attempts(SHARD, OPS)):
        assert 8 <= len(await store.stream(key)) < 24, "some had to go"
    assert int(noted[b"log"]) <= 4_000 < int(noted[b"dead"]) <= 5_000


async def test_a_damaged_size_counts_from_zero(redis_client: Redis, namespace: str) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE)
    sizes = store.keys.sizes(SHARD)
    await store.pipe.command("HSET", sizes, "dead", "x", "attempts", "x")
    until = store.queues.until(lease, KEPT_MS)
    await store.queues.dead(OPS, lease, ONE.entry, until=until, reason="410", record=b"{}")
    assert (await store.contents())[sizes] == await taken(store)
    await store.pipe.command("HSET", sizes, "dead", "1")
    ((letter, _),) = await store.pipe.command("XRANGE", store.keys.dead(SHARD, OPS), "-", "+")
    assert await store.queues.enqueue(OPS, ACCOUNT, [ONE], dead_letters=[letter.decode()]) == 1
    assert b"dead" not in (await store.contents())[sizes]


@every_outcome
async def test_only_the_head_is_settled(redis_client: Redis, namespace: str, settle: Settle) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE, TWO)
    longer = a_delivery(11)
    for other in (TWO, THREE, longer):
        await refused(store, settle, lease, other, Reply.MOVED_ON)


@every_outcome
async def test_an_attempt_of_another_head_with_the_same_prefix_is_distinct(
    redis_client: Redis, namespace: str, settle: Settle
) -> None:
    longer = a_delivery(1, previous=None)
    same = longer._replace(sequence=10)
    store, lease = await a_queue(redis_client, namespace, longer._replace(sequence=101))
    await refused(store, settle, lease, same, Reply.MOVED_ON)


@every_outcome
async def test_a_missing_queue_has_no_head(redis_client: Redis, namespace: str, settle: Settle) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE)
    await store.pipe.command("DEL", store.keys.queue(OPS, ACCOUNT))
    await refused(store, settle, lease, ONE, Reply.MOVED_ON)


@every_outcome
@pytest.mark.parametrize("off_ms", [-MINUTE_MS, -1, 1])
async def test_without_the_lease_nothing_is_settled(
    redis_client: Redis, namespace: str, settle: Settle, off_ms: int
) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE, TWO)
    late = Lease(ACCOUNT, lease.deadline + off_ms)
    await refused(store, settle, late, ONE, Reply.LEASE_LOST)


@every_outcome
@pytest.mark.parametrize("deliveries", [(ONE,), (ONE, TWO), (ONE, ONE)], ids=["last", "more", "twin"])
async def test_a_repeated_settle_removes_nothing_twice(
    redis_client: Redis, namespace: str, settle: Settle, deliveries: tuple[Delivery, ...]
) -> None:
    store, lease = await a_queue(redis_client, namespace, *deliveries)
    assert await settle(store, lease, ONE) is Reply.DONE
    before = await store.contents()
    # Within the same millisecond it is taken for a repeat after a lost answer, and gets the lost one.
    assert await settle(store, lease, ONE) in (Reply.DONE, Reply.LEASE_LOST)
    assert await store.contents() == before


async def test_a_repeated_settle_gets_the_first_answer(redis_client: Redis, namespace: str) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE, TWO)
    until = store.queues.until(lease, MINUTE_MS)
    for _ in range(2):
        assert await store.queues.delivered(OPS, lease, ONE.entry, until=until) == (Reply.DONE, until)
    assert await store.queue() == [TWO.entry]


async def a_record(store: Store, lease: Lease, delivery: Delivery) -> Reply:
    """Settle with an attempt to remember."""
    return await store.queues.retry(OPS, lease, delivery.entry, wait_ms=5000, record=b"{}")


@pytest.mark.parametrize(
    ("settle", "needed"),
    [
        (delivered, {"queue", "queues", "tries", "bodies", "backlogs"}),
        (dead, {"queue", "queues", "tries", "bodies", "backlogs", "dead", "sizes", "given up"}),
        (retry, {"queue", "queues", "tries", "backlogs", "due"}),
        (a_record, {"queue", "queues", "tries", "backlogs", "due", "attempts", "sizes"}),
    ],
)
@pytest.mark.parametrize(
    "damaged",
    ["queue", "queues", "tries", "dead", "due", "attempts", "bodies", "sizes", "given up", "backlogs"],
)
async def test_a_damaged_key_loses_no_delivery_and_an_unneeded_one_delays_none(
    redis_client: Redis, namespace: str, settle: Settle, needed: set[str], damaged: str
) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE, TWO)
    keys = store.keys
    key = {
        "queue": keys.queue(OPS, ACCOUNT),
        "queues": keys.queues(SHARD, OPS),
        "tries": keys.tries(SHARD, OPS),
        "dead": keys.dead(SHARD, OPS),
        "due": keys.due_subscriptions(SHARD),
        "attempts": keys.attempts(SHARD, OPS),
        "bodies": keys.bodies(SHARD),
        "sizes": keys.sizes(SHARD),
        "given up": keys.given_up(SHARD),
        "backlogs": keys.backlogs(SHARD),
    }[damaged]
    await store.damage(key)
    before = await store.contents()
    if damaged in needed:
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await settle(store, lease, ONE)
        assert await store.contents() == before
    else:
        assert await settle(store, lease, ONE) is Reply.DONE
        assert await store.queue() == ([TWO.entry] if settle in (delivered, dead) else [ONE.entry, TWO.entry])


async def test_a_lease_is_extended_by_its_holder_only(redis_client: Redis, namespace: str) -> None:
    store, lease = await a_queue(redis_client, namespace, ONE)
    longer = lease.deadline + 5
    assert await store.queues.extend(OPS, lease, until=longer) is Reply.DONE
    assert await store.queues.extend(OPS, lease, until=longer) is Reply.DONE, "where its answer was lost"
    assert await store.queues.extend(OPS, lease, until=longer + 1) is Reply.LEASE_LOST
    assert await store.scores(store.keys.queues(SHARD, OPS)) == {ACCOUNT: longer}
