"""Breakers as all workers share them: atomic changes, counts, probes and turns."""

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest
from redis.asyncio import Redis

from tests.support.servers import ENGINES, EVERY_ENGINE
from tests.support.stores import ACCOUNT, MINUTE_MS, OPS, Store, a_delivery, a_store, fail, pause
from watcher.engine.breaker import (
    REPORT_MS,
    Failure,
    gone,
    opens,
    probed,
    report_taken,
    reported,
    tidied,
    tried_again,
)
from watcher.store.keys import SHARDS, shard_of
from watcher.store.queues import Breaker, Breakers, Results, dump_breaker, take_lease
from watcher.store.schedule import Lease, Reply

everywhere = pytest.mark.parametrize("engine", EVERY_ENGINE)
on_real_servers = pytest.mark.parametrize("engine", ENGINES)

GONE = Failure("status 410")
WHOLE = Breaker(1, 2, "status 503: %d «zu»  2 spaces", 3, 4, 5, "01101", 2, "a", 6, 7, 0.5, 8)


def a_view(store: Store) -> Breakers:
    return Breakers(store.pipe, store.keys)


async def noted(store: Store) -> bytes | None:
    answer: bytes | None = await store.pipe.command("HGET", store.keys.breakers(), OPS)
    return answer


async def write(store: Store, breaker: Breaker | bytes) -> None:
    text = breaker if isinstance(breaker, bytes) else dump_breaker(breaker)
    await store.pipe.command("HSET", store.keys.breakers(), OPS, text)


