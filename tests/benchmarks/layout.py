"""How long a store of version 0.1 takes to be moved to this version's layout, and back, with a backlog.

    python -m tests.benchmarks.layout [--accounts 100000] [--deliveries 100000] [--engine valkey]

Accounts of ten assets at one provider, a full log and queues of two deliveries each are written as 0.1 writes
them. Then a mover goes up and back on the event loop of `watcher run`. A task of that loop which sleeps for a
millisecond at a time notes the longest gap: a worker that stands by answers probes and signals meanwhile.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis

from tests.benchmarks.reload import Ticker
from tests.support.old_store import AT_MS, an_entry, an_event
from tests.support.servers import real_server
from tests.support.stores import running
from watcher.service.serve import loop_factory
from watcher.store.client import connect
from watcher.store.keys import SHARDS, Keys, OldKeys, shard_of
from watcher.store.layout import Layout
from watcher.store.move import Counts, Mover
from watcher.store.pipe import Pipe

SUBSCRIPTIONS = ("ops", "audit")
RECORDS = 10_000
"""In the log of each shard, at most: as many as 0.1 keeps."""

_ASSETS = 10
_PER_QUEUE = 2
_AT_ONCE = 1000

Command = tuple[Any, ...]


class Moved(NamedTuple):
    """One way: how much, how long, the longest gap of the event loop and its own work in one, the server's
    memory, and how long a script kept the server busy, on the average."""

    to: int
    counts: Counts
    took_s: float
    longest_ms: float
    busy_ms: float
    before_mb: float
    after_mb: float
    step_us: float
    steps: int


def written(accounts: int, deliveries: int) -> Iterator[Command]:
    """The commands that write the store of 0.1."""
    keys = OldKeys("watcher")
    yield (
        "HSET",
        keys.meta(),
        "shards",
        SHARDS,
        "schema",
        1,
        "providers",
        '["loopring"]',
        "enrolled",
        "list",
    )
    effect = dict.fromkeys(("total", "locked", "pending_deposit", "pending_withdrawal"), "1234.567890123")
    assets = {
        str(number): [f"{1000 + number}.123456789", "0", "0", "0", f"T{number}", f"Token {number}", 18]
        for number in range(_ASSETS)
    }
    logged = [0] * SHARDS
    left = deliveries
    for number in range(accounts):
        name = f"account-{number}"
        shard = shard_of(name)
        previous = dict.fromkeys(SUBSCRIPTIONS, AT_MS + number)
        body = {
            "schema": 1,
            "source": f"{number:032x}",
            "watched": None,
            "previous": previous,
            "assets": assets,
        }
        fields = (
            "version",
            f"{number:016x}",
            "sequence",
            AT_MS,
            "body",
            orjson.dumps(body),
            "polled_at",
            AT_MS,
        )
        yield ("HSET", keys.state(name), *fields)
        yield ("ZADD", keys.polls(shard, "loopring"), AT_MS + number, name)
        says: dict[str, Any] = {
            "effect": effect,
            "before": effect,
            "after": effect,
            "account": {"name": name},
        }
        events = [an_event(_PER_QUEUE * number + n, "total.increased", **says) for n in range(_PER_QUEUE)]
        for event in events:
            if logged[shard] < RECORDS:
                logged[shard] += 1
                yield ("XADD", keys.log(shard), "*", "account", name, "entry", b"%d %b" % (AT_MS, event))
        for subscription in SUBSCRIPTIONS:
            if left > 0:
                left -= len(events)
                queue = [an_entry(event, subscription, AT_MS) for event in events]
                yield ("RPUSH", keys.queue(subscription, name), *queue)
                yield ("ZADD", keys.queues(shard, subscription), AT_MS + 0.5, name)
                yield ("ZADD", keys.due_subscriptions(shard), "LT", AT_MS, subscription)


async def write(client: Redis, accounts: int, deliveries: int) -> None:
    commands = written(accounts, deliveries)
    while part := [*islice(commands, _AT_ONCE)]:
        pipeline = client.pipeline(transaction=False)
        for command in part:
            pipeline.execute_command(*command)
        await pipeline.execute()


async def measure(url: str, accounts: int, deliveries: int) -> AsyncIterator[Moved]:
    """Move a store up, and back."""
    async with connect(url) as client:
        await write(client, accounts, deliveries)
        pipe, keys = Pipe(client), Keys("watcher")
        for to in (2, 1):
            await Layout(pipe, keys).want(to)
            before = await client.info("memory")
            await client.config_resetstat()
            ticker = Ticker()
            async with running(pipe):
                ticking = asyncio.create_task(ticker.run())
                started = time.perf_counter()
                counts = await Mover(pipe, keys, "mover").advance()
                took_s = time.perf_counter() - started
                ticking.cancel()
                with suppress(asyncio.CancelledError):
                    await ticking
            assert counts
            after, stats = await client.info("memory"), await client.info("commandstats")
            scripts = stats["cmdstat_evalsha"]
            memory = (before["used_memory"] / 1e6, after["used_memory"] / 1e6)
            gaps_ms = (1000 * ticker.longest_s, 1000 * ticker.busy_s)
            yield Moved(to, counts, took_s, *gaps_ms, *memory, scripts["usec_per_call"], scripts["calls"])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--deliveries", type=int, default=100_000)
    parser.add_argument("--engine", default="valkey")
    asked = parser.parse_args()
    with real_server(asked.engine) as server:
        async for moved in measure(server.url, asked.accounts, asked.deliveries):
            counts = ", ".join(f"{count:,} {name}" for name, count in moved.counts._asdict().items())
            print(f"to layout {moved.to}: {counts}".replace("_", " "))
            print(f"  {moved.took_s:.1f} s; the loop stood still for {moved.longest_ms:.0f} ms at most")
            print(f"  (its own work between two turns: {moved.busy_ms:.1f} ms at most)")
            print(f"  {moved.steps:,} scripts of {moved.step_us:.0f} µs of the server each")
            print(f"  {moved.before_mb:.0f} MB of the server before, {moved.after_mb:.0f} after")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())
