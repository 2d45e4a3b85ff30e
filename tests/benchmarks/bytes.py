"""What data in Redis take, in bytes, and what each script costs the server, in µs: on Redis and Valkey.

    python -m tests.benchmarks.bytes            # about three minutes
    python -m tests.benchmarks.bytes --quick    # seconds: shows that it runs, its figures mean nothing

Steps are the journal's own, and keys are distinguished by name only: the figures of two layouts compare.
Every schedule is a skip list, as it is where there are many accounts.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from redis.asyncio import Redis

from tests.benchmarks.stage import PROVIDER, a_namespace, account_names
from tests.support.builders import a_subscription
from tests.support.servers import ENGINES, real_server
from tests.support.stores import NEIGHBOURS, SHARD, Store, a_store, running
from watcher.journal.account import AccountState, Rules
from watcher.journal.interest import Interest
from watcher.journal.step import Reading, diff
from watcher.snapshot import Asset, Balance, Row, Snapshot
from watcher.store.client import connect
from watcher.store.keys import SHARDS
from watcher.store.polls import Commit
from watcher.store.schedule import Lease, Reply

_SMALL = "zset-max-listpack-entries"
_ASSETS = 10
_NOW_MS = 1_795_175_125_000
_HOUR_MS = 3_600_000
_OF_LOG = ("events", "sizes")
_TOGETHER = 200
_PER_CLAIM = 16
_ROUNDS = 5
"""Of each measure of time. The fastest counts, as other programs share the machine."""


@dataclass
class Bench:
    """Accounts of a namespace of their own, all in hand, and each with its baseline."""

    client: Redis
    store: Store
    names: Sequence[str]
    interest: Interest
    leases: dict[str, Lease] = field(default_factory=dict)
    states: dict[str, AccountState] = field(default_factory=dict)

    async def move(self, account: str, assets: int, times: int) -> None:
        """Commit that a poll found more of the first so many assets; the lease stays."""
        rows = {}
        for i in range(_ASSETS):
            asset = Asset(str(i), f"TOK{i}", f"Token {i}", 18)
            total = f"{1234 + (times if i < assets else 0)}.567890123456789"
            rows[asset.id] = Row(asset, Balance(total, "12.5", "0", "0"))
        reading = Reading(account, PROVIDER, "0" * 32, Snapshot(rows, None, True), _NOW_MS)
        before, version = self.states.get(account), f"{times:016x}"
        step = diff(before, reading, rules=Rules(), interest=self.interest, version=version, now_ms=_NOW_MS)
        assert step
        lease, expected = self.leases[account], before.version if before else ""
        commit = Commit(account, PROVIDER, lease, expected, step, lease.deadline)
        assert (await self.store.polls.commit(commit)).reply is Reply.DONE
        self.states[account] = step.state

    async def all(self, do: Callable[[str], Awaitable[object]], *, joined: bool = True) -> None:
        """Do it for all accounts: each alone, or as many at once as a busy worker does."""
        if not joined:
            for name in self.names:
                await do(name)
            return
        async with running(self.store.pipe):
            for i in range(0, len(self.names), _TOGETHER):
                await asyncio.gather(*(do(name) for name in self.names[i : i + _TOGETHER]))

    async def usage(self) -> Counter[str]:
        """Say how many bytes the keys of each kind take, by MEMORY USAGE."""
        found: Counter[str] = Counter()
        async for key in self.client.scan_iter(match=f"{self.store.keys.namespace}:*", count=1000):
            _, tag, *kind = key.decode().split(":")
            size = await self.client.memory_usage(key, samples=0)
            found[kind[0] if tag.startswith("{") else tag] += size or 0
        return found


async def _used(client: Redis) -> int:
    return int((await client.info("memory"))["used_memory"])


@asynccontextmanager
async def a_bench(client: Redis, names: Sequence[str], subscriptions: int = 1) -> AsyncIterator[Bench]:
    interest = Interest({f"ops{i}": a_subscription(f"ops{i}") for i in range(subscriptions)})
    bench = Bench(client, a_store(client, a_namespace()), names, interest)
    await bench.store.now_ms()
    await bench.store.roster.enroll({PROVIDER: names}, now_ms=0)
    for shard in range(SHARDS):
        claimed = await bench.store.polls.claim(PROVIDER, shard, lease_ms=_HOUR_MS, at_most=len(names))
        bench.leases.update((lease.member, lease) for lease in claimed.leases)
    await bench.all(partial(bench.move, assets=0, times=0))
    yield bench
    await client.execute_command("FLUSHALL", "SYNC")  # type: ignore[no-untyped-call]  # else it is freed beside the next


async def bytes_of_accounts(client: Redis, accounts: int) -> dict[str, float]:
    """Weigh accounts, then the log that their events leave where nothing waits for them."""
    before = await _used(client)
    async with a_bench(client, account_names(accounts), 0) as bench:
        usage = await bench.usage()
        for shard in range(SHARDS):
            await client.delete(bench.store.keys.log(shard))
        used = await _used(client) - before
        await bench.all(partial(bench.move, assets=_ASSETS, times=1))
        after = await bench.usage()
    log = sum(after[kind] for kind in (*_OF_LOG, "bodies"))
    kept, what = sum(usage[kind] for kind in usage.keys() - _OF_LOG), "account of 10 assets, bytes by"
    return {
        f"{what} MEMORY USAGE": kept / accounts,
        f"{what} used_memory": used / accounts,
        "event of the log that nothing waits for, bytes": log / (accounts * _ASSETS),
    }


async def bytes_of_deliveries(
    client: Redis, accounts: int, per_queue: int, subscriptions: int = 1
) -> dict[str, float]:
    """Let events of several assets, and of several polls, wait for all subscriptions."""
    async with a_bench(client, account_names(accounts), subscriptions) as bench:
        before, assets = await bench.usage(), min(per_queue, _ASSETS)
        for poll in range(per_queue // assets):
            await bench.all(partial(bench.move, assets=assets, times=poll + 1))
        more = await bench.usage()
        more.subtract(before)
    bodies, last = more.pop("bodies"), more.pop("queued")
    beside = sum(size for kind, size in more.items() if kind not in _OF_LOG)
    count, what = accounts * per_queue * subscriptions, f"delivery, {per_queue} each in"
    what = f"{what} {accounts * subscriptions:,} queues of {accounts:,}, bytes"
    return {
        f"{what} beside its body": beside / count,
        f"{what} of bodies": bodies / count,
        f"{what} of the last sequence, which stay": last / count,
    }


class Times(dict[str, float]):
    """The fastest of several measures, by what was measured."""

    async def note(self, what: str, client: Redis, do: Awaitable[object], steps: int) -> None:
        """Note how many µs of the server's time a step of scripts takes."""
        await client.config_resetstat()
        await do
        spent = await client.info("commandstats")
        us = sum(float(spent[name]["usec"]) for name in ("cmdstat_evalsha", "cmdstat_eval") if name in spent)
        self[f"{what}, µs"] = min(us / steps, self.get(f"{what}, µs", us))


