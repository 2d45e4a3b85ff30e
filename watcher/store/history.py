"""The event log: what every commit recorded, in order, for people, replays and audits. Never for delivery.

Refuses to judge a record: it says what cannot be read, and goes on.
"""

import json
from collections.abc import AsyncIterator, Sequence
from heapq import heapify, heappop, heapreplace

from watcher.journal.log import Record
from watcher.store.keys import SHARDS, Keys, read_count, shard_of
from watcher.store.pipe import Pipe, load_script

START = "0-0"
"""The place before the first record of a shard's log."""

_READ_RECORDS = load_script("read_records")

_PAGE = 200
"""Records of one answer, each with a whole body."""


def place(record_id: str) -> tuple[int, int]:
    """Turn a record's id into what sorts as the log does: Unix ms of the server, and a count within it."""
    ms, _, count = record_id.partition("-")
    return int(ms), int(count or 0)


class History:
    """The event log of one namespace. A record that cannot be read comes with the content {}."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def records(self, account: str | None = None) -> AsyncIterator[Record]:
        """Read the log, oldest first within each shard; of one account, or of all."""
        shards = range(SHARDS) if account is None else (shard_of(account),)
        for shard in shards:
            async for record in self.of_shard(shard):
                if account in (None, record.account):
                    yield record

    async def of_shard(
        self, shard: int, *, since_ms: int = 0, end: str = "+", newest_first: bool = False
    ) -> AsyncIterator[Record]:
        """Read one shard's log from a time on up to an end (the id of a record), or back from there."""
        command, start = "XRANGE", f"{since_ms}-0"
        if newest_first:
            command, start, end = "XREVRANGE", end, start
        while True:
            page = await self._page(shard, command, start, end)
            for record in page:
                yield record
            if len(page) < _PAGE:
                return
            start = f"({page[-1].id}"

    async def in_order(
        self, ends: Sequence[str], *, since_ms: int = 0, newest_first: bool = False
    ) -> AsyncIterator[Record]:
        """Read the logs of all shards up to their `ends` as one, by the server's time of each commit."""
        sign = -1 if newest_first else 1
        shards = [
            self.of_shard(shard, since_ms=since_ms, end=end, newest_first=newest_first)
            for shard, end in enumerate(ends)
        ]
        heads = [_head(await anext(records, None), sign, shard) for shard, records in enumerate(shards)]
        heap = [head for head in heads if head]
        heapify(heap)
        while heap:
            _, shard, record = heap[0]
            yield record
            if head := _head(await anext(shards[shard], None), sign, shard):
                heapreplace(heap, head)
            else:
                heappop(heap)

    async def ends(self) -> list[str]:
        """Say where each shard's log ends now."""
        ends = []
        for shard in range(SHARDS):
            last = await self._pipe.command("XREVRANGE", self._keys.log(shard), "+", "-", "COUNT", 1)
            ends.append(last[0][0].decode() if last else START)
        return ends

    async def after(self, ends: Sequence[str]) -> tuple[list[Record], list[str]]:
        """Read what came after `ends`, in order and a page of each shard at most; returns the new ends."""
        found: list[Record] = []
        new_ends = []
        for shard, end in enumerate(ends):
            page = await self._page(shard, "XRANGE", f"({end}", "+")
            found.extend(page)
            new_ends.append(page[-1].id if page else end)
        return sorted(found, key=lambda record: place(record.id)), new_ends

    async def _page(self, shard: int, command: str, start: str, end: str) -> list[Record]:
        keys = [self._keys.log(shard), self._keys.bodies(shard)]
        flat = await self._pipe.script(_READ_RECORDS, keys, command, start, end, _PAGE)
        return [
            _record(entry_id.decode(), fields, stored)
            for entry_id, fields, stored in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        ]


def _head(record: Record | None, sign: int, shard: int) -> tuple[tuple[int, int, int], int, Record] | None:
    """What sorts the next record of a shard among those of the others; no two of them compare equal."""
    if record is None:
        return None
    ms, count = place(record.id)
    return (sign * ms, sign * count, sign * shard), shard, record


def _record(entry_id: str, fields: list[bytes], stored: bytes) -> Record:
    by_name = dict(zip(fields[::2], fields[1::2], strict=True))
    account = by_name.get(b"account", b"").decode("utf-8", "replace")
    follows, _, entry = by_name.get(b"entry", b"").partition(b" ")
    raw = stored.partition(b"\n")[2]
    try:
        content = dict(json.loads(raw + b"}" if raw else entry))
        queued = [line.rpartition(b" ") for line in by_name.get(b"queued", b"").splitlines()]
        previous = {name.decode(): None if last == b"-" else read_count(last) for name, _, last in queued}
        return Record(account, int(follows), content, entry_id, raw, previous)
    except (ValueError, TypeError, RecursionError):
        return Record(account, 0, {}, entry_id)
