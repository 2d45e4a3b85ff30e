"""Steps that share a call of a script: each is answered by itself, and none affects another."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.support.audited import flaws
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
from watcher.store.errors import DamagedKey
from watcher.store.keys import SHARDS, shard_of
from watcher.store.pipe import Packet, Pipe
from watcher.store.polls import Committed
from watcher.store.schedule import Claimed, Lease, Reply
from watcher.store.state import BadState

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

MANY = NEIGHBOURS[:80]
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


EVERYWHERE = tuple(
    name
    for shard in range(SHARDS)
    for name in [name for name in map("account-{}".format, range(200)) if shard_of(name) == shard][:2]
)
"""Two accounts of each shard."""


@asynccontextmanager
async def sending(pipe: Pipe) -> AsyncIterator[list[Packet]]:
    """What is sent over a pipe inside the block."""
    sent: list[Packet] = []
    answers = pipe._answers

    async def noted(packets: list[Packet]) -> list[object]:
        sent.extend(packets)
        return await answers(packets)

    pipe._answers = noted  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        pipe._answers = answers  # type: ignore[method-assign]


async def deliver(store: Store, lease: Lease, delivery: Delivery) -> tuple[Reply, int]:
    until = store.queues.until(lease, MINUTE_MS)
    return await store.queues.delivered(OPS, lease, delivery.entry, until=until)


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


async def test_steps_made_together_are_sent_in_few_calls(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await deliveries_of(store, *MANY)
    leases = [await store.lease(account) for account in MANY]
    async with running(store.pipe), sending(store.pipe) as sent:
        assert set(await asyncio.gather(*(touch(store, lease) for lease in leases))) == {Reply.DONE}
        assert len(sent) == 1
        sent.clear()
        steps = [a_commit(lease, expected="v1", version="v2") for lease in leases]
        await asyncio.gather(*map(store.polls.commit, steps))
    assert len(sent) == 2, "longer work blocks the server for 64 at a time at most"


async def test_steps_of_all_shards_made_together_are_one_call(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    for account in EVERYWHERE:
        await store.due(store.keys.polls(shard_of(account), PROVIDER), **{account: -1})
    async with running(store.pipe), sending(store.pipe) as sent:
        claims = await asyncio.gather(
            *(store.polls.claim(PROVIDER, shard, lease_ms=MINUTE_MS, at_most=2) for shard in range(SHARDS))
        )
        leases = {lease.member: lease for claim in claims for lease in claim.leases}
        assert leases.keys() == {*EVERYWHERE}
        queued = {name: a_delivery(number, previous=None) for number, name in enumerate(EVERYWHERE, 1)}
        steps = [a_commit(leases[name], deliveries={OPS: [one]}) for name, one in queued.items()]
        commits = await asyncio.gather(*map(store.polls.commit, steps))
        assert {commit.reply for commit in commits} == {Reply.DONE}
        claims = await asyncio.gather(
            *(store.queues.claim(OPS, shard, lease_ms=MINUTE_MS, at_most=2) for shard in range(SHARDS))
        )
        claimed = {lease.member: lease for claim in claims for lease in claim.leases}
        begun = dict(zip(claimed, await asyncio.gather(*map(store.begin, claimed.values())), strict=True))
        for name, (_, found) in begun.items():
            assert [entry for entry, _ in found.deliveries] == [queued[name].entry]
        extends, settles = [], []
        for name, (lease, _) in begun.items():
            until = store.queues.until(lease, 2 * MINUTE_MS)
            longer, after = lease._replace(deadline=until), until + MINUTE_MS
            extends.append(store.queues.extend(OPS, lease, until=until))
            settles.append(store.queues.delivered(OPS, longer, queued[name].entry, until=after))
        assert {*await asyncio.gather(*extends)} == {Reply.DONE}
        assert {*await asyncio.gather(*settles)} == {(Reply.DONE, 0)}
        later = [await store.lease(name) for name in EVERYWHERE]
        sent.pop()
        assert {*await asyncio.gather(*(touch(store, lease) for lease in later))} == {Reply.DONE}
    scripts = [packet.first.joint and packet.first.joint.script.name for packet in sent]
    assert [name for name in scripts if name] == [
        *("claim", "commit", "claim", "begin_queue", "extend", "settle", "touch")
    ]
    assert await flaws(store.pipe, store.keys) == []


async def test_a_damaged_key_fails_its_own_step_and_only_its_shard_is_repeated(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    queued = await deliveries_of(store, *EVERYWHERE)
    damaged = EVERYWHERE[0]
    for key in (store.keys.state(damaged), store.keys.queue(OPS, damaged)):
        await store.pipe.command("DEL", key)
        await store.pipe.command("XADD", key, "*", "is", "damaged")

    async def is_done_but_for_the_damaged(work: Sequence[Callable[[], Awaitable[Any]]], done: object) -> bool:
        async with running(store.pipe), sending(store.pipe) as sent:
            first, *others = await asyncio.gather(*(step() for step in work), return_exceptions=True)
        assert isinstance(first, BadState | DamagedKey)
        assert [packet.steps for packet in sent] == [len(EVERYWHERE), 1, 1], "all, then its shard's two"
        return others == [done] * (len(EVERYWHERE) - 1)

    leases = [await store.lease(account) for account in EVERYWHERE]
    assert await is_done_but_for_the_damaged([partial(touch, store, lease) for lease in leases], Reply.DONE)
    leases = [await store.lease(account) for account in EVERYWHERE]
    steps = [a_commit(lease, expected="v1", version="v2", notes=[b"moved"]) for lease in leases]
    commits = [partial(store.polls.commit, step) for step in steps]
    assert await is_done_but_for_the_damaged(commits, Committed(Reply.DONE, {}))
    leases = [await store.lease_queue(account) for account in EVERYWHERE]
    deliveries = [partial(deliver, store, lease, queued[lease.member]) for lease in leases]
    assert await is_done_but_for_the_damaged(deliveries, (Reply.DONE, 0))
    logged = [len(await store.stream(store.keys.log(shard))) for shard in range(SHARDS)]
    assert sum(logged) == 2 * len(EVERYWHERE) - 1, "a record of each, after its event, and none twice"
    assert [name for name in EVERYWHERE[1:] if await store.queue(name)] == []


async def test_after_a_refused_call_over_all_shards_no_other_is_made(
    redis_client: Redis, namespace: str
) -> None:
    """As by a Cluster, or a proxy before one, that the URL names as a single server."""
    store = a_store(redis_client, namespace)
    await deliveries_of(store, *EVERYWHERE)
    answers = store.pipe._answers

    async def of_a_cluster(packets: list[Packet]) -> list[object]:
        refused = ResponseError("CROSSSLOT Keys in request don't hash to the same slot")
        taken = [packet for packet in packets if len(packet.groups) < 2]
        answer_by_packet = dict(zip(taken, await answers(taken) if taken else (), strict=True))
        return [answer_by_packet.get(packet, refused) for packet in packets]

    store.pipe._answers = of_a_cluster  # type: ignore[method-assign]
    async with running(store.pipe), sending(store.pipe) as sent:
        for sizes in ([len(EVERYWHERE), *[2] * SHARDS], [2] * SHARDS):
            leases = [await store.lease(account) for account in EVERYWHERE]
            sent.clear()
            assert {*await asyncio.gather(*(touch(store, lease) for lease in leases))} == {Reply.DONE}
            assert [packet.steps for packet in sent] == sizes


async def test_a_damaged_schedule_fails_only_the_claims_of_its_shard(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    for account in EVERYWHERE:
        await store.due(store.keys.polls(shard_of(account), PROVIDER), **{account: -1})
    damaged, unindexed = 3, 9
    for key in (store.keys.polls(damaged, PROVIDER), store.keys.due_polls(unindexed)):
        await store.pipe.command("SET", key, "damaged")
    async with running(store.pipe):
        claims = await asyncio.gather(
            *(store.polls.claim(PROVIDER, shard, lease_ms=MINUTE_MS, at_most=2) for shard in range(SHARDS)),
            return_exceptions=True,
        )
    for shard, claimed in enumerate(claims):
        if shard in (damaged, unindexed):
            assert isinstance(claimed, DamagedKey)
        else:
            assert isinstance(claimed, Claimed)
            assert len(claimed.leases) == 2
    scores = await store.scores(store.keys.polls(unindexed, PROVIDER))
    assert max(scores.values()) < await store.now_ms(), "nothing was leased by a claim that failed"


async def test_a_step_with_more_values_than_lua_unpacks_shares_a_call(
    redis_client: Redis, namespace: str
) -> None:
    """A commit to 2,000 queues has more than 8,000 arguments."""
    store = a_store(redis_client, namespace)
    wide, other = EVERYWHERE[0], EVERYWHERE[-1]
    deliveries = {f"sub-{number}": [a_delivery(1)] for number in range(2000)}
    steps = [
        a_commit(await store.lease(wide), deliveries=deliveries),
        a_commit(await store.lease(other), deliveries={OPS: [a_delivery(2, previous=None)]}),
    ]
    async with running(store.pipe):
        commits = await asyncio.gather(*map(store.polls.commit, steps))
    assert [commit.reply for commit in commits] == [Reply.DONE, Reply.DONE]
    assert await store.queue(wide, "sub-1999") == [a_delivery(1).entry]


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
        account: [one._replace(content=b"{%d" % one.sequence) for one in some_deliveries(*numbers)]
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


async def test_two_steps_on_the_same_key_are_done_in_order(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    step = a_commit(await store.lease(MANY[0]), deliveries={OPS: [a_delivery()]})
    async with running(store.pipe):
        replies = await asyncio.gather(*(store.polls.commit(step) for _ in range(3)))
    assert sorted(one.reply for one in replies) == [Reply.DONE_BEFORE, Reply.DONE_BEFORE, Reply.DONE]
    assert await store.queue(MANY[0]) == [a_delivery().entry]
