"""Breakers as all workers share them: one change at a time, in bytes that other versions read."""

import asyncio
from functools import partial

import pytest
from redis.asyncio import Redis

from tests.support.servers import ENGINES, EVERY_ENGINE
from tests.support.stores import MINUTE_MS, OPS, Store, a_store, fail, pause
from watcher.engine.breaker import REPORT_MS, report_taken, reported, succeeded, tried_again
from watcher.store.queues import Breaker, Breakers

everywhere = pytest.mark.parametrize("engine", EVERY_ENGINE)
on_real_servers = pytest.mark.parametrize("engine", ENGINES)

GONE = "status 410"


def a_view(store: Store) -> Breakers:
    return Breakers(store.pipe, store.keys)


async def noted(store: Store) -> bytes | None:
    answer: bytes | None = await store.pipe.command("HGET", store.keys.breakers(), OPS)
    return answer


async def write(store: Store, text: str | bytes) -> None:
    await store.pipe.command("HSET", store.keys.breakers(), OPS, text)


@everywhere
async def test_a_failure_is_written_as_every_version_reads_it_by_the_servers_clock(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    before = await store.now_ms()
    change = await fail(a_view(store), OPS, "status 503", waits_ms=(1000, 5000))
    assert change.before is None
    assert change.after
    assert before - 1 <= change.after.since_ms <= await store.now_ms() + 1
    since = change.after.since_ms
    assert await noted(store) == b"1 %d %d 0 status 503" % (since, since + 1000)
    paused = (await pause(a_view(store), OPS, "by hand")).after
    assert paused
    at = paused.paused_at_ms
    assert await noted(store) == b"1 %d %d %d!%d by hand" % (since, since + 1000, at, at)


@everywhere
async def test_a_closed_breaker_is_not_written_down(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    assert await a_view(store).change(OPS, succeeded) == (None, None)
    await fail(a_view(store), OPS, "status 500")
    change = await a_view(store).change(OPS, succeeded)
    assert (change.before and change.before.failures, change.after) == (1, None)
    assert await store.contents() == {}


@everywhere
async def test_what_had_begun_before_it_opened_counts_once_together(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await write(store, "1 5 0 0 status 503")
    burst = await asyncio.gather(
        *(fail(a_view(store), OPS, "status 503", waits_ms=(0, 1000)) for _ in range(32))
    )
    assert sum(each.before != each.after for each in burst) == 1
    assert len({each.after for each in burst}) == 1
    assert burst[0].after
    assert burst[0].after.failures == 2


@everywhere
async def test_of_failures_at_the_same_moment_none_is_lost(redis_client: Redis, namespace: str) -> None:
    workers = [a_store(redis_client, namespace) for _ in range(10)]
    await asyncio.gather(*(fail(a_view(worker), OPS, "status 500") for worker in workers))
    assert (await a_view(workers[0]).read())[OPS].failures == 10


@everywhere
async def test_of_many_workers_that_see_it_exactly_one_pauses(redis_client: Redis, namespace: str) -> None:
    workers = [a_store(redis_client, namespace) for _ in range(10)]
    found = await asyncio.gather(*(fail(a_view(worker), OPS, GONE, pause=True) for worker in workers))
    assert [bool(each.before and each.before.paused_at_ms) for each in found].count(False) == 1
    assert len({each.after and each.after.paused_at_ms for each in found}) == 1


@everywhere
async def test_of_many_workers_one_reports_a_pause_and_another_if_it_has_not(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    view = a_view(store)
    paused = (await fail(view, OPS, GONE, pause=True)).after
    assert paused
    at = paused.paused_at_ms
    assert paused.report_from_ms == at + REPORT_MS, "the worker that paused it has time for it"
    take = partial(report_taken, paused_at_ms=at)
    assert len(set(await view.change(OPS, take))) == 1
    for _ in range(2):
        await write(store, f"1 5 0 {at}!{await store.now_ms()} status 410")
        found = await asyncio.gather(*(view.change(OPS, take) for _ in range(10)))
        assert [before != after for before, after in found].count(True) == 1
    await view.change(OPS, partial(reported, paused_at_ms=at))
    assert await noted(store) == b"1 5 0 %d status 410" % at


@everywhere
async def test_what_is_paused_by_hand_can_be_resumed(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await pause(a_view(store), OPS, "by hand")
    assert (await noted(store) or b"").startswith(b"0 "), "nothing was attempted"
    assert await a_view(store).resume(OPS)
    assert not await a_view(store).resume(OPS)
    assert await store.contents() == {}


@everywhere
async def test_of_many_workers_one_may_ask_until_it_leaves_or_its_lease_ends(
    redis_client: Redis, namespace: str
) -> None:
    view = a_view(a_store(redis_client, namespace))
    asked = await asyncio.gather(*(view.take_probe(OPS, f"w{n}", lease_ms=MINUTE_MS) for n in range(10)))
    assert asked.count(True) == 1
    worker = f"w{asked.index(True)}"
    assert await view.take_probe(OPS, worker, lease_ms=MINUTE_MS), "a repeat after a lost answer"
    await view.leave_probe(OPS, "another")
    assert not await view.take_probe(OPS, "another", lease_ms=MINUTE_MS), "it was not the other's to leave"
    await view.leave_probe(OPS, worker)
    assert await view.take_probe(OPS, "another", lease_ms=20)
    async with asyncio.timeout(5):
        while not await view.take_probe(OPS, worker, lease_ms=MINUTE_MS):  # noqa: ASYNC110 - a lease just ends
            await asyncio.sleep(0.005)


@everywhere
async def test_the_reason_is_kept_as_it_was_said(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    reason = "status 503: %d «zu»  2 spaces"
    await fail(a_view(store), OPS, reason)
    assert (await a_view(store).read())[OPS].reason == reason


@everywhere
@pytest.mark.parametrize("text", [b"\xff damaged", b"x", b"%d 1 0 0 no" % 10**30])
async def test_a_damaged_breaker_heals_with_the_next_attempt(
    redis_client: Redis, namespace: str, text: bytes
) -> None:
    store = a_store(redis_client, namespace)
    await write(store, text)
    change = await fail(a_view(store), OPS, "status 500")
    assert change.after
    assert change.after.failures == 1
    await write(store, text)
    await a_view(store).change(OPS, succeeded)
    assert await store.contents() == {}


@pytest.mark.parametrize("text", [b"", b"\xff", b"1 2 3", b"a b c d e", b"1 2 3 4!5!6 e"])
@on_real_servers  # the fake one answers HGETALL as RESP3 does
async def test_a_damaged_breaker_hides_no_other(redis_client: Redis, namespace: str, text: bytes) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("HSET", store.keys.breakers(), "damaged", text)
    await fail(a_view(store), OPS, "status 500")
    found = await a_view(store).read()
    assert found["damaged"] == Breaker(0, 0, 0, 0, "unreadable")
    assert found[OPS].failures == 1


@everywhere
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("4 5 99 0 no name: hooks", "4 5 0 0 no name: hooks"),
        ("4 5 0 0 refused: loopback", "4 5 0 0 refused: loopback"),
        ("4 5 99 0 status 503 no name", "4 5 99 0 status 503 no name"),
        ("4 5 99 7 no name", "4 5 99 7 no name"),
        ("4 5 99 7!8 no name", "4 5 99 7!8 no name"),
    ],
)
async def test_a_breaker_is_tried_again_for_the_reasons_given_and_for_no_other(
    redis_client: Redis, namespace: str, before: str, after: str
) -> None:
    store = a_store(redis_client, namespace)
    await write(store, before)
    await a_view(store).change(OPS, partial(tried_again, reasons=("refused", "no name")))
    assert await noted(store) == after.encode()
