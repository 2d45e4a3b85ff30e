"""A commit leases the queues that it fills to its worker: empty ones only, briefly, and none twice."""

import asyncio
from collections.abc import Sequence
from random import Random
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
    a_commit,
    a_delivery,
    a_store,
    running,
    some_deliveries,
)
from watcher.journal.events import Delivery
from watcher.store.polls import Commit, Committed
from watcher.store.queues import CLAIM_MS, LEASE_MS
from watcher.store.schedule import Lease, Reply

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)


async def a_leasing(store: Store, *deliveries: Delivery, account: str = ACCOUNT, **fields: Any) -> Commit:
    """A step that fills the queue of OPS, which is to be leased to the worker that takes it."""
    step = a_commit(await store.lease(account), deliveries={OPS: deliveries}, **fields)
    return store.leasing(step, OPS)


async def committed(store: Store, step: Commit) -> Committed:
    done = await store.polls.commit(step)
    assert done.reply is Reply.DONE
    return done


async def a_lease(store: Store, step: Commit) -> Lease:
    """The lease of the queue of OPS, which a step fills."""
    assert [*(await committed(store, step)).leased] == [OPS]
    return Lease(step.account, step.leased_until)


async def times(store: Store, subscription: str = OPS) -> dict[str, float]:
    return await store.scores(store.keys.queues(SHARD, subscription))


async def claimed(store: Store, subscription: str = OPS) -> list[str]:
    """What another worker gets."""
    found = await store.queues.claim(subscription, SHARD, lease_ms=CLAIM_MS, at_most=99)
    return [lease.member for lease in found.leases]


async def is_due_now(store: Store, done: Committed) -> bool:
    """Whether the queue was left to all workers."""
    return not done.leased and await claimed(store) == [ACCOUNT]


async def test_an_empty_queue_is_leased_for_an_attempt_with_all_that_waits_in_it(
    redis_client: Redis, namespace: str
) -> None:
    store, deliveries = a_store(redis_client, namespace), some_deliveries(1, 2)
    now_ms = await store.now_ms()
    step = await a_leasing(store, *deliveries)
    lease, in_hand = Lease(ACCOUNT, step.leased_until), (await committed(store, step)).leased[OPS]
    assert now_ms < lease.deadline <= await store.now_ms() + LEASE_MS
    assert await times(store) == {ACCOUNT: lease.deadline}
    assert await store.scores(store.keys.due_subscriptions(SHARD)) == {OPS: lease.deadline}
    assert await claimed(store) == []
    assert in_hand == deliveries
    _, begun = await store.begin(lease)
    assert (begun.reply, begun.tries) == (Reply.DONE, 0)
    assert begun.deliveries == [(one.entry, one) for one in in_hand], "as they would have been read"


