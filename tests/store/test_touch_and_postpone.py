"""Polls that commit nothing: a successful one that found nothing new, and a rejected one."""

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    OPS,
    PROVIDER,
    SHARD,
    Store,
    a_commit,
    a_delivery,
    a_store,
)
from watcher.store.errors import DamagedKey
from watcher.store.polls import LONGEST_BREAK_MS, Postponed
from watcher.store.reader import Reader
from watcher.store.schedule import Lease, Reply
from watcher.store.state import BadState

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

WAITS_MS = (1000, 2000, 4000)


async def touch(store: Store, lease: Lease, *, version: str = "v1") -> Reply:
    return await store.polls.touch(
        PROVIDER, lease, version=version, polled_at_ms=7777, due_ms=lease.deadline + MINUTE_MS
    )


async def postpone(
    store: Store, lease: Lease | None = None, *, why: str = "down it is", at_least_ms: int = 0
) -> Postponed | None:
    return await store.polls.postpone(
        PROVIDER, lease or await store.lease(), why=why, at_least_ms=at_least_ms, waits_ms=WAITS_MS
    )


async def failing(store: Store) -> bytes | None:
    answer: bytes | None = await store.pipe.command("HGET", store.keys.failing(SHARD, PROVIDER), ACCOUNT)
    return answer


async def a_baseline(store: Store) -> None:
    await store.polls.commit(a_commit(await store.lease(), ETH="10", deliveries={OPS: [a_delivery()]}))


