"""Keeps Redis within its bounds: `max_backlog` of each subscription, and the memory of each server.

One worker at a time does so, the keeper. Refuses to log: it returns what was given up.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, NamedTuple, TypeVar

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from watcher.store.errors import DamagedKey, translated
from watcher.store.keys import SHARDS, Keys
from watcher.store.layout import read_meta
from watcher.store.members import provider_names
from watcher.store.pipe import Pipe, in_parts, load_script
from watcher.store.queues import BOUNDS, DEAD_PER_SUBSCRIPTION, Bounds, Breakers, Queues, take_lease
from watcher.store.schedule import Schedule

_SHORTEN = load_script("shorten")
_FREE = load_script("free")
_MEASURE_QUEUES = load_script("measure_queues")
_COUNT_QUEUES = load_script("count_queues")
_COUNT_BACKLOG = load_script("count_backlog")

LEASE_MS = 5_000
"""A keeper that died is replaced after this time."""

_CORRECT_EVERY = 10
"""Looks between two comparisons of the noted backlogs with the queues."""

_AT_ONCE = 200
"""Queues measured, or deliveries given up, in one call: a few milliseconds of the server's time."""

_LONGEST_S = 0.5
"""For the deliveries of one subscription in one look: the next look goes on."""

FULL, _RELIEVED = 0.85, 0.8
"""A server that is fuller than the first frees memory until it is no fuller than the second."""

_RELIEF_S = 0.5
"""For the memory of one server in one look: the next look goes on if it is nearly full again."""

_FREED = 64
"""Entries of a stream removed in one call, in a millisecond or two of the server's time."""

_MOST_ASKED = 1000

LEAST_BACKLOG = 1000
"""Deliveries of each subscription that are kept even if memory is short."""

_ACCOUNT_BYTES, _EVENT_BYTES, _DELIVERY_BYTES, _GIVEN_UP_BYTES = 800, 860, 145, 110
"""About what each takes in Redis (see deploy/REDIS.md): an account with ten assets, an event, a delivery, a
dead letter without its body."""

_SHARE = 10
"""After it measured all queues of a subscription, or freed everything on a server, a keeper waits for so many
times as long before it does so again."""


T = TypeVar("T")

Reason = Literal["backlog full", "memory full", "deleted"]


class Overflow(NamedTuple):
    """Deliveries of a subscription that were given up because more than `max_backlog` waited."""

    subscription: str
    deliveries: int
    max_backlog: int


@dataclass(slots=True)
class Relief:
    """What was removed from a server that was nearly full: `used` of `limit` bytes. `entries` by kind (log,
    attempts, dead), `deliveries` by subscription. `ours`, if not None, says that the server is as full as
    before, and about how many bytes on it are ours."""

    used: int
    limit: int
    entries: Counter[str] = field(default_factory=Counter)
    deliveries: Counter[str] = field(default_factory=Counter)
    ours: int | None = None


class Kept(NamedTuple):
    """What one look of the keeper gave up."""

    overflows: Sequence[Overflow] = ()
    reliefs: Sequence[Relief] = ()


class _Queue(NamedTuple):
    shard: int
    account: str
    length: int


def shared_out(lengths: Sequence[int], most: int) -> list[int]:
    """Return how many may stay of each, so that `most` stay in all: the longest are cut down to one level."""
    stays, left = [*lengths], most
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for number, place in enumerate(order):
        level = left // (len(order) - number)
        stays[place] = min(lengths[place], level)
        left -= stays[place]
    return stays


