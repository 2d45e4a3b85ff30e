"""Steps that share a call of a script: each is answered as if it were alone, none suffers from another."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import (
    MINUTE_MS,
    NEIGHBOURS,
    OPS,
    PROVIDER,
    SHARD,
    Store,
    a_commit,
    a_delivery,
    a_store,
    running,
    some_deliveries,
)
from watcher.journal.events import Delivery
from watcher.store.schedule import Lease, Reply
from watcher.store.state import BadState

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

MANY = NEIGHBOURS[:40]
"""More accounts of one shard than one call takes."""


async def deliveries_of(store: Store, *accounts: str) -> dict[str, Delivery]:
    """Commit a baseline with one delivery for each account, all at once."""
    steps = [
        a_commit(
            await store.lease(account), version="v1", deliveries={OPS: [a_delivery(number, previous=None)]}
        )
        for number, account in enumerate(accounts, 1)
    ]
    replies = await asyncio.gather(*map(store.polls.commit, steps))
    assert {one.reply for one in replies} == {Reply.DONE}
    return {account: a_delivery(number, previous=None) for number, account in enumerate(accounts, 1)}


async def touch(store: Store, lease: Lease, version: str = "v1") -> Reply:
    return await store.polls.touch(
        PROVIDER, lease, version=version, polled_at_ms=7777, due_ms=lease.deadline + MINUTE_MS
    )


async def test_each_account_gets_its_own_state_and_its_own_delivery(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    async with running(store.pipe):
        queued = await deliveries_of(store, *MANY)
        for account, delivery in queued.items():
            state = await store.polls.read_state(PROVIDER, account)
            assert state
            assert state.version == "v1"
            assert await store.queue(account) == [delivery.entry]


async def test_what_is_asked_together_goes_out_in_few_calls(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await deliveries_of(store, *MANY)
    leases = [await store.lease(account) for account in MANY]
    sent: list[object] = []
    answers = store.pipe._answers

    async def noted(packets: list[object]) -> list[object]:
        sent.extend(packets)
        return await answers(packets)  # type: ignore[arg-type]

    store.pipe._answers = noted  # type: ignore[method-assign, assignment]
    async with running(store.pipe):
        assert set(await asyncio.gather(*(touch(store, lease) for lease in leases))) == {Reply.DONE}
        assert len(sent) == 1
        sent.clear()
        steps = [a_commit(lease, expected="v1", version="v2") for lease in leases]
        await asyncio.gather(*map(store.polls.commit, steps))
    assert len(sent) == 3, "what takes longer holds the server up for 16 at a time at most"


async def test_each_step_has_its_own_answer(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await deliveries_of(store, *MANY[:3])
    good, moved, lost = [await store.lease(account) for account in MANY[:3]]
    async with running(store.pipe):
        replies = await asyncio.gather(
            touch(store, good), touch(store, moved, "v0"), touch(store, Lease(lost.member, lost.deadline - 1))
        )
        assert [*replies] == [Reply.DONE, Reply.MOVED_ON, Reply.LEASE_LOST]


async def test_a_damaged_key_fails_its_own_step_only(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    queued = await deliveries_of(store, *MANY[:3])
    damaged = MANY[1]
    leases = {account: await store.lease(account) for account in queued}
    queues = {account: await store.lease_queue(account) for account in queued}
    for key in (store.keys.state(damaged), store.keys.queue(OPS, damaged)):
        await store.pipe.command("DEL", key)
        await store.pipe.command("XADD", key, "*", "is", "damaged")
    async with running(store.pipe):
        touched = await asyncio.gather(
            *(touch(store, lease) for lease in leases.values()), return_exceptions=True
        )
        settled = await asyncio.gather(
            *(
                store.queues.delivered(
                    OPS, queue, queued[account].entry, until=store.queues.until(queue, MINUTE_MS)
                )
                for account, queue in queues.items()
            ),
            return_exceptions=True,
        )
    assert [touched[0], touched[2]] == [Reply.DONE, Reply.DONE]
    assert isinstance(touched[1], BadState)
    assert [settled[0], settled[2]] == [(Reply.DONE, 0), (Reply.DONE, 0)]
    assert isinstance(settled[1], Exception)
    assert await store.queue(MANY[0]) == await store.queue(MANY[2]) == []


async def test_each_queue_is_begun_with_its_own_deliveries_and_failures(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    waiting = {
        account: [replace(one, content=b"{%d" % one.sequence) for one in some_deliveries(*numbers)]
        for account, numbers in zip(MANY, ((1, 2, 3), (11, 12, 13)), strict=False)
    }
    for account, deliveries in waiting.items():
        await store.fill(*deliveries, account=account)
    failed = waiting[MANY[1]][0].entry
    await store.queues.retry(OPS, await store.lease_queue(MANY[1]), failed, wait_ms=5)
    await store.pipe.command("HDEL", store.keys.bodies(SHARD), "evt_2 2")
    leases = [await store.lease_queue(account) for account in waiting]
    for _ in range(2):  # the second time as where the answer was lost
        async with running(store.pipe):
            begun = await asyncio.gather(
                *(store.queues.begin(OPS, one, until=one.deadline + 9, at_most=10) for one in leases)
            )
        assert [(one.reply, one.tries, one.tried) for one in begun] == [
            (Reply.DONE, 0, b""),
            (Reply.DONE, 1, failed),
        ]
        for one, deliveries in zip(begun, waiting.values(), strict=True):
            assert one.deliveries == [
                (each.entry, each if each.sequence != 2 else None) for each in deliveries
            ]


async def test_two_steps_at_the_same_key_are_taken_one_after_the_other(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    step = a_commit(await store.lease(MANY[0]), deliveries={OPS: [a_delivery()]})
    async with running(store.pipe):
        replies = await asyncio.gather(*(store.polls.commit(step) for _ in range(3)))
    assert sorted(one.reply for one in replies) == [Reply.DONE_BEFORE, Reply.DONE_BEFORE, Reply.DONE]
    assert await store.queue(MANY[0]) == [a_delivery().entry]
