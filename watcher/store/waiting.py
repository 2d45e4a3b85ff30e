"""What waits in the queues, read one by one for people: what is due when, how often its head failed.

Refuses to claim anything: whoever reads sees queues that are being worked on, too.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from watcher.journal.delivery import Delivery, load_delivery
from watcher.store.keys import SHARDS, Keys, read_score
from watcher.store.pipe import Pipe
from watcher.store.queues import read_tries

_PAGE = 50
"""Deliveries of one answer, each with a whole body."""


class Queue(NamedTuple):
    """One queue: when it is due, or when its lease ends; `tries` and `tried`: how often which head failed."""

    account: str
    due_ms: int
    tries: int
    tried: bytes


class Waiting:
    """Reads the queues of one namespace. Methods raise StoreError when the server does not do its part."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def queues(self, subscription: str) -> list[Queue]:
        """List the queues of a subscription where something waits, by when they are due."""
        parts = await asyncio.gather(*(self._queues_of(subscription, shard) for shard in range(SHARDS)))
        return sorted(
            (queue for part in parts for queue in part), key=lambda queue: (queue.due_ms, queue.account)
        )

    async def deliveries(self, subscription: str, account: str) -> AsyncIterator[Delivery | None]:
        """Read a queue, oldest first; None for what cannot be read. It may be worked on meanwhile."""
        start = 0
        while True:
            key = self._keys.queue(subscription, account)
            page = await self._pipe.command("LRANGE", key, start, start + _PAGE - 1)
            for entry in page:
                yield _delivery(entry)
            if len(page) < _PAGE:
                return
            start += _PAGE

    async def _queues_of(self, subscription: str, shard: int) -> list[Queue]:
        pairs, tries = await asyncio.gather(
            self._pipe.command("ZRANGE", self._keys.queues(shard, subscription), 0, -1, "WITHSCORES"),
            self._pipe.command("HGETALL", self._keys.tries(shard, subscription)),
        )
        tried_by_account = dict(zip(tries[::2], tries[1::2], strict=True))
        return [
            _queue(account, score, tried_by_account.get(account, b""))
            for account, score in zip(pairs[::2], pairs[1::2], strict=True)
        ]


def _queue(account: bytes, score: bytes, tried: bytes) -> Queue:
    tries, head = read_tries(tried)
    return Queue(account.decode("utf-8", "replace"), read_score(score), tries, head)


def _delivery(entry: bytes) -> Delivery | None:
    try:
        return load_delivery(entry)
    except ValueError:
        return None
