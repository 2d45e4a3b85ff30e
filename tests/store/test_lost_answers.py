"""Answers that get lost: redis-py repeats what it believes undone, and nothing may happen twice."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from redis.asyncio import Redis

from tests.store.lossy_proxy import LossyProxy
from tests.support.servers import ENGINES
from tests.support.stores import (
    ACCOUNT,
    MINUTE_MS,
    NEIGHBOURS,
    OPS,
    PROVIDER,
    SHARD,
    a_commit,
    a_delivery,
    a_store,
    running,
    some_deliveries,
)
from watcher.store.client import connect
from watcher.store.directory import Directory, Write
from watcher.store.schedule import Lease, Reply

pytestmark = pytest.mark.parametrize("engine", ENGINES)


@contextmanager
def each_repeated(proxy: LossyProxy, *, at_least: int) -> Iterator[None]:
    """Claim that the block lost so many answers, so that something was really executed again."""
    lost = proxy.lost
    yield
    assert proxy.lost - lost >= at_least


@pytest.fixture
def url(server_url_of: Callable[[str], str], engine: str) -> str:
    return server_url_of(engine)


@pytest.mark.parametrize("runners", [0, 2])
async def test_a_commit_whose_answer_was_lost_is_committed_once(
    redis_client: Redis, namespace: str, url: str, runners: int
) -> None:
    direct = a_store(redis_client, namespace)
    async with LossyProxy(url, lose_every=2) as proxy, connect(proxy.url) as client:
        store = a_store(client, namespace)
        async with running(store.pipe, runners):
            with each_repeated(proxy, at_least=3):
                for number in range(1, 7):
                    step = a_commit(
                        await direct.lease(),
                        expected=f"v{number - 1}" if number > 1 else "",
                        version=f"v{number}",
                        notes=[b"%d" % number],
                        deliveries={OPS: [a_delivery(number)]},
                    )
                    reply, _ = await store.polls.commit(step)
                    assert reply in (Reply.DONE, Reply.DONE_BEFORE)
    assert await direct.queue() == [each.entry for each in some_deliveries(*range(1, 7))]
    assert [entry["entry"] for entry in await direct.stream(direct.keys.log(SHARD))] == [
        entry for number in range(1, 7) for entry in (b"0 %d" % number, b"0 evt_%d %d" % (number, number))
    ]
    assert {body[:2] for body in (await direct.bodies()).values()} == {b"2 "}


async def test_a_commit_whose_answer_was_lost_leases_its_queue_once_and_says_so(
    redis_client: Redis, namespace: str, url: str
) -> None:
    direct = a_store(redis_client, namespace)
    async with LossyProxy(url, lose_every=2) as proxy, connect(proxy.url) as client:
        store = a_store(client, namespace)
        with each_repeated(proxy, at_least=3):
            for number, account in enumerate(NEIGHBOURS[:6], 1):
                one = a_delivery(number, previous=None)
                step = a_commit(await direct.lease(account), deliveries={OPS: [one]})
                step = store.leasing(step, OPS)
                assert (await store.polls.commit(step)).leased == {OPS: (one,)}
                scores = await direct.scores(direct.keys.queues(SHARD, OPS))
                assert scores[account] == step.leased_until


async def test_commits_of_many_accounts_that_share_a_lost_pipeline_are_committed_once(
    redis_client: Redis, namespace: str, url: str
) -> None:
    direct = a_store(redis_client, namespace)
    accounts = NEIGHBOURS[:10]
    async with LossyProxy(url, lose_every=2) as proxy, connect(proxy.url) as client:
        store = a_store(client, namespace)
        async with running(store.pipe):
            with each_repeated(proxy, at_least=2):
                for number in range(1, 5):
                    steps = [
                        a_commit(
                            await direct.lease(account),
                            expected=f"v{number - 1}" if number > 1 else "",
                            version=f"v{number}",
                            deliveries={OPS: [a_delivery(number)]},
                        )
                        for account in accounts
                    ]
                    replies = await asyncio.gather(*map(store.polls.commit, steps))
                    assert {one.reply for one in replies} <= {Reply.DONE, Reply.DONE_BEFORE}
    for account in accounts:
        assert await direct.queue(account) == [each.entry for each in some_deliveries(1, 2, 3, 4)]


async def test_a_settle_whose_answer_was_lost_removes_one_delivery(
    redis_client: Redis, namespace: str, url: str
) -> None:
    direct = a_store(redis_client, namespace)
    await direct.fill(*some_deliveries(1, 2, 3, 4))
    async with LossyProxy(url, lose_every=2) as proxy, connect(proxy.url) as client:
        queues = a_store(client, namespace).queues
        with each_repeated(proxy, at_least=2):
            for number in (1, 2, 3):
                lease = await direct.lease_queue()
                head = a_delivery(number).entry
                reply, deadline = await queues.delivered(
                    OPS, lease, head, until=queues.until(lease, MINUTE_MS)
                )
                assert reply is Reply.DONE
                assert await direct.scores(direct.keys.queues(SHARD, OPS)) == {ACCOUNT: deadline}
    assert await direct.queue() == [a_delivery(4).entry]


async def test_a_dead_letter_whose_answer_was_lost_is_kept_once(
    redis_client: Redis, namespace: str, url: str
) -> None:
    direct = a_store(redis_client, namespace)
    await direct.fill(*some_deliveries(1, 2))
    async with LossyProxy(url, lose_every=1_000_000) as proxy, connect(proxy.url) as client:
        queues = a_store(client, namespace).queues
        await queues.backlog(OPS)
        proxy.scripts = 999_999
        with each_repeated(proxy, at_least=1):
            lease = await direct.lease_queue()
            await queues.dead(
                OPS, lease, a_delivery(1).entry, until=queues.until(lease, MINUTE_MS), reason="410"
            )
    assert len(await direct.stream(direct.keys.dead(SHARD, OPS))) == 1
    assert await direct.queue() == [a_delivery(2).entry]


async def test_a_failure_whose_answer_was_lost_counts_once(
    redis_client: Redis, namespace: str, url: str
) -> None:
    direct = a_store(redis_client, namespace)
    await direct.fill(a_delivery())
    async with LossyProxy(url, lose_every=2) as proxy, connect(proxy.url) as client:
        store = a_store(client, namespace)
        with each_repeated(proxy, at_least=2):
            for count in (1, 2, 3):
                await store.queues.retry(OPS, await direct.lease_queue(), a_delivery().entry, wait_ms=5000)
                assert (await direct.tries())[0] == count
    async with LossyProxy(url, lose_every=2) as proxy, connect(proxy.url) as client:
        store = a_store(client, namespace)
        with each_repeated(proxy, at_least=2):
            for _ in range(3):
                lease = await direct.lease()
                await store.polls.postpone(PROVIDER, lease, why="down", at_least_ms=0, waits_ms=[5000])
    failing = await direct.pipe.command("HGET", direct.keys.failing(SHARD, PROVIDER), ACCOUNT)
    assert failing.startswith(b"3 ")


async def test_a_claim_whose_answer_was_lost_loses_no_account(
    redis_client: Redis, namespace: str, url: str
) -> None:
    direct = a_store(redis_client, namespace)
    accounts = NEIGHBOURS[:20]
    await direct.due(direct.keys.polls(SHARD, PROVIDER), **dict.fromkeys(accounts, -1))
    found: list[Lease] = []
    async with LossyProxy(url, lose_every=3) as proxy, connect(proxy.url) as client:
        store = a_store(client, namespace)
        with each_repeated(proxy, at_least=2):
            async with asyncio.timeout(10):
                while len({lease.member for lease in found}) < len(accounts):
                    claimed = await store.polls.claim(PROVIDER, SHARD, lease_ms=20, at_most=4)
                    found.extend(claimed.leases)
    assert len(set(found)) == len(found), "the same lease was given twice"


async def test_a_record_whose_answer_was_lost_is_written_or_deleted_once(
    redis_client: Redis, namespace: str, url: str
) -> None:
    direct = a_store(redis_client, namespace)
    async with LossyProxy(url, lose_every=2) as proxy, connect(proxy.url) as client:
        store = a_store(client, namespace)
        directory = Directory(store.pipe, store.keys)
        with each_repeated(proxy, at_least=3):
            for number, name in enumerate(NEIGHBOURS[:6]):
                write = Write("account", name, {"provider": PROVIDER}, b"%d" % number, expected=0)
                outcome, version = await directory.put(write)
                assert (outcome, version > 0) == ("done", True)
        changes = direct.keys.changes(SHARD)
        assert await direct.pipe.command("XLEN", changes) == 6
        with each_repeated(proxy, at_least=2):
            for name in NEIGHBOURS[:6]:
                assert (await directory.delete("account", name)).outcome in ("done", "missing")
        assert await direct.pipe.command("XLEN", changes) == 12
