"""What `previous_sequence` of a delivery says: it distinguishes a gap from a filter."""

import asyncio

import pytest
from redis.asyncio import Redis

from tests.support.builders import a_snapshot, a_subscription
from tests.support.servers import EVERY_ENGINE
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    NEIGHBOURS,
    OPS,
    PROVIDER,
    Store,
    a_commit,
    a_delivery,
    a_store,
    running,
)
from tests.support.stories import Books
from watcher.store.polls import Committed
from watcher.store.schedule import Reply
from watcher.store.state import BadState

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)


async def previous_sequences(store: Store, subscription: str = OPS) -> list[tuple[int, str]]:
    """The sequence of each delivery that waits, and what it says of the one before it."""
    entries = [entry.decode().split(" ") for entry in await store.queue(subscription=subscription)]
    return [(int(sequence), previous) for _, sequence, previous in entries]


async def test_each_subscription_has_a_chain_of_its_own_over_all_commits(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    polls = [
        a_snapshot(ETH="1", LRC="1"),
        a_snapshot(ETH="2", LRC="2"),
        a_snapshot(ETH="3", LRC="2"),
        a_snapshot(ETH="3", LRC="3"),
    ]
    filters = (
        a_subscription("all"),
        a_subscription("lrc", assets=("LRC",)),
        a_subscription("none", accounts=("x",)),
    )
    made = await Books(store.pipe, namespace).live(polls, subscriptions=filters)
    eth, lrc, eth_again, lrc_again = (event.sequence for step in made[1:] for event in step.events)
    assert await previous_sequences(store, "all") == [
        (eth, "-"),
        (lrc, f"{eth}"),
        (eth_again, f"{lrc}"),
        (lrc_again, f"{eth_again}"),
    ]
    assert await previous_sequences(store, "lrc") == [(lrc, "-"), (lrc_again, f"{lrc}")]
    assert await previous_sequences(store, "none") == []
    contents = await store.contents()
    assert contents[store.keys.queued(ACCOUNT)] == {b"all": b"%d" % lrc_again, b"lrc": b"%d" % lrc_again}


async def test_the_chain_continues_after_the_queue_was_drained(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(a_delivery(1))
    lease = await store.lease_queue()
    (head,) = await store.queue()
    until = store.queues.until(lease, MINUTE_MS)
    assert await store.queues.delivered(OPS, lease, head, until=until) == (Reply.DONE, 0)
    await store.fill(a_delivery(2))
    assert await previous_sequences(store) == [(2, "1")]


async def test_deliveries_queued_outside_of_a_commit_do_not_change_the_chain(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(a_delivery(1))
    await store.queues.enqueue(OPS, ACCOUNT, [a_delivery(7, previous=3)])
    await store.fill(a_delivery(8))
    assert await previous_sequences(store) == [(1, "-"), (7, "3"), (8, "1")]


async def test_a_refused_commit_does_not_change_the_chain(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(a_delivery(1))
    late = a_commit(await store.lease(), expected="v7", version="v8", deliveries={OPS: [a_delivery(2)]})
    assert (await store.polls.commit(late)).reply is Reply.MOVED_ON
    await store.fill(a_delivery(3))
    assert await previous_sequences(store) == [(1, "-"), (3, "1")]


@pytest.mark.parametrize("damage", ["", "x", "-1", "1 2", "007", "9" * 15])
async def test_a_damaged_previous_sequence_quarantines_only_its_account(
    redis_client: Redis, namespace: str, damage: str
) -> None:
    store = a_store(redis_client, namespace)
    other = NEIGHBOURS[0]
    await store.fill(a_delivery(1))
    await store.pipe.command("HSET", store.keys.queued(ACCOUNT), OPS, damage)
    leases = {name: await store.lease(name) for name in (ACCOUNT, other)}
    state = await store.polls.read_state(PROVIDER, ACCOUNT)
    assert state
    step = a_commit(leases[ACCOUNT], expected=state.version, deliveries={OPS: [a_delivery(2)]})
    async with running(store.pipe):
        damaged, whole = await asyncio.gather(
            store.polls.commit(step),
            store.polls.commit(a_commit(leases[other], deliveries={OPS: [a_delivery(3)]})),
            return_exceptions=True,
        )
    assert isinstance(damaged, BadState)
    assert isinstance(whole, Committed)
    assert whole.reply is Reply.DONE
    assert await store.queue() == [a_delivery(1).entry]
    assert await store.queue(other) == [a_delivery(3, previous=None).entry]
