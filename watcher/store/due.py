"""What is due, of both kinds of work, in an index of each shard: nobody need ask every schedule for it.

An index says of each provider, and of each subscription, no later than when its first poll or queue there is
due; the scripts keep it. Refuses to claim: what it names may be held by another worker by now.
"""

import asyncio
from collections.abc import Sequence
from typing import Literal, NamedTuple

from watcher.store.keys import SHARDS, Keys
from watcher.store.schedule import Schedule
from watcher.store.scripting import load_script

Kind = Literal["poll", "delivery"]

_INDEX_DUE = load_script("index_due")
_LOOK = load_script("look")


class Due(NamedTuple):
    """Work that may be due in a shard: of a provider (`poll`) or of a subscription, for so long at most."""

    kind: Kind
    shard: int
    name: str
    for_s: float


class DueIndex:
    """The indices of one namespace. Methods raise StoreError."""

    def __init__(self, schedule: Schedule, keys: Keys) -> None:
        self._schedule = schedule
        self._pipe = schedule.pipe
        self._keys = keys

    @property
    def looks(self) -> list[tuple[int, ...]]:
        """The shards that one look covers: all of them, or on a Cluster each by itself."""
        shards = tuple(range(SHARDS))
        return [(shard,) for shard in shards] if self._pipe.is_cluster else [shards]

    async def look(self, shards: Sequence[int]) -> list[Due]:
        """Find what may be due in these shards. An index that cannot be read names nothing."""
        of_polls = [self._keys.due_polls(shard) for shard in shards]
        of_queues = [self._keys.due_subscriptions(shard) for shard in shards]
        keys, now_ms = [*of_polls, *of_queues], self._schedule.now_ms()
        if self._pipe.is_cluster:  # which would take a script for each shard
            found = await asyncio.gather(*(self._names_in(key, now_ms) for key in keys))
        else:
            found = await self._pipe.script(_LOOK, keys, now_ms)
        places: list[tuple[Kind, int]] = [("poll", shard) for shard in shards]
        places += [("delivery", shard) for shard in shards]
        return [
            Due(kind, shard, name.decode("utf-8", "replace"), (now_ms - float(since_ms)) / 1000)
            for (kind, shard), pairs in zip(places, found, strict=True)
            for name, since_ms in zip(pairs[::2], pairs[1::2], strict=True)
        ]

    async def _names_in(self, key: str, now_ms: int) -> list[bytes]:
        found: list[bytes] = await self._pipe.command("ZRANGEBYSCORE", key, "-inf", now_ms, "WITHSCORES")
        return found

    async def mend(self, shard: int, providers: Sequence[str]) -> None:
        """Let the index name the polls that its schedules say are due sooner, whoever wrote these."""
        keys = [self._keys.due_polls(shard), *(self._keys.polls(shard, name) for name in providers)]
        await self._pipe.script(_INDEX_DUE, keys, *providers)