async def test_leased_deliveries_continue_from_the_sequence_queued_before(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    first, second, third = some_deliveries(1, 2, 3)
    lease = await a_lease(store, await a_leasing(store, first))
    await store.queues.delivered(OPS, lease, first.entry, until=store.queues.until(lease, MINUTE_MS))
    done = await committed(store, await a_leasing(store, second, third, expected="v1", version="v2"))
    assert done.leased[OPS] == (second, third)
    assert await store.queue() == [second.entry, third.entry]


async def test_queues_that_are_not_leased_are_due_now(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    audit = a_delivery(1, subscription="audit")
    step = a_commit(await store.lease(), deliveries={"audit": [audit], OPS: [a_delivery(1)]})
    done = await committed(store, store.leasing(step, OPS))
    assert [*done.leased] == [OPS]
    assert await claimed(store, "audit") == [ACCOUNT]
    assert await claimed(store) == []


async def test_a_waiting_queue_is_not_leased(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await committed(store, (await a_leasing(store, a_delivery(1)))._replace(to_lease=()))
    before = await times(store)
    done = await committed(store, await a_leasing(store, a_delivery(2), expected="v1", version="v2"))
    assert done.leased == {}
    assert await times(store) == before
    assert await claimed(store) == [ACCOUNT]


async def test_a_queue_leased_by_another_worker_is_left_to_it(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    lease = await a_lease(store, await a_leasing(store, a_delivery(1)))
    later = await a_leasing(store, a_delivery(2), expected="v1", version="v2")
    assert (await committed(store, later)).leased == {}
    assert await times(store) == {ACCOUNT: lease.deadline}


async def test_a_queue_that_waits_for_its_retry_keeps_waiting(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    lease = await a_lease(store, await a_leasing(store, a_delivery(1)))
    await store.queues.retry(OPS, lease, a_delivery(1).entry, wait_ms=MINUTE_MS)
    before = await times(store)
    later = await a_leasing(store, a_delivery(2), expected="v1", version="v2")
    assert (await committed(store, later)).leased == {}
    assert await times(store) == before


async def test_a_queue_whose_schedule_was_deleted_is_due_as_it_is_not_empty(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await committed(store, await a_leasing(store, a_delivery(1)))
    await store.pipe.command("DEL", store.keys.queues(SHARD, OPS))
    done = await committed(store, await a_leasing(store, a_delivery(2), expected="v1", version="v2"))
    assert await is_due_now(store, done)


async def test_a_commit_past_its_deadline_leases_nothing(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    step = (await a_leasing(store, a_delivery()))._replace(leased_until=await store.now_ms())
    assert await is_due_now(store, await committed(store, step))


async def test_an_event_that_is_stored_already_is_read_before_it_is_sent(
    redis_client: Redis, namespace: str
) -> None:
    """A server that was rolled back may know it with other bytes, which were sent perhaps."""
    store, one = a_store(redis_client, namespace), a_delivery()
    await store.pipe.command("HSET", store.keys.bodies(SHARD), one.reference, b"1 other\n{")
    assert await is_due_now(store, await committed(store, await a_leasing(store, one)))


@pytest.fixture
def again(redis_client: Redis, namespace: str) -> Store:
    """A store whose time stands still: it sends a commit again with the same bytes, as redis-py does where an
    answer was lost.
    """
    store = a_store(redis_client, namespace)
    now_ms = store.schedule.now_ms()
    store.schedule.now_ms = lambda: now_ms
    return store


async def test_a_repeat_gets_the_first_answer_and_leases_nothing_new(again: Store) -> None:
    step = await a_leasing(again, *some_deliveries(1, 2))
    first = await committed(again, step)
    before = await again.contents()
    assert await again.polls.commit(step) == (Reply.DONE_BEFORE, first.leased)
    assert first.leased
    assert await again.contents() == before


@pytest.mark.parametrize("act", ["begun", "claimed", "delivered", "refilled"])
async def test_a_repeat_after_a_worker_has_begun_leases_nothing(again: Store, act: str) -> None:
    step = await a_leasing(again, a_delivery(1))
    lease = await a_lease(again, step)
    match act:
        case "begun":
            await again.queues.extend(OPS, lease, until=lease.deadline + MINUTE_MS)
        case "claimed":
            await again.lease_queue()
        case "delivered" | "refilled":
            await again.queues.delivered(OPS, lease, a_delivery(1).entry, until=lease.deadline + MINUTE_MS)
    if act == "refilled":  # and another worker's commit has leased it until the same moment
        await again.queues.enqueue(OPS, ACCOUNT, [a_delivery(2)])
        await again.pipe.command("ZADD", again.keys.queues(SHARD, OPS), lease.deadline, ACCOUNT)
    before = await again.contents()
    assert await again.polls.commit(step) == (Reply.DONE_BEFORE, {})
    assert await again.contents() == before


async def test_a_repeat_does_not_lease_a_queue_that_waited_at_the_first_try(
    again: Store,
) -> None:
    await committed(again, await a_leasing(again, a_delivery(1)))
    step = await a_leasing(again, a_delivery(2), expected="v1", version="v2")
    assert (await committed(again, step)).leased == {}
    assert await again.polls.commit(step) == (Reply.DONE_BEFORE, {})


async def test_a_refused_commit_leases_nothing(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    step = await a_leasing(store, a_delivery())
    late = step._replace(lease=Lease(ACCOUNT, 1))
    before = await store.contents()
    assert await store.polls.commit(step._replace(expected_version="v7")) == (Reply.MOVED_ON, {})
    assert await store.polls.commit(late) == (Reply.LEASE_LOST, {})
    assert await store.contents() == before


async def test_each_commit_of_a_call_has_leases_of_its_own(redis_client: Redis, namespace: str) -> None:
    store, accounts = a_store(redis_client, namespace), NEIGHBOURS[:12]
    await store.fill(a_delivery(1), account=accounts[0])
    steps = [
        await a_leasing(store, a_delivery(number, previous=None), account=account)
        for number, account in enumerate(accounts[1:], 2)
    ]
    steps[3] = steps[3]._replace(to_lease=())
    steps[5] = steps[5]._replace(expected_version="v7")
    async with running(store.pipe):
        done = await asyncio.gather(*map(store.polls.commit, steps))
    leased = [account for account, one in zip(accounts[1:], done, strict=True) if one.leased]
    assert leased == [account for place, account in enumerate(accounts[1:]) if place not in (3, 5)]
    for place, (account, one) in enumerate(zip(accounts[1:], done, strict=True)):
        if one.leased:
            assert one.leased == {OPS: (a_delivery(place + 2, previous=None),)}
            assert (await times(store))[account] == steps[place].leased_until
    assert sorted(await claimed(store)) == sorted((accounts[0], accounts[4]))


async def test_a_lease_is_extended_only_by_its_worker(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    lease = await a_lease(store, await a_leasing(store, a_delivery()))
    until, queues, before = lease.deadline + MINUTE_MS, store.queues, await store.contents()
    late = Lease(ACCOUNT, lease.deadline - 1)
    assert await queues.extend(OPS, late, until=until) is Reply.LEASE_LOST
    assert await store.contents() == before
    for _ in range(2):  # a repeat is done, too
        assert await queues.extend(OPS, lease, until=until) is Reply.DONE
        assert await times(store) == {ACCOUNT: until}
    assert await queues.extend(OPS, Lease(ACCOUNT, until), until=until + 1) is Reply.DONE
    assert await times(store) == {ACCOUNT: until + 1}


async def test_leases_of_many_queues_are_extended_in_one_call(redis_client: Redis, namespace: str) -> None:
    store, accounts = a_store(redis_client, namespace), NEIGHBOURS[:5]
    ones = {account: a_delivery(number, previous=None) for number, account in enumerate(accounts, 1)}
    leases = [
        await a_lease(store, await a_leasing(store, one, account=account)) for account, one in ones.items()
    ]
    lost, until = accounts[2], leases[0].deadline + MINUTE_MS
    await store.lease_queue(lost)
    async with running(store.pipe):
        replies = await asyncio.gather(*(store.queues.extend(OPS, one, until=until) for one in leases))
    assert [account for account, one in zip(accounts, replies, strict=True) if not one.value > 0] == [lost]


class Worker:
    """Does by chance what workers may do to the queues of OPS, and notes whose each is."""

    def __init__(self, store: Store, chance: Random, accounts: Sequence[str]) -> None:
        self.store = store
        self.chance = chance
        self.accounts = accounts
        self.number = 0
        self.version_by_account: dict[str, str] = {}
        self.held: dict[str, list[bytes]] = {}
        self.lease_by_account: dict[str, Lease] = {}
        self.sent: dict[str, list[int]] = {account: [] for account in accounts}
        self.leased = 0

    async def act(self) -> None:
        likely = [self.commit] * 2 + [self.claim] * 2 + [self.deliver] * 8 + [self.end]
        await self.chance.choice(likely)()

    async def commit(self) -> None:
        account = self.chance.choice(self.accounts)
        expected, new = self.version_by_account.get(account, ""), f"v{self.number + 1}"
        numbers = [self.number + 1 + more for more in range(self.chance.choice([1, 1, 3]))]
        self.number = numbers[-1]
        deliveries = [a_delivery(number) for number in numbers]
        step = await a_leasing(self.store, *deliveries, account=account, expected=expected, version=new)
        reply, leased = await self.store.polls.commit(step)
        assert reply is Reply.DONE
        self.version_by_account[account] = new
        for in_hand in leased.values():
            self.leased += 1
            self.got(Lease(account, step.leased_until), [delivery.entry for delivery in in_hand])

    async def claim(self) -> None:
        found = await self.store.queues.claim(OPS, SHARD, lease_ms=CLAIM_MS, at_most=2)
        for lease in found.leases:
            until = lease.deadline + MINUTE_MS
            begun = await self.store.queues.begin(OPS, lease, until=until, at_most=2)
            if begun.deliveries:
                self.got(Lease(lease.member, until), [entry for entry, _ in begun.deliveries])

    def got(self, lease: Lease, entries: list[bytes]) -> None:
        assert lease.member not in self.held, "two workers have one queue"
        self.held[lease.member], self.lease_by_account[lease.member] = entries, lease

    async def deliver(self) -> None:
        """Settle the head of a queue in hand, or let it wait, or give the queue back."""
        if not self.held:
            return
        account = self.chance.choice([*self.held])
        entries, lease, queues = self.held[account], self.lease_by_account[account], self.store.queues
        how = self.chance.choice(["delivered"] * 5 + ["retry", "release"]) if entries else "release"
        if how == "delivered":
            self.sent[account].append(int(entries[0].split()[1]))
            reply, deadline = await queues.delivered(OPS, lease, entries.pop(0), until=lease.deadline + 1)
            if deadline:
                self.lease_by_account[account] = Lease(account, deadline)
                return
        elif how == "retry":
            reply = await queues.retry(OPS, lease, entries[0], wait_ms=0)
        else:
            reply = await queues.release(OPS, lease)
        assert reply is Reply.DONE
        del self.held[account]

    async def end(self) -> None:
        """Let the lease of a worker that died end."""
        if self.held:
            account = self.chance.choice([*self.held])
            await self.store.due(self.store.keys.queues(SHARD, OPS), **{account: -1})
            del self.held[account]


@pytest.mark.parametrize("seed", range(3))
async def test_one_worker_at_a_time_has_a_queue_and_its_order_is_kept(
    redis_client: Redis, namespace: str, seed: int
) -> None:
    worker = Worker(a_store(redis_client, namespace), Random(seed), NEIGHBOURS[:4])
    acts = 0
    while acts < 150 or worker.leased <= 5:  # how often one is leased depends on the server's clock, too
        await worker.act()
        acts += 1
        assert acts < 5000, "nothing is leased by commits any more"
    for sent in worker.sent.values():
        assert sent == sorted({*sent}), "each once, in the order of the commits"
