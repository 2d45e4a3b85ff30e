"""A worker's side of the store for tests, and builders for what it writes.

Refuses to wait: a lease that ends, or a member that falls due, is a score that is set.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.asyncio import Redis

from tests.support.builders import a_state
from watcher.engine.breaker import Failure, gone, paused
from watcher.journal.account import Advance
from watcher.journal.events import Delivery, Event
from watcher.journal.step import Step
from watcher.snapshot import Balance
from watcher.store.keys import Keys, shard_of
from watcher.store.members import Roster
from watcher.store.pipe import Pipe
from watcher.store.polls import Commit, Polls
from watcher.store.queues import (
    BOUNDS,
    LEASE_MS,
    Begun,
    Bounds,
    Breaker,
    Breakers,
    Change,
    Queues,
    read_tries,
)
from watcher.store.schedule import Lease, Schedule

ACCOUNT = "treasury"
SHARD = shard_of(ACCOUNT)
PROVIDER = "loopring"
OPS = "ops"
MINUTE_MS = 60_000

NEIGHBOURS = tuple(name for name in map("account-{}".format, range(2000)) if shard_of(name) == SHARD)
"""Accounts that share the shard of ACCOUNT."""

_READ = "return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))"
_READ_BY_TYPE: Mapping[bytes, tuple[object, ...]] = {
    b"string": ("GET",),
    b"hash": ("HGETALL",),
    b"list": ("LRANGE", 0, -1),
    b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    b"stream": ("XRANGE", "-", "+"),
}


@dataclass(frozen=True, slots=True)
class Store:
    """All of one worker's ways into a namespace, over one pipe."""

    keys: Keys
    pipe: Pipe
    schedule: Schedule
    polls: Polls
    queues: Queues
    roster: Roster

    async def now_ms(self) -> int:
        """The server's time."""
        await self.schedule.read_clock()
        return self.schedule.now_ms()

    def leasing(self, step: Commit, *subscriptions: str) -> Commit:
        """The same step, which leases the queues of these subscriptions to its worker."""
        return step._replace(to_lease=subscriptions, leased_until=self.schedule.now_ms() + LEASE_MS)

    async def damage(self, key: str) -> None:
        """Put something of another type in the place of a key."""
        await self.pipe.command("DEL", key)
        is_text = ":queue:" in key or ":account:" in key
        await self.pipe.command(*(("HSET", key, "is") if is_text else ("SET", key)), "damaged")

    async def due(self, key: str, **score_ms: float) -> None:
        """Set when members of a schedule are due, in ms from now."""
        now = await self.now_ms()
        for member, ms in score_ms.items():
            await self.pipe.command("ZADD", key, now + ms, member)

    async def scores(self, key: str) -> dict[str, float]:
        """When the members of a schedule are due, in server ms."""
        answer = await self.pipe.command("ZRANGE", key, 0, -1)
        return {name.decode(): float(await self.pipe.command("ZSCORE", key, name)) for name in answer}

    async def lease(self, account: str = ACCOUNT, provider: str = PROVIDER) -> Lease:
        """Take the poll of an account for a minute, even from another worker."""
        return await self._lease(self.keys.polls(shard_of(account), provider), account)

    async def lease_queue(self, account: str = ACCOUNT, subscription: str = OPS) -> Lease:
        """Take a queue for a minute, even from another worker."""
        return await self._lease(self.keys.queues(shard_of(account), subscription), account)

    async def _lease(self, key: str, member: str) -> Lease:
        deadline = await self.now_ms() + MINUTE_MS
        await self.pipe.command("ZADD", key, deadline, member)
        return Lease(member, deadline)

    async def fill(
        self,
        *deliveries: Delivery,
        account: str = ACCOUNT,
        subscription: str = OPS,
        notes: Sequence[bytes] = (),
    ) -> None:
        """Commit a step that queues deliveries."""
        state = await self.polls.read_state(PROVIDER, account)
        expected = state.version if state else ""
        step = a_commit(
            await self.lease(account),
            expected=expected,
            version=secrets.token_hex(8),
            notes=notes,
            deliveries={subscription: deliveries},
        )
        reply, _ = await self.polls.commit(step)
        assert reply == 1

    async def begin(self, lease: Lease, *, at_most: int = 10) -> tuple[Lease, Begun]:
        """Take a queue of OPS in hand."""
        until = self.queues.until(lease, MINUTE_MS)
        return lease._replace(deadline=until), await self.queues.begin(
            OPS, lease, until=until, at_most=at_most
        )

    async def queue(self, account: str = ACCOUNT, subscription: str = OPS) -> list[bytes]:
        """Everything that waits in a queue."""
        key = self.keys.queue(subscription, account)
        (alone,) = await self.pipe.command("MGET", key)
        entries: list[bytes] = [alone] if alone else await self.pipe.command("LRANGE", key, 0, -1)
        return entries

    async def bodies(self, shard: int = SHARD) -> dict[bytes, bytes]:
        """What is stored of events, by reference."""
        pairs = await self.pipe.command("HGETALL", self.keys.bodies(shard))
        return dict(zip(pairs[::2], pairs[1::2], strict=True))

    async def tries(self, account: str = ACCOUNT, subscription: str = OPS) -> tuple[int, bytes]:
        """How often the head of a queue failed already, and which head that was."""
        tried = await self.pipe.command("HGET", self.keys.tries(shard_of(account), subscription), account)
        return read_tries(tried or b"")

    async def stream(self, key: str) -> list[dict[str, bytes]]:
        """The fields of each entry of a stream."""
        return [
            {name.decode(): value for name, value in zip(fields[::2], fields[1::2], strict=True)}
            for _, fields in await self._read(key, "XRANGE", "-", "+")
        ]

    async def contents(self) -> dict[str, Any]:
        """All that lies under the namespace: what a refused step must leave exactly as it was."""
        found: dict[str, Any] = {}
        for key in await self.pipe.command("KEYS", f"{self.keys.namespace}:*"):
            kind = await self.pipe.command("TYPE", key)
            if kind == b"none":  # its time ended since it was listed
                continue
            value = await self._read(key.decode(), *_READ_BY_TYPE[kind])
            is_paired = kind in (b"hash", b"zset")
            found[key.decode()] = dict(zip(value[::2], value[1::2], strict=True)) if is_paired else value
        return found

    async def _read(self, key: str, *command: object) -> Any:
        """Read by a script, which answers alike on every server."""
        return await self.pipe.command("EVAL", _READ, 1, key, *command)


