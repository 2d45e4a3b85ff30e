"""How subscriptions stand: failures in a row, how long they are left alone, when they are paused."""

from datetime import timedelta

import pytest
from redis.asyncio import Redis
from servers import ENGINES, EVERY_ENGINE
from stores import OPS, Store, a_store

from watcher.store import standings
from watcher.store.standings import Standing, Standings

everywhere = pytest.mark.parametrize("engine", EVERY_ENGINE)
on_real_servers = pytest.mark.parametrize("engine", ENGINES)


async def fail(
    store: Store, reason: str = "status 503", *, pause: bool = False, wish_ms: int = 0
) -> tuple[Standing, bool]:
    return await a_view(store).failed(OPS, reason, pause=pause, wish_ms=wish_ms, holds_ms=(0, 1000, 5000))


def a_view(store: Store) -> Standings:
    return Standings(store.pipe, store.keys)


async def noted(store: Store) -> bytes | None:
    answer: bytes | None = await store.pipe.command("HGET", store.keys.standings(), OPS)
    return answer


@everywhere
async def test_failures_in_a_row_are_counted_since_the_first(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    before = await store.now_ms()
    found = [(await fail(store))[0] for _ in range(4)]
    assert [standing.failures for standing in found] == [1, 2, 3, 4]
    assert len({standing.since_ms for standing in found}) == 1
    assert before - 1 <= found[0].since_ms <= await store.now_ms() + 1


@everywhere
async def test_a_failing_subscription_is_left_alone_longer_each_time(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    before = await store.now_ms()
    holds = [(await fail(store))[0].held_until_ms for _ in range(4)]
    took_ms = await store.now_ms() - before + 1
    assert holds[0] == 0
    for hold, wait_ms in zip(holds[1:], (1000, 5000, 5000), strict=True):
        assert before + wait_ms - 1 <= hold <= before + took_ms + wait_ms


@everywhere
async def test_a_longer_wish_of_the_subscriber_is_granted_and_never_shortened(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    before = await store.now_ms()
    held = (await fail(store, wish_ms=60_000))[0].held_until_ms
    assert held >= before + 60_000 - 1
    assert (await fail(store))[0].held_until_ms == held


@everywhere
async def test_a_delivery_ends_the_row(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    assert not await a_view(store).succeeded(OPS)
    await fail(store)
    assert await a_view(store).succeeded(OPS)
    assert await noted(store) is None
    assert (await fail(store))[0].failures == 1


@everywhere
async def test_a_subscription_that_asks_for_it_is_paused_once_and_stays_so(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    standing, is_new = await fail(store, "status 410", pause=True)
    assert is_new
    assert standing.paused_at_ms > 0
    later, is_new = await fail(store, "status 410", pause=True)
    assert not is_new
    assert later.paused_at_ms == standing.paused_at_ms
    assert not await a_view(store).succeeded(OPS), "a late success does not resume what was paused"
    assert await noted(store)


@everywhere
async def test_failing_everything_for_too_long_pauses(
    redis_client: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_store(redis_client, namespace)
    assert not (await fail(store))[1]
    since = await store.now_ms() - int(1000 * standings.PATIENCE.total_seconds())
    await store.pipe.command("HSET", store.keys.standings(), OPS, f"9 {since} 0 0 status 503")
    standing, is_new = await fail(store)
    assert (standing.failures, is_new) == (10, True)
    monkeypatch.setattr(standings, "PATIENCE", timedelta(days=999))
    assert not (await fail(store))[1]


@everywhere
async def test_whoever_pauses_by_hand_can_resume(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    assert (await a_view(store).pause(OPS, "by hand")).paused_at_ms > 0
    assert await a_view(store).resume(OPS)
    assert not await a_view(store).resume(OPS)
    assert await store.contents() == {}


@everywhere
async def test_the_reason_is_kept_as_it_was_said(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    reason = "status 503: %d «zu»  2 spaces"
    assert (await fail(store, reason))[0].reason == reason


@everywhere
async def test_a_damaged_standing_heals_with_the_next_attempt(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("HSET", store.keys.standings(), OPS, b"\xff damaged")
    assert (await fail(store))[0].failures == 1


@pytest.mark.parametrize("text", [b"", b"\xff", b"1 2 3", b"a b c d e"])
@on_real_servers  # the fake one answers HGETALL as RESP3 does
async def test_a_damaged_standing_hides_no_other(redis_client: Redis, namespace: str, text: bytes) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("HSET", store.keys.standings(), "damaged", text)
    await fail(store)
    found = await a_view(store).read()
    assert found["damaged"] == Standing(0, 0, 0, 0, "unreadable")
    assert found[OPS].failures == 1