async def test_a_successful_poll_without_news_moves_only_the_times(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await a_baseline(store)
    await postpone(store)
    assert await store.polls.is_failing(PROVIDER, ACCOUNT)
    lease = await store.lease()
    before = await store.contents()
    assert await touch(store, lease) is Reply.DONE
    keys, after = store.keys, await store.contents()
    state = await store.polls.read_state(PROVIDER, ACCOUNT)
    assert state
    assert state.polled_at_ms == 7777
    assert await store.scores(keys.polls(SHARD, PROVIDER)) == {ACCOUNT: lease.deadline + MINUTE_MS}
    assert not await store.polls.is_failing(PROVIDER, ACCOUNT)
    moved = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert moved == {keys.state(ACCOUNT), keys.polls(SHARD, PROVIDER), keys.failing(SHARD, PROVIDER)}
    was, now = before[keys.state(ACCOUNT)], after[keys.state(ACCOUNT)]
    assert (now[:17], now[17:31], now[31:]) == (was[:17], b"00000000007777", was[31:])


@pytest.mark.parametrize("has_state", [True, False])
async def test_a_poll_that_compared_with_another_state_is_refused(
    redis_client: Redis, namespace: str, has_state: bool
) -> None:
    store = a_store(redis_client, namespace)
    if has_state:
        await a_baseline(store)
    lease = await store.lease()
    before = await store.contents()
    for version in ("v0", ""):
        assert await touch(store, lease, version=version) is Reply.MOVED_ON
    assert await store.contents() == before


async def test_a_successful_poll_without_the_lease_is_refused(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await a_baseline(store)
    held = await store.lease()
    before = await store.contents()
    assert await touch(store, Lease(ACCOUNT, held.deadline - 1)) is Reply.LEASE_LOST
    assert await store.contents() == before


@pytest.mark.parametrize("damaged", ["state", "failing", "polls", "due"])
async def test_a_damaged_key_refuses_a_poll_without_news_untouched(
    redis_client: Redis, namespace: str, damaged: str
) -> None:
    store = a_store(redis_client, namespace)
    await a_baseline(store)
    lease = await store.lease()
    keys = store.keys
    key = {
        "state": keys.state(ACCOUNT),
        "failing": keys.failing(SHARD, PROVIDER),
        "polls": keys.polls(SHARD, PROVIDER),
        "due": keys.due_polls(SHARD),
    }[damaged]
    await store.pipe.command("DEL", key)
    await store.pipe.command("XADD", key, "*", "is", "damaged")
    before = await store.contents()
    with pytest.raises(BadState, match="of another type"):
        await touch(store, lease)
    assert await store.contents() == before


async def test_waits_grow_and_level_off_while_polls_are_rejected(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    began = await store.now_ms()
    rows = [await postpone(store) for _ in range(5)]
    assert all(rows)
    assert [row.wait_ms for row in rows if row] == [1000, 2000, 4000, 4000, 4000]
    assert [row.rejections for row in rows if row] == [1, 2, 3, 4, 5]
    since = {row.since_ms for row in rows if row}
    assert len(since) == 1
    assert began - 1 <= since.pop() <= await store.now_ms() + 1


async def test_the_next_poll_waits_as_long_as_given(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    before = await store.now_ms()
    await postpone(store)
    due = (await store.scores(store.keys.polls(SHARD, PROVIDER)))[ACCOUNT]
    assert before + 1000 - 1 <= due <= await store.now_ms() + 1000 + 1


async def test_a_provider_that_asks_for_a_longer_wait_gets_it(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    rows = [await postpone(store, at_least_ms=ms) for ms in (1500, 1500, 9000)]
    assert [row.wait_ms for row in rows if row] == [1500, 2000, 9000]


async def test_the_reason_of_a_rejection_is_stored_unchanged(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    why = "status 503 %s %d: «zu»  2 spaces"
    row = await postpone(store, why=why)
    assert row
    assert await failing(store) == f"1 {row.since_ms} {why}".encode()


@pytest.mark.parametrize("ended_by", ["touch", "commit"])
async def test_after_a_successful_poll_rejections_are_counted_anew(
    redis_client: Redis, namespace: str, ended_by: str
) -> None:
    store = a_store(redis_client, namespace)
    await a_baseline(store)
    for _ in range(3):
        await postpone(store)
    if ended_by == "touch":
        assert await touch(store, await store.lease()) is Reply.DONE
    else:
        step = a_commit(await store.lease(), expected="v1", version="v2")
        assert (await store.polls.commit(step)).reply is Reply.DONE
    row = await postpone(store)
    assert row
    assert (row.rejections, row.wait_ms) == (1, 1000)


async def test_a_rejected_poll_leaves_the_state_as_it_was(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await a_baseline(store)
    key = store.keys.state(ACCOUNT)
    before = (await store.contents())[key]
    await postpone(store)
    assert (await store.contents())[key] == before


async def test_a_rejection_without_the_lease_is_not_recorded(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    held = await store.lease()
    before = await store.contents()
    assert await postpone(store, Lease(ACCOUNT, held.deadline - 1)) is None
    assert await store.contents() == before


async def test_a_repeated_rejection_counts_once(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    lease = await store.lease()
    assert await postpone(store, lease)
    before = await store.contents()
    assert await postpone(store, lease) is None
    assert await store.contents() == before


async def test_with_a_damaged_index_a_lease_is_given_back_completely_or_not_at_all(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    lease = await store.lease()
    await store.pipe.command("SET", store.keys.due_polls(SHARD), "damaged")
    before = await store.contents()
    with pytest.raises(DamagedKey):
        await postpone(store, lease)
    with pytest.raises(DamagedKey):
        await store.polls.release(PROVIDER, lease)
    assert await store.contents() == before


async def test_a_damaged_row_of_rejections_starts_anew(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("HSET", store.keys.failing(SHARD, PROVIDER), ACCOUNT, "a lot")
    row = await postpone(store)
    assert row
    assert row.rejections == 1


async def test_looks_without_a_gap_count_from_the_first_one(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    reader, key, polls = Reader(store.pipe, store.keys), store.keys.watch(), store.polls
    assert await reader.watched_since_ms() == 0
    now_ms = await store.now_ms()
    await polls.note_watch()
    first = polls.watched_since_ms
    assert now_ms <= first == await reader.watched_since_ms()
    for seen_ms, expected in (
        (now_ms - LONGEST_BREAK_MS + 1_000, 1_000),  # no break
        (now_ms - LONGEST_BREAK_MS - 1, None),  # workers or their store were away
        (now_ms + 60_000, None),  # the clock was set back
    ):
        await store.pipe.command("SET", key, f"1000 {seen_ms}")
        await polls.note_watch()
        assert polls.watched_since_ms == (expected or max(first, polls.watched_since_ms))
        assert await reader.watched_since_ms() == polls.watched_since_ms


@pytest.mark.parametrize("damage", [("SET", "x"), ("RPUSH", "x"), ("SET", "99999999999999999 1")])
async def test_a_damaged_record_of_looks_is_replaced(
    redis_client: Redis, namespace: str, damage: tuple[str, str]
) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command(damage[0], store.keys.watch(), damage[1])
    assert await Reader(store.pipe, store.keys).watched_since_ms() == 0
    before_ms = await store.now_ms()
    await store.polls.note_watch()
    assert store.polls.watched_since_ms >= before_ms


async def test_the_times_of_last_polls_are_read_from_their_states(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.polls.commit(a_commit(await store.lease()))
    await touch(store, await store.lease())
    await store.pipe.command("RPUSH", store.keys.state("damaged"), "x")
    found = await store.polls.polled_at_ms([ACCOUNT, "damaged", "unread"])
    assert found == {ACCOUNT: 7777, "damaged": 0, "unread": 0}