class Keeper:
    """One worker's part in this; `worker` names it. Methods raise StoreError."""

    def __init__(self, pipe: Pipe, keys: Keys, worker: str, bounds: Bounds = BOUNDS) -> None:
        self._pipe = pipe
        self._keys = keys
        self._worker = worker
        self._bounds = bounds
        self._looks = 0
        self._measure_at: dict[str, float] = {}
        self._short: dict[int, tuple[float, int]] = {}

    async def look(self, max_backlogs: Mapping[str, int]) -> Kept:
        """Give up what exceeds `max_backlogs` (by subscription) or the memory, if no other worker is the
        keeper. A subscription that is not among them is limited by memory alone: another worker may know
        it."""
        if not await take_lease(self._pipe, self._keys.keeper(), self._worker, lease_ms=LEASE_MS):
            return Kept()
        asked = [self._pipe.command("HGETALL", self._keys.backlogs(shard)) for shard in range(SHARDS)]
        backlogs: dict[str, dict[int, int]] = {}
        for shard, pairs in enumerate(await undamaged(asked, list[bytes]())):
            for name, count in zip(pairs[::2], pairs[1::2], strict=True):
                by_shard = backlogs.setdefault(name.decode("utf-8", "replace"), {})
                by_shard[shard] = int(count) if count.isdigit() else 0
        found = []
        for name, by_shard in backlogs.items():
            most = max_backlogs.get(name)
            if most is None or sum(by_shard.values()) <= most:
                continue
            if time.monotonic() < self._measure_at.get(name, 0):
                continue
            given_up = 0
            with suppress(DamagedKey):  # the damage is of this subscription, or of one shard
                given_up = await self.give_up(name, [*by_shard], most)
            if given_up:
                found.append(Overflow(name, given_up, most))
        reliefs = [
            relief
            for server, shards in await self._pipe.servers_of(range(SHARDS), self._keys.backlogs)
            if (relief := await self._relieve(server, shards, max_backlogs, backlogs))
        ]
        self._looks += 1
        if self._looks % _CORRECT_EVERY == 1:
            await self._correct(backlogs)
        return Kept(found, reliefs)

    async def discard(self, name: str) -> None:
        """Remove everything of a subscription that was deleted: what waits for it, its dead letters and
        attempts, and its breaker. Deliveries that are given up leave only their name."""
        keys = self._keys
        with suppress(DamagedKey):  # which the audit of the store names
            while await self.give_up(name, range(SHARDS), 0, "deleted"):
                pass
            for part, stream in (("dead", keys.dead), ("attempts", keys.attempts)):
                for shard in range(SHARDS):
                    kinds = (keys.nothing, keys.bodies, keys.sizes, keys.given_up)
                    of_shard = [stream(shard, name), *(kind(shard) for kind in kinds)]
                    gone = _FREED
                    while gone == _FREED:
                        gone = await self._pipe.script(_FREE, of_shard, part, _FREED, name, self._bounds.dead)
            await Breakers(self._pipe, keys).resume(name)
            schedule = Schedule(self._pipe)
            await schedule.read_clock()
            for shard in range(SHARDS):  # which takes what has no queue left out of the index
                await Queues(schedule, keys).claim(name, shard, lease_ms=1, at_most=0)
        self._measure_at.pop(name, None)

    async def give_up(
        self, name: str, shards: Sequence[int], most: int, reason: Reason = "backlog full"
    ) -> int:
        """Give up the oldest deliveries of a subscription's longest queues until `most` wait in these shards,
        or time runs out. Returns how many. They become dead letters if the `reason` is that too many waited;
        otherwise they leave only their name."""
        began_at, keys = time.monotonic(), self._keys
        queues = [queue for shard in shards for queue in await self._queues(name, shard)]
        self._measure_at[name] = began_at + (1 + _SHARE) * (time.monotonic() - began_at)
        stays = shared_out([queue.length for queue in queues], most)
        longer = [one for one in zip(queues, stays, strict=True) if one[0].length > one[1]]
        letters = DEAD_PER_SUBSCRIPTION if reason == "backlog full" else 0
        given_up = 0
        for shard, of_shard in groupby(longer, key=lambda one: one[0].shard):
            shared = [keys.queues(shard, name), keys.tries(shard, name), keys.dead(shard, name)]
            shared += [keys.nothing(shard), keys.bodies(shard), keys.sizes(shard), keys.given_up(shard)]
            shared.append(keys.backlogs(shard))
            for some in in_parts([*of_shard], _AT_ONCE):
                names = [*shared, *(keys.queue(name, queue.account) for queue, _ in some)]
                arguments = [part for queue, stays in some for part in (queue.account, stays)]
                gone = _AT_ONCE
                while gone == _AT_ONCE and time.monotonic() < began_at + _LONGEST_S:
                    gone = await self._pipe.script(
                        *(_SHORTEN, names, name, reason, letters, self._bounds.dead, _AT_ONCE), *arguments
                    )
                    given_up += gone
        return given_up

    async def _queues(self, name: str, shard: int) -> list[_Queue]:
        found: list[_Queue] = []
        accounts = await self._pipe.command("ZRANGE", self._keys.queues(shard, name), 0, -1)
        parts = [*in_parts([account.decode("utf-8", "replace") for account in accounts], _AT_ONCE)]
        for some in parts:
            keys = [self._keys.queue(name, account) for account in some]
            try:
                measured = await self._pipe.script(_MEASURE_QUEUES, keys)
            except DamagedKey:  # which the audit of the store names; the others are measured one by one
                parts += [[account] for account in some] if len(some) > 1 else []
                continue
            found += map(_Queue, [shard] * len(some), some, measured[::2])
        return found

    async def _relieve(
        self,
        server: Redis,
        shards: Sequence[int],
        configured: Collection[str],
        backlogs: Mapping[str, Mapping[int, int]],
    ) -> Relief | None:
        """Free memory of a server that is nearly full, in small steps: the oldest of the log and the
        attempts, then dead letters, then deliveries of the largest backlog. None if it is not nearly full, or
        has no limit."""
        used, limit = await memory_of(server)
        began_at, server_at = time.monotonic(), shards[0]
        if used <= FULL * limit:
            self._short.pop(server_at, None)
            return None
        rests_until, ours = self._short.get(server_at, (0.0, None))
        if began_at < rests_until:
            return Relief(used, limit, ours=ours)
        keys, relief, until = self._keys, Relief(used, limit), time.monotonic() + _RELIEF_S

        async def is_enough() -> bool:
            return (await memory_of(server))[0] <= _RELIEVED * limit or time.monotonic() > until

        (marks,) = await undamaged([self._pipe.command("HGETALL", keys.marks())], list[bytes]())
        names = sorted({*configured, *backlogs, *(name.decode("utf-8", "replace") for name in marks[::2])})
        logs = [("log", shard, "", keys.log(shard)) for shard in shards]
        of_all = [(shard, name) for shard in shards for name in names]
        attempts = [("attempts", shard, name, keys.attempts(shard, name)) for shard, name in of_all]
        dead = [("dead", shard, name, keys.dead(shard, name)) for shard, name in of_all]
        kinds = (keys.nothing, keys.bodies, keys.sizes, keys.given_up)
        for streams in ([*logs, *attempts], dead):
            lengths = [
                length
                for some in in_parts(streams, _MOST_ASKED)
                for length in await undamaged([self._pipe.command("XLEN", one[3]) for one in some], 0)
            ]
            left = [one for one, length in zip(streams, lengths, strict=True) if length]
            while left:
                some, left = left[:SHARDS], left[SHARDS:]
                asked = [
                    self._pipe.script(
                        *(_FREE, [stream, *(kind(shard) for kind in kinds)]),
                        *(part, _FREED, name, self._bounds.dead),
                    )
                    for part, shard, name, stream in some
                ]
                gone = await undamaged(asked, 0)
                for (part, *_), count in zip(some, gone, strict=True):
                    relief.entries[part] += count
                left += [one for one, count in zip(some, gone, strict=True) if count == _FREED]
                if await is_enough():
                    return relief
        waiting = Counter({name: sum(of.get(n, 0) for n in shards) for name, of in backlogs.items()})
        while waiting and (largest := waiting.most_common(1)[0])[1] > LEAST_BACKLOG:
            name, count = largest
            most = max(LEAST_BACKLOG, count - max(LEAST_BACKLOG, count // 10))
            waiting[name] = most
            with suppress(DamagedKey):
                relief.deliveries[name] += await self.give_up(name, shards, most, "memory full")
            if await is_enough():
                return relief
        if (await memory_of(server))[0] > FULL * limit:
            relief.ours = await self.ours(shards, waiting.total())
            now = time.monotonic()
            self._short[server_at] = now + _SHARE * (now - began_at), relief.ours
        return relief

    async def ours(self, shards: Sequence[int], waiting: int) -> int:
        """Estimate the bytes on a server that are ours, as deploy/REDIS.md does: noted sizes, stored events,
        waiting deliveries, accounts with their assets."""
        keys, ours = self._keys, waiting * _DELIVERY_BYTES
        (said,) = await read_meta(self._pipe, keys, "providers")
        for shard in shards:
            sizes = await self._pipe.command("HMGET", keys.sizes(shard), "log", "dead", "attempts")
            ours += sum(int(size) for size in sizes if size and size.isdigit())
            ours += _EVENT_BYTES * await self._pipe.command("HLEN", keys.bodies(shard))
            ours += _GIVEN_UP_BYTES * await self._pipe.command("XLEN", keys.given_up(shard))
            for provider in provider_names(said):
                ours += _ACCOUNT_BYTES * await self._pipe.command("ZCARD", keys.polls(shard, provider))
        return ours

    async def _correct(self, backlogs: Mapping[str, Mapping[int, int]]) -> None:
        """Correct notes that cannot be true: a person may have deleted one, or a queue."""
        for shard in range(SHARDS):
            index = self._pipe.command("ZRANGE", self._keys.due_subscriptions(shard), 0, -1)
            (due,) = await undamaged([index], list[bytes]())
            names = {name.decode("utf-8", "replace") for name in due}
            names |= {name for name, by_shard in backlogs.items() if shard in by_shard}
            for some in in_parts(sorted(names), _AT_ONCE):
                kinds = (self._keys.queues, self._keys.tries, self._keys.dead)
                keys = [self._keys.backlogs(shard), *(kind(shard, name) for name in some for kind in kinds)]
                (counts,) = await undamaged([self._pipe.script(_COUNT_QUEUES, keys, *some)], list[int]())
                for name, queues, waiting in zip(some, counts[::4], counts[3::4], strict=False):
                    if waiting < queues or (waiting and not queues):
                        with suppress(DamagedKey):
                            await count_backlog(self._pipe, self._keys, shard, name, corrects=True)


async def undamaged(asked: Sequence[Awaitable[T]], otherwise: T) -> list[T]:
    """Ask for several things at the same time; `otherwise` stands for what is damaged, which the audit
    finds."""
    answers = await asyncio.gather(*asked, return_exceptions=True)
    found: list[T] = []
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, DamagedKey):
            raise answer
        found.append(otherwise if isinstance(answer, BaseException) else answer)
    return found


async def fullest(pipe: Pipe) -> tuple[int, int]:
    """Read as `memory_of` does, of the fullest of all servers."""
    found = [await memory_of(server) for server in await pipe.servers()]
    return max(found, key=lambda memory: memory[0] / max(1, memory[1]))


async def memory_of(server: Redis) -> tuple[int, int]:
    """Read how many bytes count against a server's limit, and the limit; both are 0 if it has none or does
    not say. Raises StoreError."""
    info = {}
    with translated(server), suppress(ResponseError):
        info = await server.info("memory")
    used, beside, limit = (
        int(info.get(name, 0)) for name in ("used_memory", "mem_not_counted_for_evict", "maxmemory")
    )
    return (used - beside, limit) if limit else (0, 0)


async def count_backlog(
    pipe: Pipe, keys: Keys, shard: int, subscription: str, *, corrects: bool = False
) -> tuple[bytes, int]:
    """Count the deliveries that wait for a subscription in a shard. Returns the noted number and the count,
    at the same moment. With `corrects`, the count is noted. Raises StoreError."""
    schedule = keys.queues(shard, subscription)
    while True:
        accounts = await pipe.command("ZRANGE", schedule, 0, -1)
        queues = (keys.queue(subscription, account.decode("utf-8", "replace")) for account in accounts)
        names = [keys.backlogs(shard), schedule, keys.nothing(shard), *queues]
        noted, count = await pipe.script(_COUNT_BACKLOG, names, subscription, int(corrects), *accounts)
        if count >= 0:
            return noted, count
