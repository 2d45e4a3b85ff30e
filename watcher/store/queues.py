"""What subscriptions need of Redis: queues of deliveries, and circuit breakers that all workers share.

Deliveries wait in order, are claimed queue by queue, and settled one by one. Refuses to judge an attempt, or
what a failure does to a breaker: `delivery` and `engine.breaker` do, and this module writes it as one step.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from watcher.journal.events import Delivery, load_delivery
from watcher.store.keys import SHARDS, Keys, read_count, shard_of
from watcher.store.pipe import Joint, Joints, Pipe, in_parts, load_script
from watcher.store.schedule import Claimed, Lease, Reply, Schedule

ATTEMPTS_PER_SUBSCRIPTION = 100
"""Attempts remembered per subscription and shard, each with up to 1 KiB of what its receiver answers: 2 MB in
all of a subscription whose receiver explains itself at length."""

_HELD_AT_ONCE = 4000
"""Scores and names in one call: Lua passes on no more than 8,000."""

DEAD_PER_SUBSCRIPTION = 10_000
"""Dead letters kept per subscription and shard."""


class Bounds(NamedTuple):
    """Bytes that the log, dead letters and attempts may take in a shard."""

    log: int = 8 << 20
    dead: int = 8 << 20
    attempts: int = 2 << 20

    @classmethod
    def within(cls, limit: int) -> "Bounds":
        """Share out a server's limit (bytes, over all its shards; 0: it has none)."""
        share = limit // SHARDS
        return cls(share // 8, share // 8, share // 32) if limit else cls()


BOUNDS = Bounds()
"""For a server without a limit: 300 MB in all."""


_BEGIN_QUEUE = load_script("begin_queue")
_EXTEND = load_script("extend")
_HOLD = load_script("hold")
_ENQUEUE = load_script("enqueue")
_SETTLE = load_script("settle")
_GIVE_UP = load_script("give_up")
_PROBE = load_script("probe")
_SET_BREAKER = load_script("set_breaker")


class Begun(NamedTuple):
    """A queue in hand: whether the lease holds, its oldest deliveries, and how often its head, `tried`, has
    failed. Each comes as it was queued, and None where it cannot be read.
    """

    reply: Reply
    deliveries: list[tuple[bytes, Delivery | None]]
    tries: int
    tried: bytes


class Queues:
    """The queues of one namespace. Methods raise StoreUnreachable when the server does not do its part."""

    def __init__(self, schedule: Schedule, keys: Keys, bounds: Bounds = BOUNDS) -> None:
        self._schedule = schedule
        self._keys = keys
        self._pipe = schedule.pipe
        self._begins = Joints(
            lambda shard, name: Joint(
                _BEGIN_QUEUE,
                (
                    keys.queues(shard, name),
                    keys.tries(shard, name),
                    keys.nothing(shard),
                    keys.bodies(shard),
                ),
            )
        )
        self._settles = Joints(
            lambda shard, name: Joint(
                _SETTLE,
                (
                    keys.queues(shard, name),
                    keys.due_subscriptions(shard),
                    keys.tries(shard, name),
                    keys.dead(shard, name),
                    keys.attempts(shard, name),
                    keys.nothing(shard),
                    keys.bodies(shard),
                    keys.sizes(shard),
                    keys.given_up(shard),
                    keys.backlogs(shard),
                ),
                (name, DEAD_PER_SUBSCRIPTION, bounds.dead, ATTEMPTS_PER_SUBSCRIPTION, bounds.attempts),
                most=64,
            )
        )

    async def due_subscriptions(self, shard: int) -> list[str]:
        """Name the subscriptions that may have a queue due in a shard."""
        key = self._keys.due_subscriptions(shard)
        names = await self._pipe.command("ZRANGEBYSCORE", key, "-inf", self._schedule.now_ms())
        return [name.decode("utf-8", "replace") for name in names]

    async def hold(self, shard: int, for_ms: Mapping[str, int]) -> None:
        """Keep subscriptions out of the index of what is due for so long, unless they get new deliveries."""
        now_ms = self._schedule.now_ms()
        scores = [part for name, ms in for_ms.items() for part in (now_ms + ms, name)]
        keys = [self._keys.due_subscriptions(shard), self._keys.nothing(shard)]
        for some in in_parts(scores, _HELD_AT_ONCE):
            await self._pipe.script(_HOLD, keys, *some)

    async def claim(self, subscription: str, shard: int, *, lease_ms: int, at_most: int) -> Claimed:
        keys = self._schedule_keys(shard, subscription)
        return await self._schedule.claim(keys, lease_ms, at_most, subscription)

    async def make_due(self, subscription: str, shard: int, *, lease_ms: int) -> int:
        """Let queues that wait for a retry be tried now; returns how many there are."""
        keys = self._schedule_keys(shard, subscription)
        return await self._schedule.make_due(keys, lease_ms, subscription)

    async def begin(self, subscription: str, lease: Lease, *, until: float, at_most: int) -> Begun:
        """Take a queue in hand that was claimed: keep it until another deadline, and read what waits in
        it."""
        joint = self._begins[shard_of(lease.member), subscription]
        queue = self._keys.queue(subscription, lease.member)
        reply, found, tried = await self._pipe.step(joint, (queue,), *lease, until, at_most)
        return Begun(Reply(reply), read_deliveries(found, subscription), *read_tries(tried))

    async def backlog(self, subscription: str) -> int:
        """Count the deliveries that wait for a subscription."""
        commands = [("HGET", self._keys.backlogs(shard), subscription) for shard in range(SHARDS)]
        noted = await asyncio.gather(*(self._pipe.command(*command) for command in commands))
        return sum(map(int, filter(None, noted)))

    async def delivered(
        self, subscription: str, lease: Lease, head: bytes, *, until: float, record: bytes = b""
    ) -> tuple[Reply, int]:
        """Take a delivered head (`Delivery.entry`) away, and keep its queue until another deadline; returns
        that, or 0 when it is empty.

        `record`, if any, is remembered as the attempt; so it is in what follows.
        """
        return await self._settle(subscription, lease, head, "delivered", until, "", record)

    async def dead(
        self,
        subscription: str,
        lease: Lease,
        head: bytes,
        *,
        until: float,
        reason: str,
        record: bytes = b"",
    ) -> tuple[Reply, int]:
        """Move a head that was given up to the dead letters; returns as delivered does."""
        return await self._settle(subscription, lease, head, "dead", until, reason, record)

    async def retry(
        self, subscription: str, lease: Lease, head: bytes, *, wait_ms: int, record: bytes = b""
    ) -> Reply:
        """Try a head again later; its queue waits with it."""
        return (await self._settle(subscription, lease, head, "retry", wait_ms, "", record))[0]

    async def give_up(self, subscription: str, account: str, head: bytes, *, reason: str) -> int | None:
        """Make a queue's head (`Delivery.entry`) a dead letter, whoever has the queue in hand; what is behind
        it goes out at once.

        Returns how many deliveries are left in the queue; None where another one is its head.
        """
        keys, shard = self._keys, shard_of(account)
        of_the_queue = [
            keys.queue(subscription, account),
            keys.queues(shard, subscription),
            keys.due_subscriptions(shard),
            keys.tries(shard, subscription),
            keys.dead(shard, subscription),
            keys.nothing(shard),
            keys.bodies(shard),
            keys.sizes(shard),
            keys.given_up(shard),
            keys.backlogs(shard),
        ]
        arguments = subscription, account, head, reason, DEAD_PER_SUBSCRIPTION
        left = int(await self._pipe.script(_GIVE_UP, of_the_queue, *arguments))
        return None if left < 0 else left

    async def enqueue(
        self, subscription: str, account: str, deliveries: Sequence[Delivery], *, letters: Sequence[str] = ()
    ) -> int:
        """Put deliveries at the end of a queue, outside of any commit; returns how many.

        `letters` are the ids of the dead letters that they were, one each. These are removed; a delivery
        whose letter is gone is not queued.
        """
        shard = shard_of(account)
        keys = [self._keys.queue(subscription, account), *self._schedule_keys(shard, subscription)]
        keys += [self._keys.bodies(shard), self._keys.sizes(shard), self._keys.backlogs(shard)]
        if letters:
            keys.append(self._keys.dead(shard, subscription))
        arguments: list[object] = [subscription, account]
        for delivery, letter in zip_longest(deliveries, letters, fillvalue=""):
            assert isinstance(delivery, Delivery), "there are no more letters than deliveries"
            arguments += (delivery.entry, delivery.stored, letter)
        return int(await self._pipe.script(_ENQUEUE, keys, *arguments))

    async def take_turn(self, subscription: str, *, per_second: float, within_ms: float) -> float:
        """Reserve the start of an attempt over all workers; returns in how many ms it is.

        Where that is more than `within_ms`, nothing is reserved.
        """
        key = self._keys.subscription_rate(subscription)
        return await self._schedule.take_turns(key, 1, spacing_ms=1000 / per_second, within_ms=within_ms)

    def until(self, lease: Lease, for_ms: int) -> int:
        """Return a new deadline for our lease, never the one before: it identifies a repeated command."""
        deadline = self._schedule.now_ms() + for_ms
        return deadline if deadline != lease.deadline else deadline + 1

    async def extend(self, subscription: str, lease: Lease, *, until: float) -> Reply:
        """Keep a queue until another deadline."""
        shard = shard_of(lease.member)
        keys = [self._keys.queues(shard, subscription), self._keys.nothing(shard)]
        return Reply(await self._pipe.script(_EXTEND, keys, *lease, until))

    async def release(self, subscription: str, lease: Lease, *, due_in_ms: int = 0) -> Reply:
        keys = self._schedule_keys(shard_of(lease.member), subscription)
        return await self._schedule.release(keys, lease, due_in_ms, subscription)

    def _schedule_keys(self, shard: int, subscription: str) -> list[str]:
        keys = self._keys
        return [keys.queues(shard, subscription), keys.due_subscriptions(shard), keys.nothing(shard)]

    async def _settle(
        self,
        subscription: str,
        lease: Lease,
        head: bytes,
        outcome: str,
        ms: float,
        reason: str,
        record: bytes,
    ) -> tuple[Reply, int]:
        joint = self._settles[shard_of(lease.member), subscription]
        queue = self._keys.queue(subscription, lease.member)
        arguments = (*lease, head, outcome, ms, reason, record)
        reply, deadline = await self._pipe.step(joint, (queue,), *arguments)
        return Reply(reply), deadline


def read_deliveries(found: Sequence[bytes], subscription: str) -> list[tuple[bytes, Delivery | None]]:
    """Read what scripts return of a queue: each delivery as it was queued, and what is stored of its
    event."""
    deliveries: list[tuple[bytes, Delivery | None]] = []
    for entry, stored in zip(found[::2], found[1::2], strict=True):
        try:
            deliveries.append((entry, load_delivery(entry, stored, subscription)))
        except ValueError:
            deliveries.append((entry, None))
    return deliveries


def read_tries(noted: bytes) -> tuple[int, bytes]:
    """Read how often a queue's head has failed, and which head that was; a damaged count reads as never."""
    if not noted:
        return 0, b""
    count, _, head = noted.partition(b" ")
    try:
        return read_count(count), head
    except ValueError:
        return 0, b""


class Breaker(NamedTuple):
    """A subscription that has failed, or is paused. Times in Unix ms of the server, 0 for never.

    `report_from_ms` is not 0 while a pause is unreported: from then on any worker is to report it.
    """

    failures: int
    since_ms: int
    open_until_ms: int
    paused_at_ms: int
    reason: str
    report_from_ms: int = 0


Decide = Callable[[Breaker | None, int], Breaker | None]
"""From the breaker as it was and the time in ms to the breaker as it is; None: as if it had never failed."""


class Change(NamedTuple):
    """A breaker before and after a change."""

    before: Breaker | None
    after: Breaker | None


class Breakers:
    """The breakers of one namespace. Methods raise StoreError.

    Only those that are not closed, or have failed recently, are written down: every worker reads all of them
    every second.
    """

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._key = keys.breakers()
        self._keys = keys

    async def read(self) -> dict[str, Breaker]:
        """Read all of them, by name; a subscription that has not failed is not among them."""
        pairs = await self._pipe.command("HGETALL", self._key)
        names = (name.decode("utf-8", "replace") for name in pairs[::2])
        # One that is damaged is closed, but for its reason: the next attempt heals it.
        damaged = Breaker(0, 0, 0, 0, "unreadable")
        return {name: _parse(text) or damaged for name, text in zip(names, pairs[1::2], strict=True)}

    async def change(self, subscription: str, decide: Decide) -> Change:
        """Change one breaker as `decide` says, which is called again if another worker was faster."""
        text, now_ms, _ = await self._pipe.script(_SET_BREAKER, [self._key], subscription)
        while True:
            before = _parse(text)
            after = decide(before, now_ms)
            if _dump(after) == text:
                return Change(before, after)
            arguments = subscription, text, _dump(after)
            text, now_ms, is_set = await self._pipe.script(_SET_BREAKER, [self._key], *arguments)
            if is_set:
                return Change(before, after)

    async def resume(self, subscription: str) -> bool:
        """Forget that a subscription failed or was paused; says whether there was anything to forget."""
        return bool(await self._pipe.command("HDEL", self._key, subscription))

    async def take_probe(self, subscription: str, worker: str, *, lease_ms: int) -> bool:
        """Take the one probe of a half-open subscription; says whether `worker` has it."""
        return await take_lease(self._pipe, self._keys.probe(subscription), worker, lease_ms=lease_ms)

    async def leave_probe(self, subscription: str, worker: str) -> None:
        """Give the probe to other workers, if `worker` has it."""
        await take_lease(self._pipe, self._keys.probe(subscription), worker, lease_ms=0)


async def take_lease(pipe: Pipe, key: str, worker: str, *, lease_ms: int) -> bool:
    """Take a lease that one worker holds at a time, or keep it, on a full server too; says whether `worker`
    has it. With 0 ms it is given back."""
    return bool(await pipe.script(_PROBE, [key], worker, lease_ms))


def _parse(text: bytes) -> Breaker | None:
    """Read a breaker; None for one that is damaged."""
    try:
        failures, since, open_until, paused, reason = text.split(b" ", 4)
        paused_at, _, report_from = paused.partition(b"!")
        return Breaker(
            read_count(failures),
            read_count(since),
            read_count(open_until),
            read_count(paused_at),
            reason.decode(),
            read_count(report_from or b"0"),
        )
    except ValueError:
        return None


def _dump(breaker: Breaker | None) -> bytes:
    if breaker is None:
        return b""
    failures, since_ms, open_until_ms, paused_at_ms, reason, report_from_ms = breaker
    report = f"!{report_from_ms}" if report_from_ms else ""
    return f"{failures} {since_ms} {open_until_ms} {paused_at_ms}{report} {reason}".encode()
