"""Workers are listed: each registers itself regularly, and is removed some time after it stops."""

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import Store, a_store
from watcher.store.members import FORGET_AFTER, Presence, Workers

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

FORGET_MS = int(1000 * FORGET_AFTER.total_seconds())


def a_presence(worker: str = "web-1-7", **fields: object) -> Presence:
    said: dict[str, object] = {"host": "web-1", "pid": 7, "version": "0.1.0", "since_ms": 5, **fields}
    rates = said.pop("requests_per_second", {"loopring": 3.5})
    return Presence(worker, requests_per_second=rates, **said)  # type: ignore[arg-type]


def of(store: Store) -> Workers:
    return Workers(store.pipe, store.keys)


async def test_a_worker_is_listed_with_its_own_data_and_the_servers_time(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    now_ms = await store.now_ms()
    await of(store).note(a_presence())
    (seen,) = await of(store).read()
    assert seen == a_presence()._replace(seen_ms=seen.seen_ms)
    assert 0 <= seen.seen_ms - now_ms < 5000


async def test_a_worker_of_0_1_counts_as_working_in_layout_1(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    said = b'{"host":"h","pid":7,"version":"0.1.0","since_ms":5,"requests_per_second":{},"roster":"r"}'
    await store.pipe.command("HSET", store.keys.workers(), "old", b"%d " % await store.now_ms() + said)
    (seen,) = await of(store).read()
    assert (seen.layouts, seen.stands_by) == ((1,), False)


async def test_a_worker_that_registers_again_is_one_worker(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    for rate in (1.0, 2.0):
        await of(store).note(a_presence(requests_per_second={"shop": rate}))
    (seen,) = await of(store).read()
    assert seen.requests_per_second == {"shop": 2.0}


async def test_a_worker_that_leaves_is_removed_and_others_are_not(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    for worker in ("first", "second"):
        await of(store).note(a_presence(worker))
    await of(store).leave("first")
    assert [seen.worker for seen in await of(store).read()] == ["second"]
    await of(store).leave("second")
    assert await store.contents() == {}


async def test_a_worker_not_seen_for_an_hour_is_removed_by_the_next_one(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    now_ms = await store.now_ms()
    for worker, ago_ms in (("gone", FORGET_MS + 1000), ("late", FORGET_MS - 60_000)):
        await redis_client.hset(store.keys.workers(), worker, f"{now_ms - ago_ms} {{}}")
    await redis_client.hset(store.keys.workers(), "odd", "x")
    await of(store).note(a_presence())
    assert {*await redis_client.hkeys(store.keys.workers())} == {b"late", b"web-1-7"}


@pytest.mark.parametrize(
    "said", ["", "5", "5 {", "x {}", "5 []", "5 {}", '5 {"host":1,"pid":"x","version":"","since_ms":0}']
)
async def test_an_unreadable_entry_is_left_out(redis_client: Redis, namespace: str, said: str) -> None:
    store = a_store(redis_client, namespace)
    await redis_client.hset(store.keys.workers(), "odd", said)
    assert await of(store).read() == []


async def test_a_key_of_another_type_is_replaced(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await redis_client.set(store.keys.workers(), "damaged")
    await of(store).note(a_presence())
    assert [seen.worker for seen in await of(store).read()] == ["web-1-7"]
