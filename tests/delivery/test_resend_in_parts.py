"""A resend that takes too long for a request is done in parts: each says where the rest begins."""

from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.builders import a_subscription
from tests.support.stories import STORY, Books
from watcher.delivery import resend
from watcher.delivery.resend import Reached, Selection, send_part
from watcher.journal.log import Emitted, read_back
from watcher.store.history import History
from watcher.store.keys import MOST
from watcher.store.pipe import Call, Pipe
from watcher.store.reader import Reader

ALL = Selection(until_ms=MOST - 1)
ACCOUNTS = ("treasury", "bob", "alice", "carol")
ALONE = ("alice", "carol")
"""Of these each is alone in its shard: what is read together is queued in one step."""
OPS = a_subscription(events=("*",))


class SlowPipe(Pipe):
    """A pipe on which no more than so many steps that queue something come through in time."""

    left = 0

    async def send(self, call: Call) -> Any:
        if call.script and call.script.name == "enqueue":
            if not self.left:
                raise TimeoutError  # as if time were over
            self.left -= 1
        return await super().send(call)


@pytest.fixture
async def books(redis_client: Redis, namespace: str) -> Books:
    books = Books(Pipe(redis_client), namespace)
    await books.enroll(*ACCOUNTS)
    for account in ACCOUNTS:
        await books.live(STORY, account, subscriptions=())
    return books


async def part(books: Books, pipe: Pipe, start: Reached, *, within_s: float) -> tuple[int, Reached | None]:
    resent, rest = await send_part(pipe, books.keys, OPS, ALL, start, within_s=within_s)
    return resent.deliveries, rest


async def queued(books: Books, account: str) -> list[int]:
    found = Reader(books.pipe, books.keys).deliveries(OPS.name, account)
    return [delivery.sequence async for delivery in found if delivery]


async def logged(books: Books, account: str) -> list[int]:
    entries = [read_back(record) async for record in History(books.pipe, books.keys).records(account)]
    return [entry.sequence for entry in entries if isinstance(entry, Emitted)]


@pytest.mark.parametrize("steps", [1, 2, 5])
async def test_the_parts_together_send_each_event_once_and_in_order(
    books: Books, redis_client: Redis, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(resend, "_HELD", 3)
    parts, counted = 0, 0
    rest: Reached | None = Reached()
    pipe = SlowPipe(redis_client)
    while rest is not None:
        pipe.left = steps
        count, rest = await part(books, pipe, rest, within_s=0.3)
        parts, counted = parts + 1, counted + count
    assert parts > 2
    wanted = {account: await logged(books, account) for account in ACCOUNTS}
    assert {account: await queued(books, account) for account in ACCOUNTS} == wanted
    assert counted == sum(map(len, wanted.values()))


async def test_a_part_does_not_repeat_what_an_earlier_part_sent_and_a_worker_delivered(
    books: Books, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resend, "_HELD", 3)
    delivered: dict[str, list[int]] = {account: [] for account in ACCOUNTS}
    rest: Reached | None = Reached()
    pipe = SlowPipe(redis_client)
    while rest is not None:
        pipe.left = 2
        _, rest = await part(books, pipe, rest, within_s=0.3)
        for account in ACCOUNTS:
            delivered[account] += await queued(books, account)
            await books.damage("DEL", books.keys.queue(OPS.name, account))
    assert {name: delivered[name] for name in ALONE} == {name: await logged(books, name) for name in ALONE}


async def test_a_resend_that_finds_nothing_in_its_time_says_so(books: Books, redis_client: Redis) -> None:
    start = Reached(is_log=True)
    count, rest = await part(books, SlowPipe(redis_client), start, within_s=0.05)
    assert (count, rest is not None and rest.is_log) == (0, True)
    assert [await queued(books, account) for account in ACCOUNTS] == [[], [], [], []]
