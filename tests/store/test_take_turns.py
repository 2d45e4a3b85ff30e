"""The rate limit of a provider: turns are reserved evenly spaced, over all workers together."""

import asyncio
from itertools import pairwise

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import PROVIDER, Store, a_store

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

PER_SECOND = 5
SPACING_MS = 1000 / PER_SECOND
EXACT_MS = 0.01
"""How far off a time with three decimals of a millisecond may be after a few sums."""


async def server_ms(store: Store) -> float:
    seconds, microseconds = await store.pipe.command("TIME")
    return int(seconds) * 1000 + int(microseconds) / 1000


async def next_free(store: Store) -> float:
    """The server time from which on the next turn is free."""
    return float(await store.pipe.command("GET", store.keys.rate(PROVIDER)))


async def take(store: Store, turns: int, *, not_before_ms: float = 0) -> list[float]:
    """Reserve turns; returns when requests may start, in server ms, and checks that this is what was said."""
    earliest = await server_ms(store)
    wait_ms = await store.polls.take_turns(
        PROVIDER, turns, spacing_ms=SPACING_MS, not_before_ms=not_before_ms
    )
    latest = await server_ms(store)
    first = await next_free(store) - turns * SPACING_MS
    assert first - latest - EXACT_MS <= wait_ms <= first - earliest + EXACT_MS
    return [first + i * SPACING_MS for i in range(turns)]


async def test_the_first_turn_is_at_once(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    assert await store.polls.take_turns(PROVIDER, 1, spacing_ms=SPACING_MS) == 0


async def test_never_more_starts_in_any_second_than_the_limit(redis_client: Redis, namespace: str) -> None:
    one, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    starts: list[float] = []
    for i, turns in enumerate([3, 1, 5, 2, 5, 1, 1, 4, 3, 5]):
        starts += await take(one if i % 2 else other, turns)
    assert len(starts) == 30
    assert starts == sorted(starts)
    for first, sixth in zip(starts, starts[PER_SECOND:], strict=False):
        assert sixth - first >= 1000 - EXACT_MS, "six starts within one second"


async def test_turns_leave_no_gap_while_there_is_work(redis_client: Redis, namespace: str) -> None:
    one, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    starts = [start for store in (one, other, one) for start in await take(store, 4)]
    assert all(abs(b - a - SPACING_MS) <= EXACT_MS for a, b in pairwise(starts))


async def test_workers_that_ask_at_the_same_time_share_no_turn(redis_client: Redis, namespace: str) -> None:
    one, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    (first,) = await take(one, 1)
    asked = [1 + i % 4 for i in range(20)]
    waits = await asyncio.gather(
        *(
            (one if i % 2 else other).polls.take_turns(PROVIDER, turns, spacing_ms=SPACING_MS)
            for i, turns in enumerate(asked)
        )
    )
    assert len(set(waits)) == len(asked)
    assert await next_free(one) - first == pytest.approx((1 + sum(asked)) * SPACING_MS, abs=EXACT_MS)


async def test_idle_time_allows_no_burst(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("SET", store.keys.rate(PROVIDER), f"{await server_ms(store) - 60_000:.3f}")
    starts = [start for _ in range(3) for start in await take(store, 1)]
    assert all(b - a >= SPACING_MS - EXACT_MS for a, b in pairwise(starts))


async def test_a_hold_applies_to_all_workers(redis_client: Redis, namespace: str) -> None:
    one, other = a_store(redis_client, namespace), a_store(redis_client, namespace)
    await take(one, 2)
    now = await server_ms(one)
    assert await take(one, 0, not_before_ms=30_000) == []
    (start,) = await take(other, 1)
    assert start >= now + 30_000


async def test_a_shorter_hold_does_not_shorten_reserved_turns(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    starts = await take(store, 5)
    await take(store, 0, not_before_ms=1)
    (start,) = await take(store, 1)
    assert start == pytest.approx(starts[-1] + SPACING_MS, abs=EXACT_MS)


async def test_providers_do_not_share_turns(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await take(store, 5)
    assert await store.polls.take_turns("shop", 1, spacing_ms=SPACING_MS) == 0


async def test_a_rate_outlives_its_last_turn_and_no_longer(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await take(store, 1, not_before_ms=10_000)
    left_ms = await store.pipe.command("PTTL", store.keys.rate(PROVIDER))
    assert 60_000 <= left_ms <= 10_000 + SPACING_MS + 60_000 + 1


@pytest.mark.parametrize("written", ["nan", "inf", "1e300", "soon", "-1e300"])
async def test_a_damaged_rate_delays_no_turn(redis_client: Redis, namespace: str, written: str) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("SET", store.keys.rate(PROVIDER), written)
    assert await store.polls.next_turn_ms(PROVIDER) == 0
    assert len(await take(store, 2)) == 2


async def test_a_rate_of_another_type_delays_no_turn(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("RPUSH", store.keys.rate(PROVIDER), "damaged")
    assert await store.polls.next_turn_ms(PROVIDER) == 0
    assert len(await take(store, 2)) == 2


async def test_a_clock_set_back_by_a_day_delays_no_turn(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("SET", store.keys.rate(PROVIDER), f"{await server_ms(store) + 86_400_000:.3f}")
    assert await store.polls.take_turns(PROVIDER, 1, spacing_ms=SPACING_MS) == 0


async def test_reading_the_next_turn_does_not_take_it(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await take(store, 5)
    for _ in range(3):
        assert 4 * SPACING_MS < await store.polls.next_turn_ms(PROVIDER) <= 5 * SPACING_MS
