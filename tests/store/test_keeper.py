"""No more than `max_backlog` deliveries wait: the longest queues give up their oldest first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from tests.support.audited import flaws
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
from watcher.store import keeper
from watcher.store.keeper import Keeper, Overflow, shared_out
from watcher.store.keys import shard_of
from watcher.store.queues import Bounds
from watcher.store.reader import Reader
from watcher.store.schedule import Reply

every_engine = pytest.mark.parametrize("engine", EVERY_ENGINE)
OTHER, THIRD = NEIGHBOURS[:2]


def a_keeper(store: Store, worker: str = "w", bounds: Bounds | None = None) -> Keeper:
    return Keeper(store.pipe, store.keys, worker, bounds or Bounds())


async def waiting(store: Store, *accounts: str) -> list[list[int]]:
    """The sequences that wait of each account."""
    return [[int(entry.split()[1]) for entry in await store.queue(account)] for account in accounts]


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(0, 300))
def test_the_memory_is_shared_so_that_only_the_largest_give_up(lengths: list[int], most: int) -> None:
    stays = shared_out(lengths, most)
    assert sum(stays) == min(sum(lengths), most)
    assert all(0 <= stay <= length for stay, length in zip(stays, lengths, strict=True))
    cut = [stay for stay, length in zip(stays, lengths, strict=True) if stay < length]
    assert not cut or max(stays) <= min(cut) + 1, "none gave up any while another kept a longer queue"


@every_engine
async def test_the_longest_queues_give_up_their_oldest_down_to_max_backlog(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(*some_deliveries(1, 2, 3, 4, 5))
    await store.fill(*some_deliveries(1, 2), account=OTHER)
    await store.fill(*some_deliveries(1, 2, 3, 4), account=THIRD)
    await store.fill(a_delivery(1), subscription="audit")
    look = a_keeper(store).look
    assert (await look({OPS: 11, "audit": 1})).overflows == []
    assert (await look({OPS: 7, "audit": 1})).overflows == [Overflow(OPS, 4, 7)]
    assert await waiting(store, ACCOUNT, OTHER, THIRD) in (
        [[3, 4, 5], [1, 2], [3, 4]],
        [[4, 5], [1, 2], [2, 3, 4]],
    )
    assert (await Reader(store.pipe, store.keys).waiting([OPS]))[OPS].deliveries == 7
    dead = await store.stream(store.keys.dead(SHARD, OPS))
    assert {entry["reason"] for entry in dead} == {b"backlog full"}
    assert len(dead) == 4
    assert await flaws(store.pipe, store.keys) == []


@every_engine
async def test_a_single_delivery_is_measured_and_given_up_like_any_other(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    for account in (ACCOUNT, OTHER, THIRD):
        await store.fill(a_delivery(1), account=account)
    assert (await a_keeper(store).look({OPS: 2})).overflows == [Overflow(OPS, 1, 2)]
    assert sorted(await waiting(store, ACCOUNT, OTHER, THIRD)) == [[], [1], [1]]
    assert len(await store.stream(store.keys.dead(SHARD, OPS))) == 1
    assert await flaws(store.pipe, store.keys) == []


async def test_one_worker_at_a_time_is_the_keeper(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    first, second = a_keeper(store, "first"), a_keeper(store, "second")
    assert (await first.look({OPS: 1})).overflows == []
    await store.fill(*some_deliveries(1, 2))
    assert not (await second.look({OPS: 1})).overflows
    await redis_client.delete(store.keys.keeper())
    assert (await second.look({OPS: 1})).overflows == [Overflow(OPS, 1, 1)]


async def test_the_backlog_of_a_subscription_that_only_others_know_is_kept(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(*some_deliveries(1, 2, 3))
    assert (await a_keeper(store).look({"another": 1})).overflows == []
    assert await waiting(store, ACCOUNT) == [[1, 2, 3]]


@every_engine
async def test_an_emptied_queue_leaves_the_schedule_unless_a_worker_has_it(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(*some_deliveries(1, 2))
    await store.fill(*some_deliveries(1, 2), account=OTHER)
    lease, _ = await store.begin(await store.lease_queue())
    assert await a_keeper(store).give_up(OPS, [SHARD], 0) == 3
    assert await waiting(store, ACCOUNT, OTHER) == [[2], []]
    assert {*await store.scores(store.keys.queues(SHARD, OPS))} == {ACCOUNT}
    until = store.queues.until(lease, MINUTE_MS)
    assert (await store.queues.delivered(OPS, lease, a_delivery(2).entry, until=until))[0] is Reply.DONE
    assert await flaws(store.pipe, store.keys) == []


async def test_a_large_backlog_is_given_up_over_several_calls(
    redis_client: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_AT_ONCE", 3)
    store = a_store(redis_client, namespace)
    for account in (ACCOUNT, OTHER, THIRD, *NEIGHBOURS[2:6]):
        await store.fill(*some_deliveries(*range(1, 8)), account=account)
    assert (await a_keeper(store).look({OPS: 15})).overflows == [Overflow(OPS, 34, 15)]
    assert sum(map(len, await waiting(store, ACCOUNT, OTHER, THIRD, *NEIGHBOURS[2:6]))) == 15
    assert await flaws(store.pipe, store.keys) == []


@every_engine
async def test_nothing_is_left_of_a_subscription_that_was_deleted(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace, bounds=Bounds(log=1))
    await store.fill(*some_deliveries(*range(1, 500)))
    await store.fill(*some_deliveries(1, 2), account=OTHER)
    await store.fill(a_delivery(1), subscription="audit")
    await a_keeper(store).look({OPS: 300})  # what is beyond it becomes dead letters
    assert await store.stream(store.keys.dead(SHARD, OPS))
    await a_keeper(store).discard(OPS)
    assert await store.stream(store.keys.dead(SHARD, OPS)) == []
    assert await waiting(store, ACCOUNT, OTHER) == [[], []]
    assert await Reader(store.pipe, store.keys).owed_subscriptions() == ["audit"]
    assert {*await store.bodies()} == {b"evt_1 1"}
    assert await flaws(store.pipe, store.keys) == []


@every_engine
async def test_without_memory_dead_letters_keep_only_their_names(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace, bounds=Bounds(log=1))
    await store.fill(*some_deliveries(1, 2, 3))
    assert await a_keeper(store).give_up(OPS, [SHARD], 1, "memory full") == 2
    assert await store.stream(store.keys.dead(SHARD, OPS)) == []
    assert await store.stream(store.keys.given_up(SHARD)) == [
        {
            "subscription": OPS.encode(),
            "account": ACCOUNT.encode(),
            "reason": b"memory full",
            "delivery": each.entry,
        }
        for each in some_deliveries(1, 2)
    ]
    assert {*await store.bodies()} == {b"evt_3 3"}


async def test_trimmed_dead_letters_keep_their_names(
    redis_client: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "DEAD_PER_SUBSCRIPTION", 10)
    store = a_store(redis_client, namespace, bounds=Bounds(log=1))
    await store.fill(*some_deliveries(*range(1, 201)))
    assert (await a_keeper(store).look({OPS: 1})).overflows == [Overflow(OPS, 199, 1)]
    dead = [entry["delivery"] for entry in await store.stream(store.keys.dead(SHARD, OPS))]
    assert dead == [each.entry for each in some_deliveries(*range(189, 200))][-10:]
    given_up = await store.stream(store.keys.given_up(SHARD))
    assert given_up[-1]["delivery"] == b"evt_189 189 188"
    assert {*await store.bodies()} == {b"evt_%d %d" % (number, number) for number in range(190, 201)}


async def test_dead_letters_of_all_subscriptions_share_their_bytes(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    content = b'{"id":"' + b"x" * 700
    for name in "abc":
        await store.fill(*(a_delivery(number, content) for number in range(1, 41)), subscription=name)
    assert (
        len((await a_keeper(store, bounds=Bounds(dead=20_000)).look(dict.fromkeys("abc", 1))).overflows) == 3
    )
    lengths = [len(await store.stream(store.keys.dead(SHARD, name))) for name in "abc"]
    assert max(lengths) < 25
    assert min(lengths) == 8, "the newest of each stay, whatever the others take"


@pytest.mark.parametrize("noted", [None, "0", "x", "-3"])
async def test_an_impossible_backlog_count_is_corrected(
    redis_client: Redis, namespace: str, noted: str | None
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(*some_deliveries(1, 2, 3))
    key = store.keys.backlogs(SHARD)
    await (redis_client.delete(key) if noted is None else redis_client.hset(key, OPS, noted))
    await redis_client.hset(key, "gone", "7")
    await a_keeper(store).look({})
    assert await redis_client.hgetall(key) == {OPS.encode(): b"3"}


@pytest.mark.parametrize("key", ["dead", "bodies", "sizes", "given up", "backlogs", "tries"])
async def test_a_damaged_key_fails_before_anything_is_given_up(
    redis_client: Redis, namespace: str, key: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(*some_deliveries(1, 2, 3))
    await store.fill(*some_deliveries(1, 2, 3), account=OTHER)
    keys = store.keys
    damaged = {
        "dead": keys.dead(SHARD, OPS),
        "bodies": keys.bodies(SHARD),
        "sizes": keys.sizes(SHARD),
        "given up": keys.given_up(SHARD),
        "backlogs": keys.backlogs(SHARD),
        "tries": keys.tries(SHARD, OPS),
    }[key]
    await redis_client.set(damaged, "another program's")
    before = await store.contents()
    with pytest.raises(Exception, match="type"):
        await a_keeper(store).give_up(OPS, [SHARD], 1)
    assert await store.contents() == before


async def test_a_damaged_queue_keeps_no_other_from_giving_up(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    for account in (ACCOUNT, OTHER, THIRD):
        await store.fill(*some_deliveries(1, 2, 3), account=account)
    await store.damage(store.keys.queue(OPS, OTHER))
    await a_keeper(store).look({OPS: 4})
    assert await waiting(store, ACCOUNT, THIRD) == [[2, 3], [2, 3]]


@pytest.mark.parametrize("what", ["dead letters", "backlogs of a shard"])
async def test_damage_of_one_subscription_keeps_no_other_from_giving_up(
    redis_client: Redis, namespace: str, what: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(*some_deliveries(1, 2, 3))
    elsewhere = next(name for name in map("account-{}".format, range(99)) if shard_of(name) != SHARD)
    for account in (ACCOUNT, elsewhere):
        await store.fill(*some_deliveries(1, 2, 3), account=account, subscription="audit")
    damaged = {
        "dead letters": store.keys.dead(SHARD, OPS),
        "backlogs of a shard": store.keys.backlogs(SHARD),
    }[what]
    await redis_client.delete(damaged)
    await redis_client.set(damaged, "another program's")
    kept = await a_keeper(store).look({OPS: 1, "audit": 1})
    assert [one.subscription for one in kept.overflows] == ["audit"]
