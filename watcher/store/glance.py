"""What waits, counted at a glance: cheap enough for every worker to be asked every few seconds.

Refuses to read every queue: of a long backlog it measures the queues that may hold the oldest deliveries.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from watcher.store.batch import load_script
from watcher.store.keys import SHARDS, Keys
from watcher.store.pipe import Pipe
from watcher.store.survey import sequence_in

_COUNT_QUEUES = load_script("count_queues")
_MEASURE_QUEUES = load_script("measure_queues")

_AT_ONCE = 200
"""Subscriptions in one script call: a fraction of a millisecond of the server's time."""

_SHARDS_MEASURED = 256
"""Shards looked into, over all subscriptions that wait; each of them gets one at least."""

_QUEUES_MEASURED = 5_000


@dataclass(slots=True)
class Waiting:
    """What waits for one subscription. `oldest_sequence` is about the Unix ms of its oldest delivery.

    Of a long backlog that is the oldest one of the queues looked into.
    """

    queues: int = 0
    dead: int = 0
    oldest_sequence: int | None = None


class Glance:
    """Looks at one namespace. Methods raise StoreError."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def waiting(self, subscriptions: Collection[str]) -> dict[str, Waiting]:
        """Count what waits for each of these subscriptions."""
        waiting = {name: Waiting() for name in subscriptions}
        queues_by_shard: dict[str, dict[int, int]] = {}
        for shard, name, queues, dead in await self._counts([*subscriptions]):
            waiting[name].queues += queues
            waiting[name].dead += dead
            if queues:
                queues_by_shard.setdefault(name, {})[shard] = queues
        for name, sequence in await self._oldest(queues_by_shard):
            known = waiting[name].oldest_sequence
            waiting[name].oldest_sequence = sequence if known is None else min(known, sequence)
        return waiting

    async def due(self, providers: Iterable[str], *, now_ms: int) -> int:
        """Count the accounts and queues that are due and that nobody has claimed yet."""
        names_by_shard = await asyncio.gather(
            *(
                self._pipe.command("ZRANGEBYSCORE", self._keys.due_subscriptions(shard), "-inf", now_ms)
                for shard in range(SHARDS)
            )
        )
        schedules = [self._keys.polls(shard, name) for name in providers for shard in range(SHARDS)]
        for shard, names in enumerate(names_by_shard):
            schedules += [self._keys.queues(shard, name.decode("utf-8", "replace")) for name in names]
        counts = await asyncio.gather(
            *(self._pipe.command("ZCOUNT", key, "-inf", now_ms) for key in schedules)
        )
        return sum(counts)

    async def _counts(self, names: Sequence[str]) -> list[tuple[int, str, int, int]]:
        """Count queues and dead letters: shard, subscription, queues, dead letters."""
        parts = [
            (shard, names[start : start + _AT_ONCE])
            for shard in range(SHARDS)
            for start in range(0, len(names), _AT_ONCE)
        ]
        answers = await asyncio.gather(
            *(self._pipe.script(_COUNT_QUEUES, self._keys_of(shard, part)) for shard, part in parts)
        )
        return [
            (shard, name, queues, dead)
            for (shard, part), counts in zip(parts, answers, strict=True)
            for name, queues, dead in zip(part, counts[::3], counts[2::3], strict=True)
        ]

    def _keys_of(self, shard: int, names: Sequence[str]) -> list[str]:
        kinds = (self._keys.queues, self._keys.tries, self._keys.dead)
        return [kind(shard, name) for name in names for kind in kinds]

    async def _oldest(self, queues_by_shard: dict[str, dict[int, int]]) -> list[tuple[str, int]]:
        """Find the oldest delivery of each subscription in each shard that is looked into."""
        if not queues_by_shard:
            return []
        shards = max(1, _SHARDS_MEASURED // len(queues_by_shard))
        places = [
            (name, shard)
            for name, queues in queues_by_shard.items()
            for shard in sorted(queues, key=queues.__getitem__, reverse=True)[:shards]
        ]
        at_most = max(1, _QUEUES_MEASURED // len(places))
        found = await asyncio.gather(*(self._oldest_in(name, shard, at_most) for name, shard in places))
        return [
            (name, sequence)
            for (name, _), sequence in zip(places, found, strict=True)
            if sequence is not None
        ]

    async def _oldest_in(self, subscription: str, shard: int, at_most: int) -> int | None:
        """Look at both ends of the schedule: who waits for room was due first, who fails is due last."""
        key = self._keys.queues(shard, subscription)
        half = -(-at_most // 2)
        ends = await asyncio.gather(
            self._pipe.command("ZRANGE", key, 0, half - 1), self._pipe.command("ZRANGE", key, -half, -1)
        )
        accounts = sorted({account.decode("utf-8", "replace") for end in ends for account in end})
        if not accounts:
            return None  # delivered meanwhile
        queues = [self._keys.queue(subscription, account) for account in accounts]
        measured = await self._pipe.script(_MEASURE_QUEUES, queues)
        return min((sequence for head in measured[1::2] if (sequence := sequence_in(head))), default=None)
