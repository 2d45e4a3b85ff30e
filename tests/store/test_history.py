"""The event log is read in the order in which it was written, over all of its shards."""

from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.builders import a_snapshot
from tests.support.servers import EVERY_ENGINE
from tests.support.stores import OPS, SHARD, a_delivery, a_store
from tests.support.stories import Books, a_ms_later
from watcher.journal.log import Record
from watcher.store.history import START, History, place
from watcher.store.keys import SHARDS, shard_of
from watcher.store.pipe import Pipe

ACCOUNTS = [f"account-{number}" for number in range(12)]


@pytest.fixture
async def books(redis_client: Redis, namespace: str) -> Books:
    return Books(Pipe(redis_client), namespace)


@pytest.fixture
async def history(books: Books) -> History:
    for account in ACCOUNTS:
        await books.live([a_snapshot(ETH="1"), a_snapshot(ETH="2"), a_snapshot(ETH="3")], account)
    return History(books.pipe, books.keys)


async def listed(records: AsyncIterator[Record]) -> list[Record]:
    return [record async for record in records]


@pytest.mark.parametrize("engine", EVERY_ENGINE)
async def test_all_shards_are_read_as_one_log(history: History) -> None:
    assert len({shard_of(account) for account in ACCOUNTS}) > 5
    records = await listed(history.in_order(await history.ends()))
    assert len(records) == 3 * len(ACCOUNTS)
    assert all(place(one.id)[0] <= place(next_.id)[0] for one, next_ in pairwise(records))
    assert await listed(history.in_order(await history.ends(), newest_first=True)) == records[::-1]


@pytest.mark.parametrize("engine", EVERY_ENGINE)
async def test_a_log_longer_than_a_page_is_read_whole_in_both_directions(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await listed(history.in_order(await history.ends()))
    monkeypatch.setattr("watcher.store.history._PAGE", 2)
    assert await listed(history.in_order(await history.ends())) == whole
    assert await listed(history.in_order(await history.ends(), newest_first=True)) == whole[::-1]


async def test_one_account_is_read_without_its_neighbours(history: History) -> None:
    records = await listed(history.records("account-3"))
    assert [record.content["type"] for record in records] == [
        "baseline",
        "total.increased",
        "total.increased",
    ]
    assert {record.account for record in records} == {"account-3"}
    assert len(await listed(history.records())) == 3 * len(ACCOUNTS)


async def test_a_record_has_the_previous_sequence_for_each_subscription(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(a_delivery(1))
    await store.fill(a_delivery(2))
    records = await listed(History(store.pipe, store.keys).of_shard(SHARD))
    assert [record.previous for record in records] == [{OPS: None}, {OPS: 1}]


async def test_nothing_older_than_a_time_is_read(history: History) -> None:
    ends = await history.ends()
    records = await listed(history.in_order(ends))
    since_ms = place(records[20].id)[0]
    for newest_first in (False, True):
        recent = await listed(history.in_order(ends, since_ms=since_ms, newest_first=newest_first))
        assert {record.id for record in recent} == {r.id for r in records if place(r.id)[0] >= since_ms}


async def test_records_after_the_last_one_are_read_once(history: History, books: Books) -> None:
    ends = await history.ends()
    assert await history.after(ends) == ([], ends)
    await a_ms_later(books.pipe)
    await books.live([a_snapshot(ETH="1")], "newcomer")
    news, ends = await history.after(ends)
    assert [record.account for record in news] == ["newcomer"]
    assert (await history.after(ends))[0] == []
    assert (await history.after([START] * SHARDS))[0][-1] == news[0]


@pytest.mark.parametrize(
    "entry", [b"", b"x", b"5", b"5 ", b"5 [", b"5 [1]", b"5 \xff", b"5 " + b"[" * 100_000]
)
async def test_an_unreadable_record_is_empty_and_hides_no_other(
    books: Books, history: History, entry: bytes
) -> None:
    key = books.keys.log(shard_of("account-0"))
    await books.pipe.command("XADD", key, "*", "account", "account-0", "entry", entry)
    await books.pipe.command("XADD", key, "*", "other", "fields")
    damaged: list[dict[str, Any]] = [record.content for record in await listed(history.records("account-0"))]
    assert damaged[3:] == [{}]