def a_store(client: Redis, namespace: str, pipe: Pipe | None = None, *, bounds: Bounds = BOUNDS) -> Store:
    pipe, keys = pipe or Pipe(client), Keys(namespace)
    schedule = Schedule(pipe)
    return Store(
        keys,
        pipe,
        schedule,
        Polls(schedule, keys, bounds),
        Queues(schedule, keys, bounds),
        Roster(pipe, keys),
    )


@asynccontextmanager
async def running(pipe: Pipe, runners: int = 2) -> AsyncIterator[None]:
    """Let a pipe gather inside the block, as a worker does."""
    tasks = [asyncio.create_task(pipe.run()) for _ in range(runners)]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def a_delivery(
    number: int = 1,
    content: bytes = b'{"id":"evt"',
    event_type: str = "total.increased",
    *,
    previous: int | None = -1,
    subscription: str = OPS,
) -> Delivery:
    """The delivery of an event; by default it follows that of the number before it."""
    if previous == -1:
        previous = number - 1 if number > 1 else None
    return Delivery(f"evt_{number}", event_type, number, content, subscription, previous)


def some_deliveries(*numbers: int) -> tuple[Delivery, ...]:
    """Deliveries of one queue, in order."""
    befores = (None, *numbers)
    return tuple(
        a_delivery(number, previous=before) for before, number in zip(befores, numbers, strict=False)
    )


def a_commit(
    lease: Lease,
    *,
    expected: str = "",
    version: str = "v1",
    sequence: int = 1,
    provider: str = PROVIDER,
    due_in_ms: int = MINUTE_MS,
    polled_at_ms: int | None = None,
    notes: Sequence[bytes] = (),
    follows: int = 0,
    deliveries: Mapping[str, Sequence[Delivery]] | None = None,
    **balances: Balance | str,
) -> Commit:
    """A step of the holder of `lease`; the next poll is due `due_in_ms` after the lease ends."""
    by_reference: dict[str, Event] = {}
    for one in (one for queued in (deliveries or {}).values() for one in queued):
        event = Event(one.event_id, one.type, lease.member, None, "0", one.sequence, one.content + b"}", None)
        by_reference[event.reference] = event
    places = {reference: place for place, reference in enumerate(by_reference)}
    state = a_state(balances, version=version, sequence=sequence)
    step = Step(
        state=state if polled_at_ms is None else state._replace(polled_at_ms=polled_at_ms),
        follows=follows,
        events=tuple(by_reference.values()),
        queued={
            name: [places[f"{one.event_id} {one.sequence}"] for one in queued]
            for name, queued in (deliveries or {}).items()
        },
        notes=tuple(notes),
        advance=Advance(is_baseline=False, is_news=True),
    )
    return Commit(
        account=lease.member,
        provider=provider,
        lease=lease,
        expected_version=expected,
        step=step,
        due_ms=int(lease.deadline) + due_in_ms,
    )


async def fail(
    breakers: Breakers,
    subscription: str,
    reason: str,
    *,
    pause: bool = False,
    open_ms: int = 0,
    days: float = 0,
) -> Change:
    """Open a breaker for so long (0: it is half-open), which was closed so many days ago; or pause it."""

    def opened(breaker: Breaker | None, now_ms: int) -> Breaker:
        since_ms = now_ms - int(days * 86_400_000)
        before = (breaker or Breaker())._replace(reason=reason, since_ms=since_ms, rests=1)
        if pause:
            return gone(before, now_ms, failure=Failure(reason))
        return before._replace(open_until_ms=now_ms + open_ms if open_ms else 0)

    return await breakers.change(subscription, opened)


async def pause(breakers: Breakers, subscription: str, reason: str) -> Change:
    """Pause by hand."""
    return await breakers.change(subscription, partial(paused, reason=reason))
