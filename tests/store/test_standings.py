"""How subscriptions stand: failures in a row, how long they are left alone, when they are paused."""

import asyncio
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from tests.support.servers import ENGINES, EVERY_ENGINE
from tests.support.stores import OPS, Store, a_store
from watcher.store import standings
from watcher.store.standings import Noted, Standing, Standings

everywhere = pytest.mark.parametrize("engine", EVERY_ENGINE)
on_real_servers = pytest.mark.parametrize("engine", ENGINES)


async def fail(store: Store, reason: str = "status 503", *, pause: bool = False, wish_ms: int = 0) -> Noted:
    return await a_view(store).failed(OPS, reason, pause=pause, wish_ms=wish_ms, holds_ms=(0, 1000, 5000))


def a_view(store: Store) -> Standings:
    return Standings(store.pipe, store.keys)


async def noted(store: Store) -> bytes | None:
    answer: bytes | None = await store.pipe.command("HGET", store.keys.standings(), OPS)
    return answer


async def write(store: Store, text: str | bytes) -> None:
    """Let a subscription stand as if time had passed."""
    await store.pipe.command("HSET", store.keys.standings(), OPS, text)


async def rested(store: Store) -> None:
    """Let the time pass in which a subscription is left alone."""
    failures, since, _, paused, reason = (await noted(store) or b"").decode().split(" ", 4)
    await write(store, f"{failures} {since} {await store.now_ms() - 1} {paused} {reason}")


