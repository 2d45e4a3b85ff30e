"""What waits in the lanes, read one by one for people: what is due when, how often its head failed.

Refuses to claim anything: whoever reads sees lanes that are being worked on, too.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from watcher.journal.delivery import Delivery, load_delivery
from watcher.store.counts import read_score
from watcher.store.keys import SHARDS, Keys
from watcher.store.lanes import read_tries
from watcher.store.pipe import Pipe

_PAGE = 50
"""Deliveries of one answer, each with a whole body."""


class Lane(NamedTuple):
    """One lane: when it is due, or when its lease ends; `tries` and `tried`: how often which head failed."""

    account: str
    due_ms: int
    tries: int
    tried: bytes


class Waiting:
    """Reads the lanes of one namespace. Methods raise StoreError when the server does not do its part."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def lanes(self, subscription: str) -> list[Lane]:
        """List the lanes of a subscription where something waits, by when they are due."""
        parts = await asyncio.gather(*(self._lanes_of(subscription, shard) for shard in range(SHARDS)))
        return sorted((lane for part in parts for lane in part), key=lambda lane: (lane.due_ms, lane.account))

    async def deliveries(self, subscription: str, account: str) -> AsyncIterator[Delivery | None]:
        """Read a lane, oldest first; None for what cannot be read. It may be worked on meanwhile."""
        start = 0
        while True:
            key = self._keys.lane(subscription, account)
            page = await self._pipe.command("LRANGE", key, start, start + _PAGE - 1)
            for entry in page:
                yield _delivery(entry)
            if len(page) < _PAGE:
                return
            start += _PAGE

    async def _lanes_of(self, subscription: str, shard: int) -> list[Lane]:
        pairs, tries = await asyncio.gather(
            self._pipe.command("ZRANGE", self._keys.lanes(shard, subscription), 0, -1, "WITHSCORES"),
            self._pipe.command("HGETALL", self._keys.tries(shard, subscription)),
        )
        tried_by_account = dict(zip(tries[::2], tries[1::2], strict=True))
        return [
            _lane(account, score, tried_by_account.get(account, b""))
            for account, score in zip(pairs[::2], pairs[1::2], strict=True)
        ]


def _lane(account: bytes, score: bytes, tried: bytes) -> Lane:
    tries, head = read_tries(tried)
    return Lane(account.decode("utf-8", "replace"), read_score(score), tries, head)


def _delivery(entry: bytes) -> Delivery | None:
    try:
        return load_delivery(entry)
    except ValueError:
        return None