async def time_of_polls(client: Redis, accounts: int, subscriptions: int, *, joined: bool) -> Times:
    times, how = Times(), ", joined" if joined else ""
    async with a_bench(client, NEIGHBOURS[:accounts], subscriptions) as bench:

        async def touch(name: str) -> None:
            version, lease = bench.states[name].version, bench.leases[name]
            reply = await bench.store.polls.touch(
                PROVIDER, lease, version=version, polled_at_ms=_NOW_MS, due_ms=lease.deadline
            )
            assert reply is Reply.DONE

        for number in range(_ROUNDS):
            moved = bench.all(partial(bench.move, assets=1, times=number + 1), joined=joined)
            await times.note(f"commit of an event to {subscriptions:,}{how}", client, moved, accounts)
            if subscriptions == 1:
                await times.note(f"touch{how}", client, bench.all(touch, joined=joined), accounts)
    return times


async def time_of_queues(client: Redis, accounts: int, per_queue: int, *, joined: bool) -> Times:
    times, how = Times(), f"{per_queue} waiting{', joined' * joined}"
    async with a_bench(client, NEIGHBOURS[:accounts]) as bench:
        queues, leases, waiting = bench.store.queues, dict[str, Lease](), dict[str, list[bytes]]()

        async def claim() -> None:
            for _ in range(0, accounts, _PER_CLAIM):
                claimed = await queues.claim("ops0", SHARD, lease_ms=_HOUR_MS, at_most=_PER_CLAIM)
                leases.update((lease.member, lease) for lease in claimed.leases)

        async def begin(name: str) -> None:
            lease, until = leases[name], queues.until(leases[name], _HOUR_MS)
            begun = await queues.begin("ops0", lease, until=until, at_most=20)
            leases[name] = lease._replace(deadline=until)
            waiting[name] = [entry for entry, _ in begun.deliveries]

        async def settle(name: str) -> None:
            lease, head = leases[name], waiting[name].pop(0)
            until = queues.until(lease, _HOUR_MS)
            reply, deadline = await queues.delivered("ops0", lease, head, until=until)
            assert reply is Reply.DONE
            leases[name] = lease._replace(deadline=deadline)

        for number in range(_ROUNDS):
            await bench.all(partial(bench.move, assets=per_queue, times=number + 1))
            await times.note(f"claim of {_PER_CLAIM} queues", client, claim(), accounts // _PER_CLAIM)
            assert len(leases) == accounts
            await times.note(f"begin, {how}", client, bench.all(begin, joined=joined), accounts)
            for _ in range(per_queue):
                await times.note(f"settle, {how}", client, bench.all(settle, joined=joined), accounts)
    return times


async def measure(url: str, *, scale: float) -> dict[str, float]:
    accounts, some, found = int(2000 * scale), int(64 * max(scale, 0.5)), dict[str, float]()
    async with connect(url) as client:
        for _ in range(2):  # the first knows no script yet
            found |= await bytes_of_accounts(client, accounts)
        for per_queue in (1, 5, 50):
            found |= await bytes_of_deliveries(client, accounts, per_queue)
        await client.config_set(_SMALL, 128)  # as it comes: each of these schedules has one member
        found |= await bytes_of_deliveries(client, 1, 1, accounts)
        await client.config_set(_SMALL, 0)
        for joined in (False, True):
            for subscriptions in (1, 3, 10, 100):
                found |= await time_of_polls(client, some, subscriptions, joined=joined)
            for per_queue in (1, 10):
                found |= await time_of_queues(client, some, per_queue, joined=joined)
        found |= await time_of_polls(client, 1, accounts, joined=False)
    return found


def main() -> None:
    scale, found = 0.02 if "--quick" in sys.argv else 1.0, {}
    for engine in ENGINES:
        with real_server(engine, f"--{_SMALL}", "0") as server:
            found[engine] = asyncio.run(measure(server.url, scale=scale))
    print(f"| | {' | '.join(found)} |\n|---|{'---:|' * len(found)}")
    for what in found["valkey"]:
        print(f"| {what} | {' | '.join(f'{of_engine[what]:,.1f}' for of_engine in found.values())} |")


if __name__ == "__main__":
    main()