@everywhere
async def test_failures_in_a_row_are_counted_since_the_first(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    before = await store.now_ms()
    found = []
    for _ in range(4):
        found.append((await fail(store)).standing)
        await rested(store)
    assert [standing.failures for standing in found] == [1, 2, 3, 4]
    assert len({standing.since_ms for standing in found}) == 1
    assert before - 1 <= found[0].since_ms <= await store.now_ms() + 1


@everywhere
async def test_a_failing_subscription_is_left_alone_longer_each_time(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    assert (await fail(store)).standing.held_until_ms == 0
    for wait_ms in (1000, 5000, 5000):
        before = await store.now_ms()
        held_until_ms = (await fail(store)).standing.held_until_ms
        assert before + wait_ms - 1 <= held_until_ms <= await store.now_ms() + wait_ms + 1
        await rested(store)


@everywhere
async def test_what_had_begun_before_the_rest_counts_once_together(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await write(store, "1 5 0 0 status 503")
    burst = await asyncio.gather(*(fail(store) for _ in range(32)))
    assert sum(each.counted for each in burst) == 1
    assert len({each.standing for each in burst}) == 1
    assert burst[0].standing.failures == 2


@everywhere
async def test_a_delivery_that_had_begun_before_the_rest_ends_the_row_and_not_the_rest(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    before = (await fail(store, wish_ms=60_000)).standing
    assert await a_view(store).succeeded(OPS)
    assert not await a_view(store).succeeded(OPS), "once is enough"
    after = (await fail(store)).standing
    assert (after.failures, after.held_until_ms) == (0, before.held_until_ms)
    await rested(store)
    assert (await fail(store)).standing.failures == 1
    await rested(store)
    assert await a_view(store).succeeded(OPS)
    assert await noted(store) is None


@everywhere
async def test_a_longer_wish_of_the_subscriber_is_granted_and_never_shortened(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    before = await store.now_ms()
    held = (await fail(store, wish_ms=60_000)).standing.held_until_ms
    assert held >= before + 60_000 - 1
    assert (await fail(store)).standing.held_until_ms == held
    assert (await fail(store, wish_ms=1000)).standing.held_until_ms == held
    assert (await fail(store, wish_ms=90_000)).standing.held_until_ms >= before + 90_000 - 1


@everywhere
async def test_a_delivery_ends_the_row(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    assert not await a_view(store).succeeded(OPS)
    await fail(store)
    assert await a_view(store).succeeded(OPS) == 1
    assert await noted(store) is None
    assert (await fail(store)).standing.failures == 1


@everywhere
async def test_a_subscription_that_asks_for_it_is_paused_once_and_stays_so(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    standing, is_new, _ = await fail(store, "status 410", pause=True)
    assert is_new
    assert standing.paused_at_ms > 0
    later, is_new, _ = await fail(store, "status 500", pause=True)
    assert not is_new
    assert (later.paused_at_ms, later.reason) == (standing.paused_at_ms, "status 410"), "why it was paused"
    assert not await a_view(store).succeeded(OPS), "a late success does not resume what was paused"
    assert await noted(store)


@everywhere
async def test_a_pause_is_to_be_told_until_somebody_has_told_of_it(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    view = a_view(store)
    assert (await fail(store)).standing.tell_from_ms == 0, "nobody is to hear of a failure"
    paused = (await fail(store, pause=True)).standing
    assert paused.tell_from_ms == paused.paused_at_ms + standings.TELLING_MS
    late = (await fail(store)).standing
    assert late == paused, "what had begun before leaves it to be told"
    assert not await view.succeeded(OPS)
    for _ in range(2):
        await view.told(OPS, paused)
    assert (await fail(store)).standing == paused._replace(tell_from_ms=0)
    assert not await view.take_telling(OPS, paused)


@everywhere
async def test_of_many_workers_one_tells_of_a_pause_and_another_if_it_has_not(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    view = a_view(store)
    paused = (await fail(store, pause=True)).standing
    assert not await view.take_telling(OPS, paused), "whoever paused it has time for it"
    for _ in range(2):
        await write(store, f"1 5 0 {paused.paused_at_ms}!{await store.now_ms()} status 410")
        found = await asyncio.gather(*(view.take_telling(OPS, paused) for _ in range(10)))
        assert found.count(True) == 1
    await view.told(OPS, paused)
    assert (await noted(store) or b"") == b"1 5 0 %d status 410" % paused.paused_at_ms


@everywhere
async def test_a_pause_by_hand_is_for_any_worker_to_tell_at_once(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await a_view(store).pause(OPS, "by hand")
    standing = (await fail(store)).standing
    assert standing.tell_from_ms == standing.paused_at_ms
    assert await a_view(store).take_telling(OPS, standing)


@everywhere
async def test_who_tells_of_a_pause_that_is_over_says_nothing_of_the_next_one(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    view = a_view(store)
    over = (await fail(store, pause=True)).standing
    await view.resume(OPS)
    await view.told(OPS, over)
    assert await noted(store) is None
    await write(store, f"1 5 0 {over.paused_at_ms + 1}!7 by hand")
    await view.told(OPS, over)
    assert (await fail(store)).standing.tell_from_ms == 7


@everywhere
async def test_failing_everything_for_too_long_pauses(
    redis_client: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_store(redis_client, namespace)
    assert not (await fail(store)).paused
    since = await store.now_ms() - int(1000 * standings.PATIENCE.total_seconds())
    await write(store, f"9 {since + 60_000} 0 0 status 503")
    assert not (await fail(store)).paused, "a minute is left"
    await write(store, f"9 {since} 0 0 status 503")
    standing, is_new, _ = await fail(store)
    assert (standing.failures, is_new) == (10, True)
    await a_view(store).resume(OPS)
    await write(store, f"9 {since} 0 0 status 503")
    monkeypatch.setattr(standings, "PATIENCE", timedelta(days=999))
    assert not (await fail(store)).paused


@everywhere
async def test_of_many_workers_that_see_it_exactly_one_pauses(redis_client: Redis, namespace: str) -> None:
    workers = [a_store(redis_client, namespace) for _ in range(10)]
    found = await asyncio.gather(*(fail(worker, "status 410", pause=True) for worker in workers))
    assert [each.paused for each in found].count(True) == 1
    assert len({each.standing.paused_at_ms for each in found}) == 1


@everywhere
async def test_whoever_pauses_by_hand_can_resume(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    assert await a_view(store).pause(OPS, "by hand")
    assert (await noted(store) or b"").startswith(b"0 "), "nothing was attempted"
    assert not await a_view(store).pause(OPS, "by another hand")
    assert (await fail(store)).standing.reason == "by hand"
    assert await a_view(store).resume(OPS)
    assert not await a_view(store).resume(OPS)
    assert await store.contents() == {}


@everywhere
async def test_of_many_workers_one_may_ask_until_it_leaves_or_its_lease_ends(
    redis_client: Redis, namespace: str
) -> None:
    view = a_view(a_store(redis_client, namespace))
    asked = await asyncio.gather(*(view.take_probe(OPS, f"w{n}", lease_ms=60_000) for n in range(10)))
    assert asked.count(True) == 1
    who = f"w{asked.index(True)}"
    assert await view.take_probe(OPS, who, lease_ms=60_000), "a repeat after a lost answer"
    await view.leave_probe(OPS, "another")
    assert not await view.take_probe(OPS, "another", lease_ms=60_000), "it was not the other's to leave"
    await view.leave_probe(OPS, who)
    assert await view.take_probe(OPS, "another", lease_ms=20)
    async with asyncio.timeout(5):
        while not await view.take_probe(OPS, who, lease_ms=60_000):  # noqa: ASYNC110 - a lease just ends
            await asyncio.sleep(0.005)


@everywhere
async def test_the_reason_is_kept_as_it_was_said(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    reason = "status 503: %d «zu»  2 spaces"
    assert (await fail(store, reason)).standing.reason == reason


@everywhere
async def test_a_damaged_standing_heals_with_the_next_attempt(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await write(store, b"\xff damaged")
    assert (await fail(store)).standing.failures == 1
    await write(store, b"\xff damaged")
    await a_view(store).succeeded(OPS)
    assert await store.contents() == {}


@pytest.mark.parametrize("text", [b"", b"\xff", b"1 2 3", b"a b c d e", b"1 2 3 4!5!6 e"])
@on_real_servers  # the fake one answers HGETALL as RESP3 does
async def test_a_damaged_standing_hides_no_other(redis_client: Redis, namespace: str, text: bytes) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("HSET", store.keys.standings(), "damaged", text)
    await fail(store)
    found = await a_view(store).read()
    assert found["damaged"] == Standing(0, 0, 0, 0, "unreadable")
    assert found[OPS].failures == 1


@everywhere
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("4 5 99 0 no name: hooks", "4 5 0 0 no name: hooks"),
        ("4 5 0 0 refused: loopback", "4 5 0 0 refused: loopback"),
        ("4 5 99 0 status 503 no name", None),
        ("4 5 99 7 no name", None),
        ("4 5 99 7!8 no name", None),
        ("damaged", None),
    ],
)
async def test_a_rest_ends_for_the_reasons_given_and_for_no_other(
    redis_client: Redis, namespace: str, before: str, after: str | None
) -> None:
    store = a_store(redis_client, namespace)
    await write(store, before)
    assert await a_view(store).unhold(OPS, "refused", "no name") is (after is not None)
    assert await noted(store) == (after or before).encode()


@everywhere
async def test_there_is_no_rest_to_end_of_a_subscription_that_stands_well(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    assert not await a_view(store).unhold(OPS, "")
    assert await store.contents() == {}
