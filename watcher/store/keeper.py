"""Keeps what waits within its bounds: `max_backlog` of each subscription, over all workers.

One worker does so at a time. Refuses to say it: what was given up is returned.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import NamedTuple

from watcher.store.errors import DamagedKey
from watcher.store.keys import SHARDS, Keys
from watcher.store.pipe import Pipe, in_parts, load_script
from watcher.store.queues import BOUNDS, DEAD_PER_SUBSCRIPTION, Bounds, take_lease

_SHORTEN = load_script("shorten")
_MEASURE_QUEUES = load_script("measure_queues")
_COUNT_QUEUES = load_script("count_queues")
_COUNT_BACKLOG = load_script("count_backlog")

LEASE_MS = 5_000
"""A keeper that died is replaced after this."""

_CORRECT_EVERY = 10
"""Looks from one comparison of the noted backlogs with the queues to the next."""

_AT_ONCE = 200
"""Queues measured, and deliveries given up, in one call: a few milliseconds of the server's time."""

_LONGEST_S = 0.5
"""Of one look, to give up deliveries of one subscription: the next look goes on."""

_SHARE = 10
"""After it measured all queues of a subscription, a keeper leaves them alone for so many times as long."""


class Overflow(NamedTuple):
    """Deliveries of a subscription that were given up, because more than `max_backlog` waited."""

    subscription: str
    deliveries: int
    max_backlog: int


class _Queue(NamedTuple):
    shard: int
    account: str
    length: int


def shared_out(lengths: Sequence[int], most: int) -> list[int]:
    """Say how many may stay of each, so that `most` stay in all: the longest give up down to one level."""
    stays, left = [*lengths], most
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for number, place in enumerate(order):
        level = left // (len(order) - number)
        stays[place] = min(lengths[place], level)
        left -= stays[place]
    return stays


class Keeper:
    """One worker's part in it; `worker` names it. Methods raise StoreError."""

    def __init__(self, pipe: Pipe, keys: Keys, worker: str, bounds: Bounds = BOUNDS) -> None:
        self._pipe = pipe
        self._keys = keys
        self._worker = worker
        self._bounds = bounds
        self._looks = 0
        self._measure_at: dict[str, float] = {}

    async def look(self, max_backlogs: Mapping[str, int]) -> list[Overflow]:
        """Give up what is beyond `max_backlogs` (by subscription), if no other worker is the keeper. What
        waits for any other subscription is left alone: another worker may know it."""
        if not await take_lease(self._pipe, self._keys.keeper(), self._worker, lease_ms=LEASE_MS):
            return []
        asked = (self._pipe.command("HGETALL", self._keys.backlogs(shard)) for shard in range(SHARDS))
        backlogs: dict[str, dict[int, int]] = {}
        for shard, pairs in enumerate(await asyncio.gather(*asked)):
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
            if given_up := await self.give_up(name, [*by_shard], most):
                found.append(Overflow(name, given_up, most))
        self._looks += 1
        if self._looks % _CORRECT_EVERY == 1:
            await self._correct(backlogs)
        return found

    async def leave(self) -> None:
        """Let another worker be the keeper."""
        await take_lease(self._pipe, self._keys.keeper(), self._worker, lease_ms=0)

    async def give_up(self, name: str, shards: Sequence[int], most: int, *, has_memory: bool = True) -> int:
        """Give up the oldest deliveries of the longest queues of a subscription until `most` wait in these
        shards, or for as long as it may take; returns how many. They become dead letters, or, where there is
        no memory for these, leave their names only."""
        began_at, keys = time.monotonic(), self._keys
        queues = [queue for shard in shards for queue in await self._queues(name, shard)]
        self._measure_at[name] = began_at + (1 + _SHARE) * (time.monotonic() - began_at)
        stays = shared_out([queue.length for queue in queues], most)
        longer = [one for one in zip(queues, stays, strict=True) if one[0].length > one[1]]
        reason, letters = ("backlog full", DEAD_PER_SUBSCRIPTION) if has_memory else ("memory full", 0)
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

    async def _correct(self, backlogs: Mapping[str, Mapping[int, int]]) -> None:
        """Correct what is noted and cannot be: a person deleted it, say, or a queue."""
        for shard in range(SHARDS):
            due = await self._pipe.command("ZRANGE", self._keys.due_subscriptions(shard), 0, -1)
            names = {name.decode("utf-8", "replace") for name in due}
            names |= {name for name, by_shard in backlogs.items() if shard in by_shard}
            for some in in_parts(sorted(names), _AT_ONCE):
                kinds = (self._keys.queues, self._keys.tries, self._keys.dead)
                keys = [self._keys.backlogs(shard), *(kind(shard, name) for name in some for kind in kinds)]
                counts = await self._pipe.script(_COUNT_QUEUES, keys, *some)
                for name, queues, waiting in zip(some, counts[::4], counts[3::4], strict=True):
                    if waiting < queues or (waiting and not queues):
                        with suppress(DamagedKey):  # a queue, which the audit of the store names
                            await count_backlog(self._pipe, self._keys, shard, name, corrects=True)


async def count_backlog(
    pipe: Pipe, keys: Keys, shard: int, subscription: str, *, corrects: bool = False
) -> tuple[bytes, int]:
    """Count the deliveries that wait for a subscription in a shard; returns what is noted of them, and the
    count, of the same moment. With `corrects` the count is noted. Raises StoreError."""
    schedule = keys.queues(shard, subscription)
    while True:
        accounts = await pipe.command("ZRANGE", schedule, 0, -1)
        queues = (keys.queue(subscription, account.decode("utf-8", "replace")) for account in accounts)
        names = [keys.backlogs(shard), schedule, keys.nothing(shard), *queues]
        noted, count = await pipe.script(_COUNT_BACKLOG, names, subscription, int(corrects), *accounts)
        if count >= 0:
            return noted, count