@everywhere
async def test_a_change_uses_the_servers_clock(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    before = await store.now_ms()
    change = await fail(a_view(store), OPS, "status 503", open_ms=1000)
    assert change.before is None
    assert change.after
    assert before - 1 <= change.after.since_ms <= await store.now_ms() + 1
    assert change.after.open_until_ms == change.after.since_ms + 1000


@on_real_servers  # the fake one answers HGETALL as RESP3 does
async def test_a_breaker_is_read_back_as_it_was_written(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await write(store, WHOLE)
    assert await a_view(store).read() == {OPS: WHOLE}
    assert await a_view(store).change(OPS, lambda breaker, _: breaker) == (WHOLE, WHOLE)


@everywhere
async def test_a_breaker_without_any_effect_is_not_stored(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    assert await a_view(store).change(OPS, tidied) == (None, None)
    await write(store, Breaker(closed_at_ms=1))
    change = await a_view(store).change(OPS, tidied)
    assert change == (Breaker(closed_at_ms=1), None)
    assert await store.contents() == {}


@everywhere
async def test_of_many_concurrent_changes_none_is_lost(redis_client: Redis, namespace: str) -> None:
    workers = [a_store(redis_client, namespace) for _ in range(10)]
    await write(workers[0], Breaker(since_ms=1))

    def later(breaker: Breaker | None, _: int) -> Breaker:
        assert breaker
        return breaker._replace(rests=breaker.rests + 1)

    await asyncio.gather(*(a_view(worker).change(OPS, later) for worker in workers))
    assert dump_breaker(Breaker(since_ms=1, rests=10)) == await noted(workers[0])


@everywhere
async def test_of_many_workers_exactly_one_pauses(redis_client: Redis, namespace: str) -> None:
    workers = [a_store(redis_client, namespace) for _ in range(10)]
    pausing = partial(gone, failure=GONE)
    found = await asyncio.gather(*(a_view(worker).change(OPS, pausing) for worker in workers))
    assert [bool(each.before and each.before.paused_at_ms) for each in found].count(False) == 1
    assert len({each.after and each.after.paused_at_ms for each in found}) == 1


@everywhere
async def test_of_many_workers_one_reports_a_pause_or_else_another_does(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    view = a_view(store)
    paused = (await fail(view, OPS, GONE.reason, pause=True)).after
    assert paused
    at = paused.paused_at_ms
    assert paused.report_from_ms == at + REPORT_MS, "the worker that paused it has time to report it"
    take = partial(report_taken, paused_at_ms=at)
    assert len(set(await view.change(OPS, take))) == 1
    for _ in range(2):
        await write(store, paused._replace(report_from_ms=await store.now_ms()))
        found = await asyncio.gather(*(view.change(OPS, take) for _ in range(10)))
        assert [before != after for before, after in found].count(True) == 1
    await view.change(OPS, partial(reported, paused_at_ms=at))
    assert await noted(store) == dump_breaker(paused._replace(report_from_ms=0))


@on_real_servers
async def test_a_resume_forgets_the_breaker_and_its_counts(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    view = a_view(store)
    await pause(view, OPS, "by hand")
    await view.count_results(OPS, closed_at_ms=0)
    await view.take_probes(OPS, ["a"], at_most=1, lease_ms=MINUTE_MS)
    await view.hold_turns(OPS, for_ms=MINUTE_MS)
    assert await view.resume(OPS)
    assert not await view.resume(OPS)
    assert await store.contents() == {}


@everywhere
@pytest.mark.parametrize(
    "text",
    [
        b"\xff damaged",
        b"x",
        b"[]",
        b"3",
        b'{"since_ms":-1}',
        b'{"since_ms":1e30}',
        b'{"reason":7}',
        b'{"allowed":0}',
        b'{"rests":100000}',
        b'{"pace_per_s":null}',
        b"3 1 2 0 status 503",
    ],
)
async def test_a_damaged_breaker_is_closed_and_heals(
    redis_client: Redis, namespace: str, text: bytes
) -> None:
    store = a_store(redis_client, namespace)
    await write(store, text)
    assert (await a_view(store).change(OPS, probed_once)).before is None
    assert await store.contents() == {}


def probed_once(breaker: Breaker | None, now_ms: int) -> Breaker | None:
    return probed(breaker, now_ms, account="a")


@pytest.mark.parametrize("text", [b" ", b"\xff", b"{}x", b'{"since_ms":"a"}'])
@on_real_servers
async def test_a_damaged_breaker_hides_no_other(redis_client: Redis, namespace: str, text: bytes) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("HSET", store.keys.breakers(), "damaged", text)
    await fail(a_view(store), OPS, "status 500")
    found = await a_view(store).read()
    assert found["damaged"] == Breaker(reason="unreadable")
    assert found[OPS].reason == "status 500"


@everywhere
@pytest.mark.parametrize(
    ("reason", "paused_at_ms", "is_tried"),
    [
        ("no name: hooks", 0, True),
        ("refused: loopback", 0, True),
        ("status 503 no name", 0, False),
        ("no name", 7, False),
    ],
)
async def test_a_breaker_is_tried_again_for_the_reasons_given_and_for_no_other(
    redis_client: Redis, namespace: str, reason: str, paused_at_ms: int, is_tried: bool
) -> None:
    store = a_store(redis_client, namespace)
    before = Breaker(since_ms=5, open_until_ms=99, reason=reason, paused_at_ms=paused_at_ms)
    await write(store, before)
    await a_view(store).change(OPS, partial(tried_again, reasons=("refused", "no name")))
    after = before._replace(open_until_ms=0) if is_tried else before
    assert await noted(store) == dump_breaker(after)


# Probes


@everywhere
async def test_all_workers_together_have_no_more_probes_than_allowed_until_they_end(
    redis_client: Redis, namespace: str
) -> None:
    view = a_view(a_store(redis_client, namespace))
    asked = [[f"w{worker} {number}" for number in range(3)] for worker in range(5)]
    taken = await asyncio.gather(
        *(view.take_probes(OPS, names, at_most=4, lease_ms=MINUTE_MS) for names in asked)
    )
    assert sum(map(len, taken)) == 4
    mine = next(names for names in taken if names)
    assert await view.take_probes(OPS, mine, at_most=4, lease_ms=MINUTE_MS) == mine, "a repeat"
    assert await view.take_probes(OPS, ["other"], at_most=4, lease_ms=MINUTE_MS) == []
    await view.leave_probes(OPS, mine[:1])
    assert await view.take_probes(OPS, ["other"], at_most=4, lease_ms=MINUTE_MS) == ["other"]


@everywhere
async def test_a_probe_of_a_worker_that_died_is_free_when_its_lease_ends(
    redis_client: Redis, namespace: str
) -> None:
    view = a_view(a_store(redis_client, namespace))
    assert await view.take_probes(OPS, ["dead"], at_most=1, lease_ms=20) == ["dead"]
    async with asyncio.timeout(5):
        while not await view.take_probes(OPS, ["next"], at_most=1, lease_ms=MINUTE_MS):  # noqa: ASYNC110 - a lease ends
            await asyncio.sleep(0.005)


# What is counted


async def settle(store: Store, account: str, result: str) -> None:
    """Settle one attempt: delivered, or what a failure counts as."""
    await store.queues.enqueue(OPS, account, [a_delivery()])
    lease = await store.lease_queue(account)
    head = a_delivery().entry
    if result == "delivered":
        until = store.queues.until(lease, MINUTE_MS)
        reply, _ = await store.queues.delivered(OPS, lease, head, until=until)
    else:
        reply = await store.queues.retry(OPS, lease, head, wait_ms=1, result=result)
        await store.pipe.command("DEL", store.keys.queue(OPS, account))
        await store.pipe.command("ZREM", store.keys.queues(shard_of(account), OPS), account)
    assert reply is Reply.DONE


async def settled(store: Store, *results: tuple[str, str]) -> Results:
    for account, result in results:
        await settle(store, account, result)
    return await a_view(store).count_results(OPS, closed_at_ms=0)


def accounts_in(shard: int, count: int) -> Sequence[str]:
    names = (f"a{number}" for number in range(10_000))
    return [name for name in names if shard_of(name) == shard][:count]


ONE, TWO, THREE = accounts_in(0, 3)
(FAR,) = accounts_in(1, 1)


@everywhere
async def test_without_failures_nothing_is_stored(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await settle(store, ONE, "delivered")
    await settle(store, ONE, "")
    assert not [key for key in await store.contents() if "results" in key or "row" in key]


@everywhere
async def test_the_last_result_of_each_queue_counts(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await settled(store)  # from now on all shards count
    results = await settled(
        store, (ONE, "failed"), (ONE, "delivered"), (TWO, "delivered"), (TWO, "failed"), (FAR, "delivered")
    )
    assert (results.tried, results.failed) == (3, 1)
    assert (results.taken_lately, results.failed_lately) == (3, 2)


@everywhere
async def test_the_first_failure_of_a_shard_is_no_result(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    results = await settled(store, (ONE, "failed"))
    assert (results.tried, results.failed, results.failed_lately, len(results.row)) == (0, 0, 0, 1)
    assert (await settled(store, (TWO, "failed"))).tried == 1


@everywhere
async def test_results_before_it_was_closed_do_not_count(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await settled(store, (ONE, "failed"))
    await settled(store, (ONE, "failed"), (FAR, "failed"))
    found = await a_view(store).count_results(OPS, closed_at_ms=await store.now_ms() + 1)
    assert (found.tried, found.failed, found.row) == (0, 0, ())


@everywhere
async def test_failures_in_a_row_span_all_shards_and_end_with_a_delivery_in_any(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    results = await settled(
        store, *[(ONE, "unavailable")] * 7, (FAR, "failed"), (FAR, "unavailable"), (TWO, "failed")
    )
    row = sorted((miss.account, miss.is_unavailable) for miss in results.row)
    kept = [(ONE, True)] * 4 + [(TWO, False), (FAR, False), (FAR, True)]
    assert row == sorted(kept), "a shard keeps five"
    assert opens(results)
    await asyncio.sleep(0.002)  # a row has the precision of a millisecond
    results = await settled(store, (FAR, "delivered"))
    assert results.row == ()
    await asyncio.sleep(0.002)
    assert [miss.account for miss in (await settled(store, (ONE, "failed"))).row] == [ONE]


@everywhere
async def test_counts_expire_by_themselves(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await settled(store, (ONE, "failed"), (FAR, "failed"), (FAR, "delivered"))
    for shard in range(SHARDS):
        assert 0 < await store.pipe.command("PTTL", store.keys.results(shard, OPS)) <= 600_000
    for account in (ONE, FAR):
        assert 0 < await store.pipe.command("PTTL", store.keys.row(shard_of(account), OPS)) <= 600_000


@everywhere
async def test_results_that_are_too_old_to_count_are_not_kept(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await settled(store)
    key, old_ms = store.keys.results(0, OPS), await store.now_ms() - 10_001
    await store.pipe.command("ZADD", key, old_ms, "delivered", 10**15 + old_ms, "failed")
    assert (await settled(store)).tried == 0
    await settle(store, ONE, "failed")
    members = await store.pipe.command("ZRANGE", key, 0, -1)
    assert members == [b"", ONE.encode()]


@everywhere
async def test_a_repeated_settle_counts_once(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    await settled(store)
    await store.queues.enqueue(OPS, ACCOUNT, [a_delivery()])
    lease = await store.lease_queue()
    for reply in (Reply.DONE, Reply.LEASE_LOST):
        found = await store.queues.retry(OPS, lease, a_delivery().entry, wait_ms=1, result="failed")
        assert found is reply
    assert (await settled(store)).failed_lately == 1


@everywhere
async def test_an_attempt_that_uses_up_no_retry_keeps_the_count_of_its_head(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.queues.enqueue(OPS, ACCOUNT, [a_delivery()])
    found = []
    for is_used in (False, True, False, True, False):
        lease = await store.lease_queue()
        await store.queues.retry(OPS, lease, a_delivery().entry, wait_ms=1, is_used=is_used)
        await store.queues.make_due(OPS, shard_of(ACCOUNT), lease_ms=MINUTE_MS)
        lease = await store.lease_queue()
        until = store.queues.until(lease, MINUTE_MS)
        begun = await store.queues.begin(OPS, lease, until=until, at_most=1)
        found.append(begun.tries)
        await store.queues.release(OPS, Lease(ACCOUNT, until))
    assert found == [0, 1, 1, 2, 2]


# Turns


@everywhere
async def test_a_hold_delays_all_turns_and_returns_the_recent_deliveries(
    redis_client: Redis, namespace: str
) -> None:
    view = a_view(a_store(redis_client, namespace))
    assert await view.take_turn(OPS, spacing_ms=10, within_ms=250, delivered=7) == 0
    assert await view.take_turn(OPS, spacing_ms=10, within_ms=250, delivered=30) > 0
    delivered = await view.hold_turns(OPS, for_ms=5000, delivered=3)
    assert delivered == pytest.approx(40, abs=1)
    assert await view.take_turn(OPS, spacing_ms=10, within_ms=250) > 4000
    again = await view.hold_turns(OPS, for_ms=1)
    assert again == pytest.approx(40, abs=1), "a hold does not count as time without deliveries"
    assert await view.take_turn(OPS, spacing_ms=10, within_ms=250) > 4000, "a hold is not shortened"


@everywhere
async def test_a_hold_without_counted_deliveries_returns_none(redis_client: Redis, namespace: str) -> None:
    view = a_view(a_store(redis_client, namespace))
    assert await view.hold_turns(OPS, for_ms=0) is None
    assert await view.take_turn(OPS, spacing_ms=10, within_ms=250) == 0


@everywhere
@pytest.mark.parametrize("text", [b"x", b"nan", b"1e300 1 2 3 4", b"-1 0 0 0 0", b"1795175095846.000", b""])
async def test_a_damaged_rate_is_as_if_no_turn_was_taken(
    redis_client: Redis, namespace: str, text: bytes
) -> None:
    store = a_store(redis_client, namespace)
    await store.pipe.command("SET", store.keys.subscription_rate(OPS), text)
    assert await a_view(store).take_turn(OPS, spacing_ms=10, within_ms=250) == 0


@everywhere
async def test_counts_and_leases_of_another_type_are_replaced(redis_client: Redis, namespace: str) -> None:
    store = a_store(redis_client, namespace)
    view, keys, shard = a_view(store), store.keys, shard_of(ACCOUNT)
    for key in (keys.results(shard, OPS), keys.row(shard, OPS), keys.subscription_rate(OPS), keys.keeper()):
        await store.pipe.command("RPUSH", key, "damaged")
    await store.pipe.command("RPUSH", keys.probes(OPS), "damaged")
    assert (await settled(store, (ACCOUNT, "failed"), (ACCOUNT, "failed"))).tried == 1
    for key in (keys.results(shard, OPS), keys.row(shard, OPS)):
        await store.pipe.command("DEL", key)
        await store.pipe.command("RPUSH", key, "damaged")
    assert (await view.count_results(OPS, closed_at_ms=0)).tried == 0
    assert await view.take_turn(OPS, spacing_ms=10, within_ms=250) == 0
    assert await view.take_turn(OPS, spacing_ms=10, within_ms=250) > 0
    assert await view.take_probes(OPS, ["a", "b"], at_most=1, lease_ms=MINUTE_MS) == ["a"]
    assert await take_lease(store.pipe, keys.keeper(), "w", lease_ms=MINUTE_MS)
    assert not await take_lease(store.pipe, keys.keeper(), "other", lease_ms=MINUTE_MS)
