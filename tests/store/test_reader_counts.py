"""Backlogs are counted quickly, however large and however many they are."""

import math

import pytest
from redis.asyncio import Redis

from tests.support.servers import EVERY_ENGINE
from tests.support.stores import OPS, a_store
from watcher.journal.events import Delivery
from watcher.store import reader
from watcher.store.keys import SHARDS, Keys, shard_of
from watcher.store.pipe import Pipe
from watcher.store.queues import Queues
from watcher.store.reader import Backlog, Reader
from watcher.store.schedule import Schedule

NOW_MS = 1_795_175_095_846

every_engine = pytest.mark.parametrize("engine", EVERY_ENGINE)


def a_delivery(sequence: int) -> Delivery:
    return Delivery(f"evt_{sequence}", "total.increased", sequence, b"{", "ops")


async def queued(client: Redis, keys: Keys, subscription: str, account: str, *sequences: int) -> None:
    queues = Queues(Schedule(Pipe(client)), keys)
    await queues.enqueue(subscription, account, [a_delivery(sequence) for sequence in sequences])


@every_engine
async def test_queues_are_counted_and_the_oldest_delivery_found(redis_client: Redis, namespace: str) -> None:
    keys = Keys(namespace)
    for number in range(40):  # in all shards, or nearly
        await queued(redis_client, keys, "ops", f"account-{number}", 2000 - number, 5000)
    await queued(redis_client, keys, "others", "account-1", 7)
    await queued(redis_client, keys, "unknown", "account-1", 1)
    waiting = await Reader(Pipe(redis_client), keys).waiting(["ops", "others", "idle"])
    assert waiting == {
        "ops": Backlog(queues=40, deliveries=80, oldest_sequence=1961),
        "others": Backlog(queues=1, deliveries=1, oldest_sequence=7),
        "idle": Backlog(),
    }


@every_engine
async def test_dead_letters_are_counted(redis_client: Redis, namespace: str) -> None:
    keys = Keys(namespace)
    for shard in range(SHARDS):
        await redis_client.xadd(keys.dead(shard, "ops"), {b"x": b"y"})
    assert await Reader(Pipe(redis_client), keys).waiting(["ops"]) == {
        "ops": Backlog(queues=0, dead=SHARDS, oldest_sequence=None)
    }


async def test_without_names_redis_is_not_asked(redis_client: Redis, namespace: str) -> None:
    assert await Reader(Pipe(redis_client), Keys(namespace)).waiting([]) == {}


@pytest.mark.parametrize("oldest_is", ["due first", "due last"])
async def test_both_ends_of_the_schedule_of_a_long_backlog_are_read(
    redis_client: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch, oldest_is: str
) -> None:
    monkeypatch.setattr(reader, "_QUEUES_MEASURED", 8)
    keys = Keys(namespace)
    accounts = [f"account-{number}" for number in range(900) if shard_of(f"account-{number}") == 3]
    assert len(accounts) > 40
    for number, account in enumerate(accounts):
        await queued(redis_client, keys, "ops", account, 1000 + number)
    due_ms = {account: NOW_MS + number for number, account in enumerate(accounts)}
    due_ms[accounts[0]] = NOW_MS - 1 if oldest_is == "due first" else NOW_MS + 86_400_000
    await redis_client.zadd(keys.queues(3, "ops"), due_ms)
    waiting = await Reader(Pipe(redis_client), keys).waiting(["ops"])
    assert waiting["ops"] == Backlog(queues=len(accounts), deliveries=len(accounts), oldest_sequence=1000)


async def test_many_waiting_subscriptions_take_a_bounded_number_of_commands(
    redis_client: Redis, namespace: str
) -> None:
    keys, names = Keys(namespace), [f"s{number}" for number in range(260)]
    pipeline = redis_client.pipeline(transaction=False)
    for name in names:
        for number in range(20):
            account = f"account-{number}"
            pipeline.zadd(keys.queues(shard_of(account), name), {account: NOW_MS})
            pipeline.zadd(keys.due_subscriptions(shard_of(account)), {name: NOW_MS})
            pipeline.rpush(keys.queue(name, account), a_delivery(number + 1).entry)
    await pipeline.execute()
    pipe = _CountingPipe(redis_client)
    waiting = await Reader(pipe, keys).waiting(names)
    assert all(found.queues == 20 and found.oldest_sequence for found in waiting.values())
    counting = SHARDS * (3 + math.ceil(len(names) / 200))
    assert pipe.calls <= counting + len(names) // 2


async def test_only_subscriptions_with_a_backlog_or_dead_letters_are_read(
    redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.fill(a_delivery(1), notes=[b"note"])
    lease, (head,) = await store.lease_queue(), await store.queue()
    until = store.queues.until(lease, 60_000)
    await store.queues.dead(OPS, lease, head, until=until, reason="410", record=b"{}")
    await queued(redis_client, store.keys, "waits", "account-1", 7)
    names = [OPS, "waits", *(f"idle-{number}" for number in range(5_000))]
    pipe = _CountingPipe(redis_client)
    waiting = await Reader(pipe, store.keys).waiting(names)
    assert len(waiting) == len(names)
    assert {name: found for name, found in waiting.items() if found != Backlog()} == {
        OPS: Backlog(dead=1),
        "waits": Backlog(queues=1, deliveries=1, oldest_sequence=7),
    }
    assert pipe.calls <= 3 * SHARDS + 2 + 3, "those that are noted, their counts, and the oldest that waits"


class _CountingPipe(Pipe):
    calls = 0

    async def command(self, *command: object) -> object:
        self.calls += 1
        return await super().command(*command)

    async def script(self, *arguments: object) -> object:
        self.calls += 1
        return await super().script(*arguments)  # type: ignore[arg-type]


@every_engine
async def test_due_work_is_counted_until_it_is_claimed(redis_client: Redis, namespace: str) -> None:
    keys = Keys(namespace)
    await redis_client.zadd(keys.polls(0, "loopring"), {"a": NOW_MS - 1, "b": NOW_MS, "leased": NOW_MS + 1})
    await redis_client.zadd(keys.polls(9, "loopring"), {"c": 0})
    await redis_client.zadd(keys.polls(0, "gone"), {"d": 0})
    await redis_client.zadd(keys.due_subscriptions(4), {"ops": NOW_MS - 5, "later": NOW_MS + 9})
    await redis_client.zadd(keys.queues(4, "ops"), {"a": NOW_MS - 5, "e": NOW_MS + 30_000})
    assert await Reader(Pipe(redis_client), keys).count_due(["loopring", "shop"], now_ms=NOW_MS) == 4
