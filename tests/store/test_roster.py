"""The roster: an edited list of accounts becomes schedules, and removed accounts are forgotten."""

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    NEIGHBOURS,
    OPS,
    PROVIDER,
    SHARD,
    Store,
    a_commit,
    a_delivery,
    a_store,
)
from watcher.store import members
from watcher.store.exceptions import ConfigurationRefused, LayoutAwaited
from watcher.store.keys import SHARDS, shard_of
from watcher.store.layout import Layout
from watcher.store.members import Enrolled

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)


async def enroll(store: Store, now_ms: int | None = None, **accounts: list[str]) -> Enrolled:
    return await store.roster.enroll(accounts, now_ms=await store.now_ms() if now_ms is None else now_ms)


async def scheduled(store: Store, provider: str = PROVIDER) -> dict[str, float]:
    """All accounts of a provider, and when they are due."""
    shards = [await store.scores(store.keys.polls(shard, provider)) for shard in range(SHARDS)]
    for number, shard in enumerate(shards):
        assert {shard_of(account) for account in shard} <= {number}
    return {account: due for shard in shards for account, due in shard.items()}


async def test_new_accounts_are_due_at_once(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    names = [f"account-{n}" for n in range(40)]
    assert await enroll(store, 1000, loopring=names, shop=["alice"]) == Enrolled(41, 0)
    assert await scheduled(store) == dict.fromkeys(names, 1000)
    assert await scheduled(store, "shop") == {"alice": 1000}


async def test_the_same_list_again_changes_nothing(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await enroll(store, 1000, loopring=[ACCOUNT, "other"])
    await store.lease()
    before = await store.contents()
    assert await enroll(store, 2000, loopring=[ACCOUNT, "other"]) == Enrolled(0, 0)
    assert await store.contents() == before


async def test_a_removed_account_is_forgotten_ten_minutes_later_and_its_queues_stay(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    now_ms = await store.now_ms()
    await enroll(store, loopring=[ACCOUNT, NEIGHBOURS[0]])
    for account in (ACCOUNT, NEIGHBOURS[0]):
        await store.fill(a_delivery(), account=account)
        lease = await store.lease(account)
        await store.polls.postpone(PROVIDER, lease, why="down", at_least_ms=0, waits_ms=[5])
    assert await enroll(store, now_ms, loopring=[NEIGHBOURS[0]]) == Enrolled(0, 1, (ACCOUNT,))
    assert list(await scheduled(store)) == [NEIGHBOURS[0]]
    assert await store.roster.forget(now_ms + 10 * MINUTE_MS - 1) == 0
    assert await store.polls.read_state(PROVIDER, ACCOUNT)
    assert await store.roster.forget(now_ms + 10 * MINUTE_MS) == 1
    assert await store.roster.forget(now_ms + 20 * MINUTE_MS) == 0
    assert await store.polls.read_state(PROVIDER, ACCOUNT) is None
    assert store.keys.queued(ACCOUNT) not in await store.contents()
    assert await store.polls.read_state(PROVIDER, NEIGHBOURS[0])
    failing = (await store.contents())[store.keys.failing(SHARD, PROVIDER)]
    assert list(failing) == [NEIGHBOURS[0].encode()]
    assert await store.queue() == [a_delivery().entry]
    assert ACCOUNT in await store.scores(store.keys.queues(SHARD, OPS))


async def test_an_account_added_again_in_time_has_its_state_and_its_queues(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await enroll(store, loopring=[ACCOUNT])
    await store.fill(a_delivery())
    now_ms = await store.now_ms()
    await enroll(store, now_ms, loopring=[])
    assert await enroll(store, now_ms, loopring=[ACCOUNT]) == Enrolled(1, 0)
    assert await store.roster.forget(now_ms + 60 * MINUTE_MS) == 0
    assert await store.polls.read_state(PROVIDER, ACCOUNT)
    assert store.keys.queued(ACCOUNT) in await store.contents()


async def test_an_account_added_again_late_starts_with_a_new_baseline(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await enroll(store, loopring=[ACCOUNT])
    await store.fill(a_delivery())
    assert store.keys.queued(ACCOUNT) in await store.contents()
    await enroll(store, 0, loopring=[])
    await store.roster.forget(10 * MINUTE_MS)
    assert await enroll(store, loopring=[ACCOUNT]) == Enrolled(1, 0)
    assert await store.polls.read_state(PROVIDER, ACCOUNT) is None
    assert store.keys.queued(ACCOUNT) not in await store.contents(), "nothing came before it"


async def test_a_removed_provider_takes_its_accounts_with_it(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await enroll(store, loopring=[ACCOUNT], shop=["alice"])
    await store.fill(a_delivery())
    assert await enroll(store, 0, shop=["alice"]) == Enrolled(0, 1, (ACCOUNT,))
    assert await scheduled(store) == {}
    await store.roster.forget(10 * MINUTE_MS)
    assert await store.polls.read_state(PROVIDER, ACCOUNT) is None


async def test_an_account_that_moves_to_another_provider_keeps_its_state(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await enroll(store, loopring=[ACCOUNT], shop=[])
    await store.fill(a_delivery())
    assert await enroll(store, 0, loopring=[], shop=[ACCOUNT]) == Enrolled(1, 1)
    assert await store.roster.forget(10 * MINUTE_MS) == 0
    assert await scheduled(store) == {}
    assert list(await scheduled(store, "shop")) == [ACCOUNT]
    state = await store.polls.read_state(PROVIDER, ACCOUNT)
    assert state
    moved = a_commit(
        await store.lease(provider="shop"), provider="shop", expected=state.version, version="v2"
    )
    assert (await store.polls.commit(moved)).reply == 1


async def test_long_lists_are_enrolled_in_parts(
    redis_client: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_store(redis_client, namespace)
    monkeypatch.setattr(members, "_AT_ONCE", 3)
    names = [f"account-{n}" for n in range(100)]
    assert await enroll(store, 1000, loopring=names) == Enrolled(100, 0)
    assert await scheduled(store) == dict.fromkeys(names, 1000)
    await store.roster.make_due(PROVIDER, names[50:], now_ms=500)
    assert await scheduled(store) == {
        **dict.fromkeys(names[:50], 1000),
        **dict.fromkeys(names[50:], 500),
    }
    assert (await enroll(store, 0, loopring=names[:50])).removed == 50
    assert await store.roster.forget(10 * MINUTE_MS) == 50
    assert await scheduled(store) == dict.fromkeys(names[:50], 1000)


async def test_only_enrolled_accounts_can_be_made_due(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await enroll(store, loopring=[ACCOUNT])
    lease = await store.lease()
    await store.roster.make_due(PROVIDER, [ACCOUNT, "unknown"], now_ms=lease.deadline - MINUTE_MS)
    assert await scheduled(store) == {ACCOUNT: lease.deadline - MINUTE_MS}


@pytest.mark.parametrize(
    "layout",
    [
        {"schema": "3"},
        {"shards": "64"},
        {"shards": "64", "schema": "3"},
        {"moving": "3"},
        {"shards": ""},
        {"schema": ""},
        {"shards": "many"},
    ],
    ids=str,
)
async def test_a_layout_of_another_version_is_refused_unchanged(
    redis_client: Redis, namespace: str, layout: dict[str, str]
) -> None:
    store = a_store(redis_client, namespace)
    await enroll(store, loopring=[ACCOUNT])
    await store.pipe.command("HSET", store.keys.meta(), *(part for pair in layout.items() for part in pair))
    before = await store.contents()
    with pytest.raises(ConfigurationRefused, match=r"laid out by another version.*redis\.namespace"):
        await store.roster.check_layout()
    with pytest.raises(ConfigurationRefused, match="laid out by another version"):
        await enroll(store, loopring=[])
    assert await store.contents() == before


async def test_no_account_is_enrolled_while_another_layout_is_asked_for(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.roster.check_layout()
    await Layout(store.pipe, store.keys).want(1)
    before = await store.contents()
    with pytest.raises(LayoutAwaited, match="moved back to layout 1"):
        await enroll(store, loopring=[ACCOUNT])
    assert await store.contents() == before


@pytest.mark.parametrize("lacking", ["shards", "schema"])
async def test_an_incomplete_layout_is_refused(redis_client: Redis, namespace: str, lacking: str) -> None:
    store = a_store(redis_client, namespace)
    await store.roster.check_layout()
    await store.pipe.command("HDEL", store.keys.meta(), lacking)
    with pytest.raises(ConfigurationRefused, match="laid out by another version"):
        await store.roster.check_layout()


async def test_an_enrolment_counts_once_it_is_complete(redis_client: Redis, namespace: str) -> None:
    store, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    assert await store.roster.enrolled() is None
    await store.roster.check_layout()
    await enroll(store, loopring=[ACCOUNT])  # as of a worker that dies before it could note it
    assert await other.roster.enrolled() is None
    assert [await other.roster.note_enrolled("a"), await store.roster.note_enrolled("b")] == [True, False]
    assert await store.roster.enrolled() == "b"


async def test_an_enrolment_without_removals_only_adds(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await enroll(store, loopring=[ACCOUNT])
    await store.fill(a_delivery())
    added = await store.roster.enroll({PROVIDER: ["other"], "shop": ["alice"]}, now_ms=5, remove=False)
    assert added == Enrolled(2, 0)
    assert {*await scheduled(store)} == {ACCOUNT, "other"}
    assert await store.polls.read_state(PROVIDER, ACCOUNT)


async def test_our_own_layout_is_accepted(redis_client: Redis, namespace: str) -> None:
    store, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    await store.roster.check_layout()
    await enroll(store, loopring=[ACCOUNT])
    await other.roster.check_layout()
    assert await enroll(other, loopring=[ACCOUNT]) == Enrolled(0, 0)


@pytest.mark.parametrize("damage", [b"{", b'"loopring"', b"[[1], 7, null]", b"[" * 2000, b"\xff"])
async def test_a_damaged_list_of_providers_is_replaced(
    redis_client: Redis, namespace: str, damage: bytes
) -> None:
    store = a_store(redis_client, namespace)
    await enroll(store, loopring=[ACCOUNT])
    await store.pipe.command("HSET", store.keys.meta(), "providers", damage)
    await store.roster.check_layout()
    assert await enroll(store, loopring=[ACCOUNT, "other"]) == Enrolled(1, 0)
    assert await enroll(store, loopring=[]) == Enrolled(0, 2, ("other", ACCOUNT))


async def test_a_key_of_another_type_under_meta_is_named(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("SET", store.keys.meta(), "x")
    for ask in (store.roster.check_layout, store.roster.enrolled):
        with pytest.raises(ConfigurationRefused, match=f"{namespace}:meta"):
            await ask()


async def test_a_damaged_schedule_stays_as_it_is_and_the_others_are_filled(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    key = store.keys.polls(SHARD, PROVIDER)
    await store.pipe.command("SET", key, "x")
    other = next(name for name in map("other-{}".format, range(99)) if shard_of(name) != SHARD)
    assert await enroll(store, loopring=[ACCOUNT, other]) == Enrolled(1, 0)
    await store.pipe.command("DEL", key)
    assert await enroll(store, loopring=[ACCOUNT, other]) == Enrolled(1, 0)


async def test_a_name_that_is_no_text_is_removed_from_the_schedule(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await enroll(store, loopring=[ACCOUNT])
    await store.pipe.command("ZADD", store.keys.polls(SHARD, PROVIDER), 1, b"\xff")
    assert await enroll(store, loopring=[ACCOUNT]) == Enrolled(0, 1)
    assert list(await scheduled(store)) == [ACCOUNT]


async def test_a_leased_account_is_not_made_due(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    first, second, third = NEIGHBOURS[:3]
    polls = store.keys.polls(SHARD, PROVIDER)
    await store.due(polls, **{first: -1, second: 30_000, third: MINUTE_MS})
    (lease,) = (await store.polls.claim(PROVIDER, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases
    now_ms = await store.now_ms()
    assert await store.roster.make_due(PROVIDER, [first, second, third], now_ms=now_ms) == {first}
    assert await store.scores(polls) == {first: lease.deadline, second: now_ms, third: now_ms}


async def test_an_expired_lease_prevents_nothing(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    polls = store.keys.polls(SHARD, PROVIDER)
    await store.due(polls, **{ACCOUNT: -1})
    (lease,) = (await store.polls.claim(PROVIDER, SHARD, lease_ms=1, at_most=1)).leases
    now_ms = int(lease.deadline) + 1
    assert await store.roster.make_due(PROVIDER, [ACCOUNT], now_ms=now_ms) == set()
    assert await store.scores(polls) == {ACCOUNT: now_ms}


async def test_a_waiting_retry_is_made_due_and_a_lease_is_not(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    polls = store.keys.polls(SHARD, PROVIDER)
    await store.due(polls, **{ACCOUNT: -1})
    (lease,) = (await store.polls.claim(PROVIDER, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases
    assert await store.polls.make_due(PROVIDER, SHARD, lease_ms=MINUTE_MS) == 0
    assert await store.scores(polls) == {ACCOUNT: lease.deadline}
    await store.polls.postpone(PROVIDER, lease, why="rate", at_least_ms=0, waits_ms=[MINUTE_MS])
    now_ms = await store.now_ms()
    assert await store.roster.make_due(PROVIDER, [ACCOUNT], now_ms=now_ms) == set()
    assert await store.scores(polls) == {ACCOUNT: now_ms}
