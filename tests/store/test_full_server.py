"""A server whose memory is full: polling stops with nothing half written, queues are still delivered."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from itertools import count

import pytest

from tests.support.audited import flaws
from tests.support.servers import ENGINES, real_server
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
    fail,
    pause,
    running,
    some_deliveries,
)
from watcher.engine.breaker import probed
from watcher.store.client import connect
from watcher.store.directory import Directory, Write
from watcher.store.exceptions import StoreUnreachable
from watcher.store.keeper import Keeper, Relief, memory_of
from watcher.store.members import Enrolled
from watcher.store.queues import Breakers
from watcher.store.reader import Reader
from watcher.store.schedule import Claimed, Lease, Reply

pytestmark = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
async def store(engine: str, namespace: str) -> AsyncIterator[Store]:
    """A store on a server of its own, whose memory a test may declare full."""
    with real_server(engine) as server:
        async with connect(server.url) as client:
            yield a_store(client, namespace)


async def fill(store: Store) -> None:
    await store.pipe.command("CONFIG", "SET", "maxmemory", 1)


async def free_memory(store: Store) -> None:
    await store.pipe.command("CONFIG", "SET", "maxmemory", 0)


async def test_on_a_full_server_polling_stops_without_partial_writes_and_resumes_by_itself(
    store: Store,
) -> None:
    await store.polls.commit(a_commit(await store.lease(), deliveries={OPS: [a_delivery(1)]}))
    lease = await store.lease()
    step = a_commit(
        lease, expected="v1", version="v2", notes=[b"event"], deliveries={OPS: [a_delivery(2)]}, ETH="1"
    )
    before = await store.contents()
    await fill(store)
    for refused in (
        store.polls.commit(step),
        store.polls.touch(PROVIDER, lease, version="v1", polled_at_ms=1, due_ms=1),
        store.polls.postpone(PROVIDER, lease, why="down", at_least_ms=0, waits_ms=[1]),
        store.polls.release(PROVIDER, lease),
        store.polls.take_turns(PROVIDER, 1, spacing_ms=200),
    ):
        with pytest.raises(StoreUnreachable, match=r"refuses writes \(OOM\)"):
            await refused
    assert await store.contents() == before
    await free_memory(store)
    assert (await store.polls.commit(step)).reply is Reply.DONE


async def test_no_account_is_claimed_while_it_could_not_be_committed(store: Store) -> None:
    await store.due(store.keys.polls(SHARD, PROVIDER), **{ACCOUNT: -1})
    before = await store.contents()
    await fill(store)
    with pytest.raises(StoreUnreachable, match=r"refuses writes \(OOM\)"):
        await store.polls.claim(PROVIDER, SHARD, lease_ms=MINUTE_MS, at_most=1)
    assert await store.contents() == before


async def test_on_a_full_server_queues_are_claimed_and_accounts_are_not(store: Store) -> None:
    """Those have the server let their call run to its end."""
    await store.fill(a_delivery())
    await store.due(store.keys.polls(SHARD, PROVIDER), **{ACCOUNT: -1})
    await fill(store)
    async with running(store.pipe):
        queues, polls = await asyncio.gather(
            store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=1),
            store.polls.claim(PROVIDER, SHARD, lease_ms=MINUTE_MS, at_most=1),
            return_exceptions=True,
        )
    assert isinstance(queues, Claimed)
    assert [lease.member for lease in queues.leases] == [ACCOUNT]
    assert isinstance(polls, StoreUnreachable)


async def test_a_full_server_still_drains_its_queues(store: Store) -> None:
    await store.fill(*some_deliveries(1, 2, 3))
    await fill(store)
    (lease,) = (await store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases
    lease, begun = await store.begin(lease, at_most=1)
    assert (begun.reply, begun.deliveries) == (Reply.DONE, [(a_delivery(1).entry, a_delivery(1))])
    reply, deadline = await store.queues.delivered(
        OPS, lease, a_delivery(1).entry, until=store.queues.until(lease, MINUTE_MS)
    )
    assert reply is Reply.DONE
    lease = Lease(ACCOUNT, deadline)
    reply, deadline = await store.queues.dead(
        OPS,
        lease,
        a_delivery(2).entry,
        until=store.queues.until(lease, MINUTE_MS),
        reason="410",
        record=b"{}",
    )
    assert reply is Reply.DONE
    lease = Lease(ACCOUNT, deadline)
    assert await store.queues.retry(OPS, lease, a_delivery(3).entry, wait_ms=10 * MINUTE_MS) is Reply.DONE
    assert await store.queues.make_due(OPS, SHARD, lease_ms=MINUTE_MS) == 1
    (lease,) = (await store.queues.claim(OPS, SHARD, lease_ms=MINUTE_MS, at_most=1)).leases
    assert await store.queues.release(OPS, lease) is Reply.DONE
    assert await Breakers(store.pipe, store.keys).take_turn(OPS, spacing_ms=200, within_ms=1000) == 0
    await store.queues.hold(SHARD, {OPS: MINUTE_MS})
    assert await store.queues.due_subscriptions(SHARD) == []
    assert await store.queues.enqueue(OPS, ACCOUNT, [a_delivery(4)]) == 1, "an alert, or a resend"
    assert await store.queue() == [a_delivery(number).entry for number in (3, 4)]


async def test_breakers_are_still_written_on_a_full_server(store: Store) -> None:
    breakers = Breakers(store.pipe, store.keys)
    await fill(store)
    assert await breakers.take_probes(OPS, ["w"], at_most=1, lease_ms=MINUTE_MS)
    assert (await breakers.count_results(OPS, closed_at_ms=0)).tried == 0
    assert (await fail(breakers, OPS, "503", open_ms=MINUTE_MS)).before is None
    assert (await breakers.change(OPS, partial(probed, account=ACCOUNT))).after
    assert (await breakers.read())[OPS].probes == "1"
    assert await breakers.hold_turns(OPS, for_ms=10) is None
    await pause(breakers, OPS, "by hand")
    assert (await breakers.read())[OPS].reason == "by hand"


async def test_a_worker_with_the_same_accounts_starts_on_a_full_server(store: Store) -> None:
    """Else no worker would drain the queues of a full server after all were restarted."""
    accounts = {PROVIDER: [ACCOUNT]}
    for is_first in (True, False):
        await store.roster.check_layout()
        enrolled = await store.roster.enroll(accounts, now_ms=1)
        assert (await store.roster.note_enrolled("list"), enrolled.added) == (is_first, int(is_first))
        await fill(store)


async def test_a_full_server_refuses_records_whole_and_still_deletes_them(store: Store) -> None:
    directory = Directory(store.pipe, store.keys)
    writes = [Write("account", name, {"provider": PROVIDER}, b"encrypted") for name in NEIGHBOURS[:3]]
    await directory.put_all(writes[:2])
    before = await store.contents()
    await fill(store)
    with pytest.raises(StoreUnreachable, match="OOM"):
        await directory.put_all(writes[2:])
    assert await store.contents() == before
    assert (await directory.delete("account", NEIGHBOURS[0])).outcome == "done"
    await free_memory(store)
    assert [record.name for record in (await directory.read(SHARD)).records] == [NEIGHBOURS[1]]
    assert (await directory.put(writes[2])).outcome == "done"


async def test_accounts_are_removed_and_forgotten_on_a_full_server(store: Store) -> None:
    now_ms = await store.now_ms()
    await store.roster.enroll({PROVIDER: [ACCOUNT, "other"]}, now_ms=now_ms)
    await store.roster.note_enrolled("list")
    await fill(store)
    assert await store.roster.enroll({PROVIDER: ["other"]}, now_ms=now_ms) == Enrolled(0, 1, (ACCOUNT,))
    assert await store.roster.forget(now_ms + 10 * MINUTE_MS) == 1
    await free_memory(store)


async def a_store_with_everything(store: Store) -> Keeper:
    """A log of 2 MB, 300 dead letters, 4,000 deliveries that wait for OPS and 900 for another; its keeper."""
    content, numbers = b'{"id":"' + b"x" * 700, count(1)
    notes = [b"{" + b"x" * 1000] * 2000
    await store.polls.commit(a_commit(await store.lease(), notes=notes))
    accounts = [ACCOUNT, *NEIGHBOURS[:3]]
    for subscription, each in ((OPS, 1000), ("dead", 300), ("small", 225)):
        for account in accounts[: 1 if subscription == "dead" else 4]:
            await store.fill(
                *(a_delivery(next(numbers), content) for _ in range(each)),
                account=account,
                subscription=subscription,
            )
    keeper = Keeper(store.pipe, store.keys, "w")
    assert (await keeper.look({"dead": 1})).overflows
    return keeper


async def relieved(store: Store, keeper: Keeper, used_of_limit: float) -> Relief:
    """Let the keeper look at a server of which so much is used, until it has freed what it can."""
    (server,) = await store.pipe.servers()
    used = (await server.info("memory"))["used_memory"]
    await server.config_set("maxmemory", int(used / used_of_limit))
    total = Relief(0, 0)
    while reliefs := (await keeper.look({})).reliefs:
        (relief,) = reliefs
        total.entries += relief.entries
        total.deliveries += relief.deliveries
        total.ours = relief.ours
        if total.ours is not None:
            return total
    used, limit = await memory_of(server)
    assert used <= 0.85 * limit
    return total


async def test_a_server_that_is_nearly_full_gives_up_its_log_first_then_dead_letters_then_the_largest_backlog(
    store: Store,
) -> None:
    keeper = await a_store_with_everything(store)
    assert await relieved(store, keeper, 0.8) == Relief(0, 0)
    found = await relieved(store, keeper, 0.86)
    assert found.entries["log"] > 50
    assert (found.entries["dead"], found.deliveries) == (0, {})
    found = await relieved(store, keeper, 1.2)
    assert (found.entries["dead"], found.ours) == (299, None)
    assert found.deliveries.keys() == {OPS}
    given_up = await store.stream(store.keys.given_up(SHARD))
    assert {entry["reason"] for entry in given_up} == {b"backlog full", b"memory full"}
    assert await flaws(store.pipe, store.keys) == []


async def test_a_server_filled_by_others_keeps_a_thousand_deliveries_each_and_reports_our_share(
    store: Store,
) -> None:
    keeper = await a_store_with_everything(store)
    found = await relieved(store, keeper, 100)
    assert found.ours
    (relief,) = (await keeper.look({})).reliefs
    assert (relief.entries.total(), relief.ours) == (0, found.ours), "nothing more is freed"
    assert 1_000_000 < found.ours < 3_000_000
    assert (found.entries["dead"], found.deliveries) == (299, {OPS: 3000})
    waiting = await Reader(store.pipe, store.keys).waiting([OPS, "small"])
    assert [one.deliveries for one in waiting.values()] == [1000, 900]
    assert [len(await store.queue(account)) for account in (ACCOUNT, *NEIGHBOURS[:3])] == [250] * 4
    assert await store.stream(store.keys.log(SHARD)) == []
    assert await flaws(store.pipe, store.keys) == []


@pytest.mark.slow
async def test_an_event_for_2000_subscriptions_is_committed_within_20_ms_of_the_servers_processor(
    store: Store,
) -> None:
    (server,) = await store.pipe.servers()
    spent_ms, names = list[float](), ("used_cpu_user_main_thread", "used_cpu_sys_main_thread")
    for number in range(1, 8):
        delivery = a_delivery(number, b'{"id":"' + b"x" * 700)
        step = a_commit(
            await store.lease(),
            expected=f"v{number - 1}" if number > 1 else "",
            version=f"v{number}",
            deliveries={f"s{place:04}": [delivery] for place in range(2000)},
        )
        before = await server.info("cpu")
        assert (await store.polls.commit(step)).reply is Reply.DONE
        after = await server.info("cpu")
        spent_ms.append(1000 * sum(after[name] - before[name] for name in names))
    assert min(spent_ms) <= 20
